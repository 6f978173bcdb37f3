"""Seconds per training step of two commits, XL-Flax alone, on this machine.

    python tests/benchmarks/commits.py --before=CHECKOUT [--after=CHECKOUT]
        [--cases a,b,c,d,pairs] [--rounds 10] [--steps 1] [--tiny]

Cases a to d are those of mlm_vs_hf.py, "pairs" is contrastive_vs_st.py. Each checkout runs its own
copies of these, with `--worker CASE`, in a process of its own that stays: it builds the training
step, then trains for a few steps whenever it is asked and answers with the seconds. Only one of the
two works at a time; they take turns, and the one that begins changes from round to round. The first
two rounds are not counted: everything is compiled there. `git worktree add CHECKOUT COMMIT` makes a
checkout; both run in this Python, with the libraries installed here.

A ratio is after's seconds / before's, below 1 where the later commit is faster; the table shows its
median over rounds and the bootstrap 95 % interval of that, once for the seconds that a clock counts
and once for those of the processors, which depend less on what else the machine does. The last line
is JSON: {case: {"wall": {"before": seconds per step, "after": …, "ratio": …, "low": …, "high": …},
"processor": {the same}}}.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import parse

from xl_flax.text_table import table

CASES = {**dict.fromkeys("abcd", "mlm_vs_hf.py"), "pairs": "contrastive_vs_st.py"}
CLOCKS = ("wall", "processor")
WARM_UP = 2


class Worker:
    """One case of one checkout, in a process that answers requests for steps.

    Args:
      checkout: a working tree of this project.
      case: a key of CASES.
      options: more arguments of the benchmark.
    """

    def __init__(self, checkout: Path, case: str, options: Sequence[str] = ()):
        script = checkout.resolve() / "tests/benchmarks" / CASES[case]
        self.process = subprocess.Popen(
            [sys.executable, str(script), f"--worker={case}", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout.resolve())},
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def seconds(self, steps: int) -> np.ndarray:
        """Asks for so many steps; returns the seconds per step by each of CLOCKS.

        Raises:
          SystemExit: the process ended.
        """
        try:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # said below
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return np.array(line.split()[1:], float) / steps
        command = " ".join(self.process.args)
        raise SystemExit(f"{command}\nended with {self.process.wait()} instead of an answer")


def measure(workers: Sequence[Worker], rounds: int, steps: int) -> np.ndarray:
    """Seconds per step, float[rounds, workers, clocks]."""
    times = np.zeros((WARM_UP + rounds, len(workers), len(CLOCKS)))
    for i in range(len(times)):
        for w in np.roll(range(len(workers)), i):
            times[i, w] = workers[w].seconds(steps)
    return times[WARM_UP:]


def interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """The median, and the 2.5 % and 97.5 % points of the medians of 10,000 bootstrap samples."""
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark with these arguments, or those of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).parents[2]
    parser.add_argument("--before", type=Path, required=True, help="checkout of a commit")
    parser.add_argument("--after", type=Path, default=here, help="of another; default: this one")
    parser.add_argument("--cases", default=",".join(CASES), help="which, as in a,pairs")
    parser.add_argument("--rounds", type=int, default=10, help="that are measured")
    parser.add_argument("--steps", type=int, default=1, help="of each side in a round")
    args = parse(parser, argv, cases="a", rounds=3)
    rows = [("case", "clock", "before (s)", "after (s)", "after / before", "95 % interval")]
    summary = {}
    options = ["--tiny"] if args.tiny else []
    for case in args.cases.split(","):
        with (
            Worker(args.before, case, options) as before,
            Worker(args.after, case, options) as after,
        ):
            times = measure((before, after), args.rounds, args.steps)
        summary[case] = {}
        for clock, (before_s, after_s) in zip(CLOCKS, times.transpose(2, 1, 0), strict=True):
            numbers = np.median(before_s), np.median(after_s), *interval(after_s / before_s)
            names = ("before", "after", "ratio", "low", "high")
            numbers = {n: round(float(v), 4) for n, v in zip(names, numbers, strict=True)}
            summary[case][clock] = numbers
            cells = [f"{number:.3f}" for number in numbers.values()]
            rows.append((case, clock, *cells[:3], f"{cells[3]} {cells[4]}"))
    print(table(rows, left=(0, 1)))
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
