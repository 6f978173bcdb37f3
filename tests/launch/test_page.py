"""docs/launching.md: a reader who types all of it, against stand-ins and the real gcloud's eyes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stand_in import World

from xl_flax import cli

TEXT = Path(cli.ROOT, "docs", "launching.md").read_text(encoding="utf-8")
SECTIONS = {
    title: "".join(re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
}
FIRST = "Before the first job on Google Cloud"
HERE = ("Setting up a host",)  # measured on this machine; tests/launch/test_environment.py
# What each section must bring about, by a pattern that a call matches.
EXPECTED = {
    FIRST: ["gcloud services enable tpu", "storage cp --recursive runs/cache .* gs://my-bucket/"],
    "v5e-64 on TPU VMs": [
        "create xlmr .*--accelerator-type=v5litepod-64 .*--spot",
        "start xlmr .* train --distributed .*MODEL_DIR=gs://my-bucket/xlmr",
        "delete xlmr",
    ],
    "2 × v6e-256 on TPU VMs": [
        "create xlmr .*--node-count=2 .*v6e-256 .*--reserved",
        "delete xlmr",
    ],
    "2 × v6e-256 on GKE": ["^kubectl .*create -f", "^kubectl .*delete jobset", "clusters delete"],
    "2 × 8 GPUs on Slurm": ["^sbatch ", "^scancel .*TERM", "^scancel --me --name=xlmr$"],
    "One GPU": [
        "instances create",
        "^ssh .* vocab --gin",
        "^ssh .* train --gin",
        "instances delete",
    ],
    "SkyPilot": ["^sky jobs launch"],
}


def typed(title, world, project):
    """Types the commands of a section, after those that name the reader's project."""
    names, commands = SECTIONS[FIRST].splitlines()[0], SECTIONS[title]
    if " logs xlmr" in commands:  # the reader looks while it runs, here afterwards
        commands = commands.replace("tpu_vm.sh run", "tpu_vm.sh run --keep")
    return subprocess.run(
        ["bash", "-euc", f"{names}\n{commands}"], env=world.environment, cwd=project,
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


@pytest.fixture(scope="module")
def read(project, tmp_path_factory):
    """read(title) -> what became of typing a section, and its world; each is typed once."""
    done = {}

    def read(title):
        if title not in done:
            world = World(tmp_path_factory.mktemp("reader") / "world", sys.executable)
            done[title] = typed(title, world, project), world
        return done[title]

    return read


def test_all_sections_with_commands_are_typed():
    with_commands = {title for title, shell in SECTIONS.items() if shell}
    assert with_commands == {*EXPECTED, *HERE}


@pytest.mark.slow
@pytest.mark.parametrize("title", EXPECTED)
def test_a_section_leads_to_its_end(title, read):
    run, world = read(title)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "error" not in run.stderr.lower(), run.stderr
    for pattern in EXPECTED[title]:
        assert world.calls(pattern), pattern
    left = world.read()
    assert not any(left.get(kind) for kind in ("resource", "jobset", "job"))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed here")
def test_the_real_gcloud_understands_the_page(read, tmp_path):
    """Without an account: each command is read, and then refused. Nothing is asked of a project."""
    environment = os.environ | {
        "CLOUDSDK_CONFIG": str(tmp_path / "nobody"), "CLOUDSDK_CORE_CHECK_GCE_METADATA": "False",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
    }  # fmt: skip
    words = [words for title in EXPECTED for words in read(title)[1].read()["words"]]
    commands = {tuple(each) for each in words if each[0] == "gcloud"}
    ours = re.compile(
        r"queued-resources|tpu-vm|auth login|storage (cp|rm)"
    )  # the rest of tests/launch
    plain = sorted(words for words in commands if not ours.search(" ".join(words)))
    assert len(plain) > 15
    for words in plain:
        run = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        said = run.stdout + run.stderr
        assert "You do not currently have an active account" in said, f"{words}: {said}"
