"""Whatever ends one process ends all, each with one line and in seconds; and the run goes on."""

import os
import random
import re
import signal
import time

import house
import numpy as np
import processes
import pytest
from run_folders import lines_of, saved, steps_of

from xl_flax import cli

LONG = [
    *("--gin.STEPS=4000", "--gin.TrainConfig.checkpoint_every=5", "--gin.TrainConfig.log_every=5"),
    *("--gin.TrainConfig.held_out=[]", "--gin.TrainConfig.best=None"),
]
SECONDS = 60  # within which all are to be gone


@pytest.mark.slow
def test_a_run_whose_processes_are_killed_and_asked_ends_with_the_same_bits(data):
    """One of two is killed, then one is asked to stop; each time the same command goes on."""
    rng = random.Random(os.getpid())  # another moment and another process each time
    flags = [*house.RUN, *LONG, "--gin.MODEL_DIR=interrupted"]
    for what in (signal.SIGKILL, signal.SIGTERM):
        victim = rng.randrange(2)
        start = processes.start(data, 2, *processes.python("train", *flags))
        begin = processes.asked(start, rf"step +\d*{rng.randrange(2, 9)}5/", victim, what)
        code, said = processes.finish(start)
        assert time.monotonic() - begin < SECONDS
        if what == signal.SIGKILL:
            (line,) = processes.errors(said[1 - victim])
            assert f"process {victim} of 2 " in line and "is gone" in line
            assert code == 128 + signal.SIGKILL
        else:
            assert code == cli.EXIT_PREEMPTED
            assert not processes.errors(said[0]) and "error" not in said.get(1, "")
    step = int(re.search(r"saved step ([\d,]+)", said[0])[1].replace(",", ""))
    assert steps_of(data / "interrupted")[-1] == step
    flags[-1:] = [f"--gin.STEPS={step + 6}", "--gin.MODEL_DIR=interrupted"]
    outputs = []
    for folder in ("interrupted", "straight"):
        flags[-1] = f"--gin.MODEL_DIR={folder}"
        code, said = processes.finish(
            processes.start(data, 2, *processes.python("train", *flags)), 240
        )
        assert code == 0, said
        outputs.append(said[0])
    assert f"resuming interrupted at step {step}" in outputs[0]
    said = [" ".join(output.split()) for output in outputs]  # lines are wrapped
    assert "3 starts, 0:" in said[0] and "lost: trained again" in said[0]
    assert "starts" not in said[1] and "lost" not in said[1]
    for item in ("params", "optimizer"):
        expected, found = saved(data / "straight", item), saved(data / "interrupted", item)
        assert expected.keys() == found.keys()
        for path, value in expected.items():
            np.testing.assert_array_equal(value, found[path], err_msg=f"{item}{path}")
    assert lines_of(data / "interrupted") == lines_of(data / "straight")


@pytest.mark.slow
def test_a_process_that_hangs_is_named(data):
    """It is stopped, and its connections stay open. All of them stopped, as a machine, go on."""
    flags = [*house.RUN, *LONG, "--gin.MODEL_DIR=hangs"]
    start = processes.start(data, 2, *processes.quick("train", *flags))
    for line in start.stdout:
        if re.search(r"step +\d", line):
            break
    pids = [processes.pid_of(start, number) for number in range(2)]
    for what in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            os.kill(pid, what)
        time.sleep(6.0 if what == signal.SIGSTOP else 1.0)
    assert start.poll() is None
    os.kill(pids[0], signal.SIGSTOP)
    begin = time.monotonic()
    try:
        for line in start.stdout:
            if line.startswith("[1] error"):
                break
        assert "process 0 of 2 " in line and "has not been heard of for 4 s: it hangs" in line
        assert time.monotonic() - begin < SECONDS / 2
        while os.path.exists(f"/proc/{pids[1]}") and time.monotonic() - begin < SECONDS:
            time.sleep(0.1)
        time.sleep(1.0)  # the script has seen how it ended before the other one ends
    finally:
        os.kill(pids[0], signal.SIGKILL)
    code, said = processes.finish(start)
    assert code == cli.EXIT_LOST and not said.get(1)


