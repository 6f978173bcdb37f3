"""Asked to stop, a command ends at once, or where it can save, whatever it is doing."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from xl_flax import stopping

# A command whose main thread is in Python, in compiled code, or where ending would lose work.
COMMAND = """
import subprocess, sys, time
import jax
import numpy as np
from xl_flax import cli, stopping

stopping.GRACE = 0.5

def sorts(x):
    for i in range(1500):
        x = jax.lax.sort(x + i, dimension=i % 2)
    return x

def main(argv):
    what = argv[0]
    if what == "compiling":
        lowered = jax.jit(sorts).lower(jax.ShapeDtypeStruct((64, 64), "float32"))
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with stopping.child(child):
        print(child.pid, flush=True)
        if what == "python":
            time.sleep(600)
        if what == "compiling":
            lowered.compile()
        if what == "compiled":
            np.linalg.svd(np.random.default_rng(0).normal(size=(6000, 6000)))
        if what == "deferred":
            with stopping.deferred():
                while not stopping.asked():
                    time.sleep(0.1)
                time.sleep(1.5)
                print("saved", flush=True)
                return 75
    return 0

cli.run(main)
"""


@pytest.mark.parametrize("what", ["python", "compiled", "compiling", "deferred"])
def test_a_command_and_its_children_end(what):
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, what],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    child = int(process.stdout.readline())
    time.sleep(0.5)
    begin = time.monotonic()
    for _ in range(2):  # asked twice, it stops once
        process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == stopping.CODE
    assert time.monotonic() - begin < 20
    if what == "deferred":
        assert output == "saved\n" and not errors
    else:
        assert errors.splitlines() == [stopping.LINE]
    assert_gone(child)


def assert_gone(pid):
    """It has ended; whoever inherited it may not have noticed."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    raise AssertionError(f"{pid} is still there")


def test_asked_in_the_library_nothing_ends(monkeypatch):
    """Where no command listens, as in a notebook, the flag alone is set."""
    for name in ("_asked", "_listening"):  # which other tests in this process may have set
        monkeypatch.setattr(stopping, name, threading.Event())
    stopping.ask()
    assert stopping.asked()
