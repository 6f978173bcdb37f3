"""launch/environment.sh: uv is told what pip knows, pip steps in, an old Python is no obstacle."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xl_flax import cli

# It writes its arguments down; what it makes has a python that does the same.
UV = """#!/bin/bash
printf '%s\\n' "$*" >>"$RECORD"
[ "$1" != venv ] || {{ mkdir -p "${{@: -1}}/bin"; ln -s {python} "${{@: -1}}/bin/python"; }}
exit {code}
"""
SET_UP = "set -euo pipefail; source launch/environment.sh eval; command -v python"


@pytest.fixture
def set_up(tmp_path):
    """Sets up in a folder; gives the process and what uv was asked for."""
    for name in ("setup.py", "constraints.txt", "launch"):
        (tmp_path / name).symlink_to(Path(cli.ROOT, name))
    (tmp_path / "bin").mkdir()

    def set_up(uv=0, programs=(), **environment):
        if uv is not None:
            write_program(tmp_path / "bin" / "uv", UV.format(python=sys.executable, code=uv))
        for name, text in dict(programs).items():
            write_program(tmp_path / "bin" / name, text)
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        variables = {"PATH": path, "HOME": str(tmp_path), "RECORD": str(tmp_path / "record"),
                     "PYTHON": sys.executable, "PIP_CONFIG_FILE": os.devnull}  # fmt: skip
        run = subprocess.run(
            ["bash", "-c", SET_UP], env=variables | environment, cwd=tmp_path,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        record = tmp_path / "record"
        return run, record.read_text().splitlines() if record.exists() else []

    return set_up


def write_program(path, text):
    path.write_text(text)
    path.chmod(0o755)


def test_uv_is_told_where_pip_finds_packages(set_up, tmp_path):
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://a/simple\nextra-index-url = https://b/simple\n"
        "  file:///c\nfind-links = /old\n[install]\ntrusted-host = b\n"
    )
    run, asked = set_up(
        PIP_CONFIG_FILE=str(tmp_path / "pip.conf"), PIP_FIND_LINKS="/wheels https://w/"
    )
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()) == tmp_path / ".venv" / "bin" / "python"
    (words,) = asked
    words = re.sub(r" --constraint=\S*", "", words)  # pip may have some on this machine
    assert words == (
        "pip install --python .venv/bin/python --index-strategy unsafe-best-match --quiet"
        " --default-index=https://a/simple --index=https://b/simple --index=file:///c"
        " --find-links=/wheels --find-links=https://w/ --allow-insecure-host=b"
        " -c constraints.txt -e .[eval]"
    )
    run, again = set_up()
    assert run.returncode == 0 and again == asked  # nothing to do
    run, again = set_up(XL_FLAX_EXTRAS="gpu", PIP_NO_INDEX="1")
    assert run.returncode == 0
    assert "--no-index " in again[1] and again[1].endswith(" -e .[eval,gpu]")


def test_where_uv_fails_pip_is_tried(set_up):
    run, asked = set_up(uv=1, PIP_NO_INDEX="1")
    assert run.returncode == 1 and len(asked) == 1
    assert "trying pip" in run.stderr and "No matching distribution" in run.stderr
    assert not run.stdout  # an installation that failed is not used


def test_where_uv_cannot_be_had_pip_is_tried(set_up):
    path = os.pathsep.join(
        p for p in os.environ["PATH"].split(os.pathsep) if not Path(p, "uv").exists()
    )
    run, _ = set_up(uv=None, PIP_NO_INDEX="1", PATH=path)
    assert run.returncode == 1 and "No matching distribution" in run.stderr
    assert "trying pip" not in run.stderr


def test_with_an_old_python_uv_gets_a_newer_one(set_up, tmp_path):
    old = '#!/bin/sh\ncase "$*" in *version_info*) exit 1 ;; esac\nexit 0\n'
    programs = {f"python3{minor}": old for minor in ("", ".11", ".12", ".13")}
    run, asked = set_up(programs=programs, PYTHON="")
    assert run.returncode == 0, run.stderr
    assert asked[0] == "venv --quiet --seed --clear --python 3.12 .venv"
    assert asked[1].startswith("pip install") and (tmp_path / ".venv/bin/python").exists()
    shutil.rmtree(tmp_path / ".venv")
    run, _ = set_up(uv=1, programs=programs, PYTHON="")
    assert run.returncode == 1 and "no Python 3.11 to 3.13 found" in run.stderr
