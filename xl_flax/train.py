"""Trains an encoder:  python -m xl_flax.train --gin_file=gin/runs/quickstart.gin

Reads the run from Gin (see `xl_flax.training.config.TrainConfig`), builds missing caches, and
trains until `TrainConfig.steps`. Started again with the same flags it goes on from the newest
checkpoint in MODEL_DIR, bit for bit as if it had never stopped; with other flags it first says what
differs, and refuses what would make another run. `TrainConfig.seeds` makes a run with each seed, in
folders of their own below MODEL_DIR.

Exit codes: 0 done, 1 error, 2 usage, 75 stopped by SIGTERM with its state saved (run it again).
"""

import argparse
from collections.abc import Sequence

from xl_flax import cli
from xl_flax.parallel import distributed


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry_run", action="store_true", help="build everything, compile the step, run none"
    )
    distributed.add_flags(parser)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    args = cli.parse(argv, __doc__, _flags)
    distributed.initialize(args)
    from xl_flax.training.config import TrainConfig
    from xl_flax.training.loop import train

    for run in TrainConfig().runs:
        if not train(run, gin_flags=args.gin_flags, dry_run=args.dry_run):
            return cli.EXIT_PREEMPTED
    return cli.EXIT_DONE


if __name__ == "__main__":
    cli.run(main)
