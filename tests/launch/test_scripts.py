"""All scripts: shellcheck finds nothing, and each explains itself."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from xl_flax import cli

LAUNCH = Path(cli.ROOT, "launch")
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), Path(cli.ROOT, "tests", "run.sh")])
COMMANDS = [path for path in LAUNCH.glob("*.sh") if path.read_text().startswith("#!")]
# Sourced files are read, too; options become variables when they are read (SC2034, SC2154).
SHELLCHECK = ["shellcheck", "-x", "--source-path=SCRIPTDIR/..", "--exclude=SC2034,SC2154"]
JOBS = [path.name for path in SCRIPTS if "read_arguments " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed; it comes with the extra dev")
    run = subprocess.run([*SHELLCHECK, path], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("name", JOBS)
def test_help_names_every_option_and_action(launch, name):
    text = (LAUNCH / name).read_text(encoding="utf-8")
    run = launch(name, "--help")
    assert run.returncode == 0 and run.stdout.count("\n") > 10 and not run.stderr
    options = re.findall(r"^(?:values|switches)\+?=\((.*)\)$", text, re.MULTILINE)
    names = [word.split("=")[0] for line in options for word in line.split()]
    for option in [*names, "dry_run", "env"]:
        assert f"--{option}" in run.stdout, option
    actions = re.findall(r"^  ([a-z |]+)\) ", text[text.rindex('\ncase "$action"') :], re.MULTILINE)
    for action in " ".join(actions).replace("|", " ").split():
        assert re.search(rf"(^|  ){action} ", run.stdout, re.MULTILINE), action
    assert max(map(len, run.stdout.splitlines())) <= 130


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_help_is_the_head_and_runs_nothing(world, path):
    head = re.match(r"#!.*\n# (.*)", path.read_text(encoding="utf-8"))
    run = subprocess.run(
        ["bash", path, "--help"], env=world.environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0 and run.stdout.startswith(head[1]) and not run.stderr
    assert not world.calls()


@pytest.mark.parametrize("name", JOBS)
def test_the_example_of_the_head_is_understood(world, project, name):
    head = re.match(r"(?:#.*\n)*", (LAUNCH / name).read_text(encoding="utf-8"))[0]
    (example,) = re.findall(rf"^#   (bash launch/{name} (?:.*\\\n#)*.*)", head, re.MULTILINE)
    example = example.replace("\\\n#", "").replace("NAME ", "n --dry_run ", 1).replace("…", "x")
    run = subprocess.run(
        ["bash", "-c", example.replace("NAME", "n")], env=world.environment, cwd=project,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "launch/host.sh" in run.stdout and not world.calls()


@pytest.mark.parametrize("words", [["run"], ["state"], ["stop"]])
def test_a_host_is_told_what_is_missing(launch, words):
    run = launch("host.sh", *words)
    (line,) = run.stderr.splitlines()
    assert run.returncode == 2 and line.startswith(f"error: {words[0]} needs ")


@pytest.mark.parametrize("name", JOBS)
def test_a_name_and_an_action_are_asked_for(launch, world, name):
    for words, said in ((), "say what to do"), (("dance", "n"), "no action dance"):
        run = launch(name, *words)
        assert run.returncode == 2 and run.stderr.startswith("error: ") and said in run.stderr
        assert len(run.stderr.splitlines()) == 1 and not world.calls()
