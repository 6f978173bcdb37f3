"""python -m xl_flax.cache: tokenises and packs what a run reads; the one process with TensorFlow.

Without --tasks it caches all that the run's Gin file names: the mixtures of its phases and of its
evaluations. What is there and fresh is left alone, so an interrupted run of this command goes on
with the first split that is not complete. The table of each mixture is kept in CACHE_DIR/tables.
"""

import argparse
import os
from collections.abc import Sequence

os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator is left to what runs on it
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import logging

from xl_flax import cli


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The command's own flags."""
    parser.add_argument("--tasks", metavar="REGEX", help="cache the tasks whose names match")
    parser.add_argument("--split", nargs="+", help="only these splits")
    parser.add_argument(
        "--share",
        type=_share,
        metavar="I/N",
        help="cache only every Nth split of a task, beginning with the Ith, from 0, as one of N "
        "processes that do so; then this command without --share writes what belongs to all",
    )
    parser.add_argument("--overwrite", action="store_true", help="also what is there and fresh")
    parser.add_argument(
        "--module_import", action="append", default=[], help="another task module; repeatable"
    )
    parser.add_argument(
        "--show",
        type=int,
        default=0,
        metavar="N",
        help="print N decoded rows of each train task",
    )
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="MIXTURE:SPLIT:LAYOUT",
        help="cache this instead of what the Gin file names; repeatable. A layout is a number of "
        "tokens per row, or as in 128-single-truncate and 384-single-window-128",
    )


def _share(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"{text} is no share: write I/N, as in 0/4 to 3/4")
    return int(number), int(count)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    args = cli.parse(argv, __doc__, add_flags, needless=["MODEL_DIR"])
    logging.set_verbosity(logging.ERROR)
    from xl_flax.data.caching import cache_datasets  # late: --help does not wait for TensorFlow

    cache_datasets(args)


if __name__ == "__main__":
    cli.run(main)
