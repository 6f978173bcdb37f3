"""Sweeps that are killed, and several processes that share one: each cell once."""

import collections
import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
from small_evaluations import make_run

from xl_flax import cli
from xl_flax.evaluation import results
from xl_flax.files import leases

GIN = """
import counted
include 'gin/eval/base.gin'
TASK_MODULES = ['none']
Cache.on_missing = 'stop'
EvaluateConfig.evaluations = [@a/Counted(), @b/Counted(), @c/Counted(), @d/Counted()]
a/Counted.name = 'a'
b/Counted.name = 'b'
c/Counted.name = 'c'
d/Counted.name = 'd'
"""
RUNS, NAMES = 5, "abcd"  # ten checkpoints, as each run has two


@pytest.fixture
def start(tmp_path, vocabulary, cache):
    """Starts the command in a process of its own, on runs of which each has two checkpoints."""
    for number in range(RUNS):
        make_run(str(tmp_path / "runs" / str(number)), vocabulary, seed=100 * number)
    (tmp_path / "counted.gin").write_text(GIN)
    started = []

    def begin(seconds, *flags):
        support = os.path.join(cli.ROOT, "tests", "support")
        paths = os.pathsep.join([support, cli.ROOT, *filter(None, sys.path)])
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "xl_flax.evaluate", f"--gin_file={tmp_path}/counted.gin"),
                *(f"--checkpoints={tmp_path}/runs/*/checkpoints/*", f"--output={tmp_path}/out"),
                *(f"--gin.CACHE_DIR={cache.directory}", f"--gin.Counted.log={tmp_path}/log"),
                *(f"--gin.Counted.seconds={seconds}", *flags),
            ],
            env=os.environ | {"PYTHONPATH": paths, "JAX_NUM_CPU_DEVICES": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def log(tmp_path):
    """What evaluations have begun: (process, checkpoint, evaluation)."""

    def read():
        path = tmp_path / "log"
        return [tuple(x.split()) for x in path.read_text().splitlines()] if path.exists() else []

    return read


def measured(tmp_path):
    """The cells in the files of results: (run's number and step, evaluation), once for a line."""
    return [
        (f"{run}/{row.step}", row.metric)
        for run in range(RUNS)
        for row in results.read(f"{tmp_path}/out/runs/{run}/{results.FILE}")
    ]


def of_log(lines):
    parts = [(path.split("/"), name) for _, path, name in lines]
    return [(f"{path[-3]}/{path[-1]}", name) for path, name in parts]


def wait_for(condition, process, limit=300):
    end = time.monotonic() + limit
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


EVERY = {(f"{run}/{step}", name) for run in range(RUNS) for step in (5, 10) for name in NAMES}


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_and_repeats_no_cell(start, log, tmp_path):
    draws, checked = random.Random(0), []
    for _ in range(3):
        process, before = start(0.2), len(log())
        wait_for(lambda n=before: len(log()) >= n + 2, process)
        time.sleep(draws.uniform(0, 0.5))
        process.kill()
        process.communicate()
        there = set(measured(tmp_path))
        assert there and len(measured(tmp_path)) == len(there)
        checked.append((len(log()), there))
    out, err = start(0).communicate(timeout=300)
    assert "40 cells done, 0 failed, 0 left" in out, err
    assert sorted(measured(tmp_path)) == sorted(EVERY)
    for begun, there in checked:
        assert not there & set(of_log(log()[begun:]))
    assert len(log()) <= len(EVERY) + 3  # what each kill cut off
    assert not os.path.exists(tmp_path / "out/runs/0/.claims")


@pytest.mark.slow
def test_two_processes_share_a_sweep_and_one_of_them_is_killed(start, log, tmp_path):
    first, second = start(0.15), start(0.15)
    wait_for(lambda: len({line[0] for line in log()}) == 2 and len(log()) > 4, first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0 and "40 cells done, 0 failed, 0 left" in out, err
    assert sorted(measured(tmp_path)) == sorted(EVERY)  # each cell once, in the files
    again = [cell for cell, n in collections.Counter(of_log(log())).items() if n > 1]
    assert len(again) <= 1  # that in which the first one died
    both = {line[0] for line in log()}
    assert both == {str(first.pid), str(second.pid)}


@pytest.mark.slow
def test_processes_of_one_job_sweep_together(start, log, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    joining = f"--coordinator=127.0.0.1:{port}", "--num_processes=2"
    first, second = (start(0, *joining, f"--process_id={i}") for i in range(2))
    out, err = first.communicate(timeout=300)
    assert "40 cells done, 0 failed, 0 left" in out, err
    assert "cells done" not in second.communicate(timeout=300)[0]
    assert first.returncode == second.returncode == 0
    assert sorted(measured(tmp_path)) == sorted(EVERY)
    assert len(log()) == 2 * len(EVERY)  # both compute, the first one writes


def test_a_lease_of_another_machine_is_free_when_it_is_not_touched(tmp_path, monkeypatch):
    folder = str(tmp_path / "claims")
    with leases.lease(folder, "cell") as mine:
        assert mine
        with leases.lease(folder, "cell") as again:
            assert not again
        with leases.lease(folder, "other") as other:
            assert other
    assert not os.path.exists(folder)

    monkeypatch.setattr(leases, "_machine", lambda: "elsewhere")
    assert leases._take(folder, "cell")
    monkeypatch.undo()
    (path,) = leases._existing(folder, "cell")
    with leases.lease(folder, "cell") as mine:
        assert not mine
    old = time.time() - 2 * leases.EXPIRED
    os.utime(path, (old, old))
    with leases.lease(folder, "cell") as mine, leases.lease(folder, "cell") as other:
        assert mine and not other
    assert not os.path.exists(folder)


def test_a_lease_is_touched_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.01)
    with leases.lease(str(tmp_path / "claims"), "cell"):
        (path,) = leases._existing(str(tmp_path / "claims"), "cell")
        os.utime(path, (0, 0))
        end = time.monotonic() + 10
        while not os.stat(path).st_mtime:
            assert time.monotonic() < end
            time.sleep(0.01)
