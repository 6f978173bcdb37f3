"""Seconds in which a run of several processes ends when one of them fails, on this machine.

    PYTHONPATH=tests/support python tests/benchmarks/failures.py [--cases killed,asked,…]
        [--rounds 3] [--processes 3]

Trains a tiny model in a new folder, in processes that launch/local_processes.sh starts, lets one of
them fail in a way of CASES, and takes the time until the last of the others is gone. Where flags
are wrong, the time is that from the first line that says so. The table shows the median, the least
and the most; the last line is JSON: {case: [seconds]}.
"""

import argparse
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence

import house
import processes
from common import parse

from xl_flax import cli
from xl_flax.text_table import table

LONG = ["--gin.STEPS=100000", "--gin.TrainConfig.log_every=5", "--gin.TrainConfig.held_out=[]"]
LONG += ["--gin.TrainConfig.best=None", "--gin.TrainConfig.checkpoint_every=50"]
STEP = r"step +\d*5/"
# What happens to which process, once one of them says this; process -1 is the last.
CASES = {
    "killed": (STEP, -1, signal.SIGKILL),
    "first killed": (STEP, 0, signal.SIGKILL),
    "killed before the first step": ("Gloo", -1, signal.SIGKILL),
    "asked": (STEP, -1, signal.SIGTERM),
    "hangs": (STEP, -1, signal.SIGSTOP),
    "hangs before the first step": ("Gloo", -1, signal.SIGSTOP),
    # Flags of one process that differ.
    "no Gin file": ("--gin_file=nowhere.gin", -1, None),
    "first has no Gin file": ("--gin_file=nowhere.gin", 0, None),
    "other settings": ("--gin.SEED=5", -1, None),
    "same number": ("--process_id=1", -1, None),
}


def measure(case: str, count: int) -> tuple[float, str]:
    """The seconds of one round, and what one of the others says."""
    what, victim, sent = CASES[case]
    victim %= count
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        house.make_data()
        batch = f"--gin.BATCH_SIZE={4 * count}"
        train = processes.python("train", *house.RUN, *LONG, batch)
        if sent is None:
            command = processes.otherwise(*train)
            start = processes.start(folder, count, *command, FIRST=str(victim), OTHER=what)
            begin = None
        else:
            start = processes.start(folder, count, *train)
            begin = processes.asked(start, what, victim, sent)
        lines = []
        for line in start.stdout:
            if re.search(r"^\[\d+\] (error|asked)", line):
                begin = begin or time.monotonic()
                lines.append(line.rstrip())
            if sent == signal.SIGSTOP and len(lines) == count - 1:
                os.kill(processes.pid_of(start, victim), signal.SIGKILL)
        start.wait()
        os.chdir(cli.ROOT)
        return time.monotonic() - begin, lines[-1]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=3)
    args = parse(parser, argv, cases="no Gin file", rounds=1, processes=2)
    seconds, rows = {}, [["case", "median", "least", "most"]]
    for case in args.cases.split(","):
        measured = [measure(case, args.processes) for _ in range(args.rounds)]
        seconds[case] = [round(taken, 2) for taken, _ in measured]
        median, least, most = (f(seconds[case]) for f in (statistics.median, min, max))
        rows.append([case, f"{median:.1f}", f"{least:.1f}", f"{most:.1f}"])
        print(f"{case}: {median:.1f} s  {measured[-1][1]}", file=sys.stderr, flush=True)
    print(table(rows))
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
