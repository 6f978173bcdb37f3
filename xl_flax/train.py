"""Trains an encoder:  python -m xl_flax.train --gin_file=gin/runs/quickstart.gin

Reads the run from Gin (see `xl_flax.training.config.TrainConfig`), builds missing caches, and
trains until `TrainConfig.steps`. Started again with the same flags it goes on from the newest
checkpoint in MODEL_DIR, bit for bit as if it had never stopped; with other flags it first says what
differs, and refuses what would make another run. `TrainConfig.seeds` makes a run with each seed, in
folders of their own below MODEL_DIR.

Exit codes: 0 done, 1 error, 2 usage, 75 stopped by SIGTERM with its state saved (run it again), 76
another process is gone, hangs or did not come (run it again, too, but not for ever).
"""

import argparse
from collections.abc import Sequence

import jax

from xl_flax import cli, settings, stopping
from xl_flax.errors import UserError
from xl_flax.files import remote
from xl_flax.parallel import compiled, distributed


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="compile the step and run none; without text and vocabulary, too",
    )
    parser.add_argument(
        "--devices", type=int, metavar="N", help="with --dry_run: as if there were N CPU devices"
    )
    distributed.add_flags(parser)


def _simulate(args: argparse.Namespace) -> None:
    """Makes this machine's CPU so many devices."""
    settings.check("--devices", args.devices, settings.Count | None)
    if args.devices is None:
        return
    if not args.dry_run:
        raise UserError("--devices simulates devices, on which nothing is trained: add --dry_run")
    if args.distributed or args.coordinator is not None:
        raise UserError("--devices simulates the devices of one process: leave the others out")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    with distributed.excused(argv):
        args = cli.parse(argv, __doc__, _flags)
        _simulate(args)
    compiled.keep()
    with distributed.joined(args):
        remote.own_stages(*distributed.place())
        from xl_flax.training.config import TrainConfig
        from xl_flax.training.loop import train

        for run in TrainConfig().runs:
            if stopping.asked() or not train(run, gin_flags=args.gin_flags, dry_run=args.dry_run):
                return cli.EXIT_PREEMPTED
    return cli.EXIT_DONE


if __name__ == "__main__":
    cli.run(main)
