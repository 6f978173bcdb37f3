"""Launch scripts in a repository of their own, and stand-ins for the programs they call."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stand_in import World

from xl_flax import cli


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """The project's launch folder as a repository of its own, with nothing uncommitted."""
    folder = tmp_path_factory.mktemp("a project")
    shutil.copytree(Path(cli.ROOT, "launch"), folder / "launch")
    for name in ("setup.py", "constraints.txt"):
        shutil.copy(Path(cli.ROOT, name), folder)
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "world", sys.executable)


@pytest.fixture
def launch(project, world):
    """Runs a script to its end; gives the process."""

    def launch(script, *words, **environment):
        command = ["bash", f"launch/{script}", *words]
        environment = world.environment | environment
        return subprocess.run(
            command, env=environment, cwd=project, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip

    return launch
