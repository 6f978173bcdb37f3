"""The flags of the cache command, and the rows that they ask for."""

import argparse
import re
from collections.abc import Collection, Mapping, Sequence

from xl_flax import settings
from xl_flax.data.layout import Layout
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
        "--dataset",
        action="append",
        default=[],
        metavar="MIXTURE:SPLIT:LAYOUT",
        help="cache this instead of what the Gin file names; repeatable. A layout is a number of "
        "tokens per row, or as in 128-single-truncate and 384-single-window-128",
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
      UserError: there are none, or a flag has no meaning.
    """
    settings.check("--show", args.show, settings.Natural)
    settings.check("--tasks", args.tasks, settings.Pattern | None)
    specs = [_parsed(text) for text in args.dataset] or required()
    if args.tasks:
        layouts = sorted({spec.layout for spec in specs}, key=str)
        names = [name for name in splits if re.fullmatch(args.tasks, name)]
        if not names:
            raise UserError(f"--tasks={args.tasks} matches none of the tasks of {list(modules)}")
        specs = [
            DatasetSpec(name, split, layout)
            for name in sorted(names)
            for split in sorted(splits[name])
            for layout in layouts
        ]
    specs = [spec for spec in specs if not args.split or spec.split in args.split]
    if not specs:
        raise UserError(
            "nothing to cache: the Gin file names no mixture (Rows.mixture, Rows.length), or no "
            "split that --split allows"
        )
    return specs


def _parsed(text: str) -> DatasetSpec:
    mixture, *rest = text.rsplit(":", 2)
    if len(rest) != 2:
        raise UserError(
            f"--dataset={text}: expected MIXTURE:SPLIT:LAYOUT, as in synthetic:train:128"
        )
    return DatasetSpec(mixture, rest[0], Layout.parse(rest[1]))
