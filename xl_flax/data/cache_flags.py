"""The flags of the cache command, and the rows that they ask for."""

import argparse
import re
from collections.abc import Collection, Mapping, Sequence

from xl_flax.data.prepare import DatasetSpec
from xl_flax.data.required import required
from xl_flax.errors import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The command's own flags."""
    parser.add_argument("--tasks", metavar="REGEX", help="cache the tasks whose names match")
    parser.add_argument("--split", nargs="+", help="only these splits")
    parser.add_argument("--overwrite", action="store_true", help="also what is there and fresh")
    parser.add_argument(
        "--module_import", action="append", default=[], help="another task module; repeatable"
    )
    parser.add_argument(
        "--show",
        type=int,
        default=0,
        metavar="N",
        help="print N decoded rows of each train mixture",
    )
    parser.add_argument(
        "--need",
        action="append",
        default=[],
        metavar="MIXTURE:SPLIT:LENGTH",
        help="cache this instead of what the Gin file names; repeatable",
    )


def choose(
    args: argparse.Namespace, modules: Sequence[str], splits: Mapping[str, Collection[str]]
) -> list[DatasetSpec]:
    """The rows that the flags ask for.

    Args:
      args: the command's flags.
      modules: the task modules, for messages.
      splits: of every task.

    Raises:
      UserError: there are none.
    """
    needs = [DatasetSpec(*need.rsplit(":", 2)) for need in args.need]
    needs = [need._replace(length=int(need.length)) for need in needs] or required()
    if args.tasks:
        lengths = sorted({need.length for need in needs})
        names = [name for name in splits if re.fullmatch(args.tasks, name)]
        if not names:
            raise UserError(f"--tasks={args.tasks} matches none of the tasks of {list(modules)}")
        needs = [
            DatasetSpec(name, split, length)
            for name in sorted(names)
            for split in sorted(splits[name])
            for length in lengths
        ]
    needs = [need for need in needs if not args.split or need.split in args.split]
    if not needs:
        raise UserError(
            "nothing to cache: the Gin file names no mixture (Rows.mixture, Rows.length), or no "
            "split that --split allows"
        )
    return needs
