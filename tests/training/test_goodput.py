"""Where the time of a run went, over all of its starts."""

import json
import re
import subprocess
import sys
import time

import pytest

from xl_flax import stopping
from xl_flax.training import goodput as goodput_lib
from xl_flax.training.goodput import WHAT, Goodput, last_logged


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds) lets time pass."""
    now = [1000.0]
    monkeypatch.setattr(goodput_lib.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(goodput_lib.time, "time", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    return passes


def run(goodput, clock):
    """A start that trains for 60 seconds."""
    clock(5)
    with goodput.on("compiling"):
        clock(20)
    goodput.begin("training")
    clock(50)
    with goodput.on("evaluating"):
        clock(7)
    clock(10)
    goodput.waited(4.0)


def test_each_second_counts_once(clock):
    goodput = Goodput({}, None, since=3.0)
    run(goodput, clock)
    assert goodput.now() == {
        **dict.fromkeys(WHAT, 0.0), "starting": 8, "compiling": 20, "training": 56, "waiting": 4,
        "evaluating": 7, "away": 0, "starts": 1,
    }  # fmt: skip
    assert str(goodput) == (
        "time: 0:01:35, 58.9% training, 4.2% waiting for data, 7.4% evaluating, 21.1% compiling, "
        "8.4% starting"
    )


def test_what_was_not_saved_is_lost_and_breaks_are_counted_apart(clock):
    first = Goodput({}, None)
    run(first, clock)
    saved = first.now()
    clock(30)  # trained, logged, and not saved
    logged = {"step": 9, "time": goodput_lib.time.time(), "goodput": first.now()}
    clock(600)
    second = Goodput(saved, logged)
    run(second, clock)
    spent = second.now()
    assert spent["lost"] == 30 and spent["training"] == 2 * 56 and spent["away"] == 600
    assert spent["compiling"] == 40 and spent["starts"] == 2
    assert str(second).startswith("time: 0:03:34, ")
    assert str(second).endswith(
        "lost: trained again after a restart; 2 starts, 0:10:00 between them"
    )


def test_lines_of_other_versions_and_damage_do_no_harm(tmp_path):
    assert last_logged(str(tmp_path)) is None
    good = {"step": 1, "time": 5.0, "goodput": {"training": 2.0}}
    others = ({"step": 2}, {"step": 3, "goodput": 1}, {"step": 4, "goodput": {"training": "x"}})
    lines = [json.dumps(line) for line in (good, *others)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert last_logged(str(tmp_path)) == good
    spent = Goodput({"training": 1.0, "strange": 7.0}, good).now()
    assert spent["training"] == 1 and spent["lost"] == 1 and "strange" not in spent


STALLS = """
import sys, threading, time
from xl_flax.training.watchdog import Watchdog

def waits_for_ever():
    time.sleep(60)

def main(seconds):
    with Watchdog(seconds) as dog:
        for step in range(3):
            dog.step(step)
            time.sleep(0.3)
            with dog.asleep():
                time.sleep(1.5)
        dog.step(1234)
        waits_for_ever()

from xl_flax.training import watchdog
watchdog.OTHERS = 0.1
main(1.0)
"""


def test_a_step_that_does_not_end_is_shown_with_all_stacks():
    begin = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", STALLS], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == stopping.LOST and time.monotonic() - begin < 40
    line = ended.stderr.splitlines()[0]
    assert line.startswith("error: step 1,234 has not ended within 1 s (TrainConfig.stall_seconds)")
    assert re.search(r'File ".*", line \d+ in waits_for_ever', ended.stderr)
    assert ended.stderr.count("hread 0x") >= 2