@pytest.mark.slow
def test_asked_in_an_evaluation_all_save_first_and_evaluate_later(data):
    own = ["--gin.Periodic.evaluation=@SlowAccuracy()", "--gin.SlowAccuracy.mixture='all'"]
    own += ["--gin.SlowAccuracy.length=16", "--gin.SlowAccuracy.rows_per_task=4"]
    flags = [*house.RUN, *own, "--gin.MODEL_DIR=evaluated", "--gin.Periodic.every=3"]
    with open(data / "slow.gin", "w") as file:
        file.write("import slow_evaluation\n")
    flags.append("--gin_file=slow.gin")
    support = os.path.dirname(processes.__file__)
    start = processes.start(
        data, 2, *processes.python("train", *flags), PYTHONPATH=f"{support}:{cli.ROOT}"
    )
    processes.asked(start, "evaluates for long", 1, signal.SIGTERM)
    code, said = processes.finish(start)
    assert code == cli.EXIT_PREEMPTED, said
    assert "asked to stop: saved step 3" in said[0]
    usual = [*house.RUN, "--gin.MODEL_DIR=evaluated", "--gin.Periodic.every=3", "--gin.STEPS=4"]
    code, said = processes.finish(processes.start(data, 2, *processes.python("train", *usual)))
    assert code == 0, said
    evaluated = [line["step"] for line in lines_of(data / "evaluated") if "eval/all/loss" in line]
    assert evaluated == [0, 3, 4]


@pytest.mark.parametrize("module", ["train", "evaluate"])
def test_asked_before_there_is_anything_to_save_all_end_at_once(
    data, module, run_here, monkeypatch
):
    if module == "evaluate":
        monkeypatch.chdir(data)
        run_here("train", house.RUN)
    start = processes.start(data, 2, *processes.python(module, *house.RUN, "--gin.SEED=0"))
    begin = processes.asked(start, "Gloo", 0, signal.SIGTERM)
    code, said = processes.finish(start)
    assert code == cli.EXIT_PREEMPTED and time.monotonic() - begin < SECONDS / 2
    for number in range(2):
        assert "asked to stop" in said[number] and not processes.errors(said[number])


def test_a_folder_that_is_not_shared_is_named_on_all(data, tmp_path):
    for name in ("cache", "vocabulary.model", "run.gin"):
        (tmp_path / name).symlink_to(data / name)
    (tmp_path / "gin").symlink_to(os.path.join(cli.ROOT, "gin"))
    command = processes.otherwise(*processes.python("train", *house.RUN, "--gin.MODEL_DIR=own"))
    code, said = processes.finish(
        processes.start(data, 2, *command, FIRST="1", ELSEWHERE=str(tmp_path))
    )
    assert code == 1
    for number in range(2):
        (line,) = processes.errors(said[number])
        assert "MODEL_DIR = 'own' is not one folder for all" in line and "process 1 cannot" in line
    assert os.listdir(data / "own") == [".lock"]


@pytest.mark.slow
def test_a_process_that_cannot_write_its_part_is_named_on_all(data):
    """Each process writes its part of the parameters; the files of one may not grow."""
    limited = 'if [ "${@: -1}" = --process_id=1 ]; then ulimit -f 4; fi; exec "$@"'
    flags = [*house.RUN, "--gin.MeshConfig.ici=(1,2,1)", "--gin.MODEL_DIR=limited"]
    start = processes.start(
        data, 2, "bash", "-c", limited, "bash", *processes.python("train", *flags)
    )
    code, said = processes.finish(start)
    assert code == 1, said
    assert "File too large" in said[1]
    (line,) = processes.errors(said[0])
    assert "process 1 of 2" in line and "File too large" in line
