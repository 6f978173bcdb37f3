"""`launch/local_processes.sh`: numbers, exit codes, signals, and nothing that stays behind."""

import os
import shlex
import signal
import subprocess
import time

import processes
import pytest

# Says who it is; the process FIRST ends in its own way. Others wait, and say which signal came.
WAITS = """
number="${@: -1}"
[ "$number" != "--process_id=${FIRST:-}" ] || { echo "fails"; exit 7; }
trap 'echo asked; exit 75' TERM
trap 'echo interrupted; exit 1' INT
echo "pid $$"
for _ in {1..600}; do sleep 0.1; done
"""
ECHO = ("bash", "-c", 'echo "$@"; echo "and said" >&2', "bash")


def script(*arguments, **environment):
    return subprocess.run(
        ["bash", processes.SCRIPT, *arguments],
        check=False, capture_output=True, text=True, env=os.environ | environment, timeout=60,
    )  # fmt: skip


def test_each_process_is_told_its_number_and_says_it(tmp_path):
    code, said = processes.finish(processes.start(tmp_path, 3, *ECHO, "own flag"))
    assert code == 0 and sorted(said) == [0, 1, 2]
    for number, text in said.items():
        flags, error = text.splitlines()
        own, address, count, index = flags.rsplit(" ", 3)
        assert own == "own flag" and address.startswith("--coordinator=127.0.0.1:")
        assert (count, index) == ("--num_processes=3", f"--process_id={number}")
        assert error == "and said"


def test_a_dry_run_prints_what_would_run():
    lines = script("--dry_run", "2", "python", "-m", "xl_flax.train", "--gin.A=[1, 2]").stdout
    first, second = (shlex.split(line) for line in lines.splitlines())
    assert first[:-1] == second[:-1] and second[-1] == "--process_id=1"
    assert first[3:7] == ["python", "-m", "xl_flax.train", "--gin.A=[1, 2]"]
    assert "JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo" in first


def test_help_and_bad_flags():
    assert "launch/local_processes.sh 2 python -m xl_flax.train" in script("--help").stdout
    for wrong in (
        (),
        ("0", "true"),
        ("two", "true"),
        ("2",),
        ("--three", "2", "true"),
        ("2", "--dry_run", "true"),
    ):
        ended = script(*wrong)
        assert ended.returncode == 2 and ended.stderr.startswith("error: "), wrong


def test_the_first_failure_is_the_exit_code_and_the_rest_is_ended(tmp_path):
    started = processes.start(tmp_path, 3, "bash", "-c", WAITS, "bash", FIRST="1", PATIENCE="0.5")
    code, said = processes.finish(started)
    assert code == 7 and said[1] == "fails"
    for number in (0, 2):
        assert said[number].endswith("\nasked")
        assert_gone(said[number].splitlines()[0])


@pytest.mark.parametrize(
    ("asked", "answer", "code"), [(signal.SIGTERM, "asked", 75), (signal.SIGINT, "interrupted", 1)]
)
def test_signals_are_passed_on(tmp_path, asked, answer, code):
    # A suite that was started in the background ignores SIGINT, and so would what it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        started = processes.start(tmp_path, 2, "bash", "-c", WAITS, "bash")
    finally:
        signal.signal(signal.SIGINT, before)
    lines = [started.stdout.readline() for _ in range(2)]
    started.send_signal(asked)
    ended, said = processes.finish(started)
    assert ended == code and sorted(said) == [0, 1]
    assert all(text.splitlines()[-1] == answer for text in said.values())
    for line in lines:
        assert_gone(line.split(" ", 1)[1])


def test_a_process_that_is_killed_is_said_so(tmp_path):
    code, said = processes.finish(processes.start(tmp_path, 1, "bash", "-c", "kill -9 $$", "bash"))
    assert code == 128 + signal.SIGKILL and said == {0: "ended by signal 9"}


def assert_gone(pid):
    """`pid` is a line as in "pid 17"."""
    number = int(pid.split()[1])
    for _ in range(50):
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"{number} is still there")
