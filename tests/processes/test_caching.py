"""Processes build caches together, to the same bytes as one; asked to stop, they go on later."""

import hashlib
import signal
import subprocess
import time
from pathlib import Path

import processes
import pytest
import three_objectives

from xl_flax import cli


def contents(folder):
    """A digest of each file of a cache; locks and tables for people left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and not path.name.startswith(".") and "tables" not in path.parts
    }


@pytest.mark.slow
def test_caches_are_built_together(tmp_path):
    three_objectives.make_data(tmp_path)
    (tmp_path / "gin").symlink_to(Path(cli.ROOT, "gin"))
    flags = ["--gin_file=run.gin", "--gin.STEPS=2", "--gin.TrainConfig.held_out=[]"]
    flags += ["--gin.TrainConfig.objectives=[@MaskedLM()]"]

    def run(count, *more):
        return processes.start(tmp_path, count, *processes.python("train", *flags, *more))

    start = run(2)
    deadline = time.monotonic() + 120
    while not builders(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1.0)
    children = builders(tmp_path)
    assert len(children) == 2, children  # each process builds its share
    start.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    code, said = processes.finish(start)
    assert code == cli.EXIT_PREEMPTED and time.monotonic() - begin < 60
    assert not builders(tmp_path)
    assert all("asked to stop" in said[i] and not processes.errors(said[i]) for i in range(2))

    code, said = processes.finish(run(2), 300)
    assert code == 0, said
    built = contents(tmp_path / "cache")
    own = f"--gin.CACHE_DIR={tmp_path / 'alone'}"
    alone = [*processes.python("cache", *flags, own)]
    subprocess.run(alone, cwd=tmp_path, env=processes.environment_in(tmp_path), check=True)
    assert built and contents(tmp_path / "alone") == built


def builders(folder):
    """The processes that build the caches of a folder."""
    rows = subprocess.check_output(["ps", "-eww", "-o", "pid=,args="], text=True).splitlines()
    return [row for row in rows if "xl_flax.cache" in row and str(folder) in row]
