"""Tables and figures of results:  python -m xl_flax.report FOLDER…

Reads every `results.jsonl` in the folders, which are runs, or have runs in them. Without more flags
it prints an overview, each test by language and each by layer: mean and standard deviation over the
seeds, the best in bold, controls beside. Runs in folders SETTING/SEED, where SEED is a number, are
seeds of one setting (`--setting` is the rule). Of a run, its last step counts (`--steps`). Layers
are those that are best on validation text, where the results have some beside the test (`--layer`).

`--rows` and `--columns` make one table of any fields: setting, run, step, task, data, metric,
layer, language, target, group, similarity, pooling, head, model, or a part of a signature, as
center. A number is a mean over languages and seeds only: where anything else differs, an error
names it. `--where=FIELD=PATTERN` chooses, as in metric=p@1 or data='ntrex*'.

`--format` and `--figures` write files to `--out`. Figures: curves (values over steps by language,
with bands over seeds; also of metrics.jsonl), layers, heatmap (settings or tests by language),
similarity (a matrix of languages), and, with `--scatter=X,Y`, scatter. `html` is one page, figures
included.

Examples:
  python -m xl_flax.report runs/quickstart
  python -m xl_flax.report runs --format=html,csv --figures=curves,heatmap
  python -m xl_flax.report runs --rows=setting,layer --columns=language \\
    --where=metric=p@1 --where=similarity=cosine --layer=all
  python -m xl_flax.report runs --steps=all --figures=scatter \\
    --scatter=loss:synthetic/validation,p@1:synthetic_core/test
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from xl_flax import cli
from xl_flax.errors import UserError
from xl_flax.files.write import write_atomically
from xl_flax.reports import curves, formats, layers, paired, records, views
from xl_flax.reports.records import Record, Wanted
from xl_flax.reports.tables import Table
from xl_flax.text_table import wrapped

ENDINGS = {"md": "md", "csv": "csv", "latex": "tex", "html": "html"}
FIGURES = ("curves", "layers", "heatmap", "similarity", "scatter")


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    args = _parser().parse_args(argv)
    cli.check_paths(args, "folders", "out")
    if args.out is None and (args.figures or args.format not in ([], ["md"])):
        args.out = "report"
    notes: list[str] = []

    def say(note: str) -> None:
        if note not in notes:
            notes.append(note)
            print(wrapped(f"note: {note}"), file=sys.stderr)

    groups = dict(args.group or [])
    wanted = Wanted(args.steps, args.setting, args.pivot, groups, args.data)
    every = _read(args, wanted, say)
    shown, note = layers.choose(every, args.layer) if every else ([], "")
    every, shown = (records.select(own, args.where) for own in (every, shown))
    tables = _tables(args, every, shown, note)
    figures = _figures(args, every, shown)
    written = _write(args, tables, figures, notes, every)
    if args.out is None:
        print(formats.markdown(tables), end="")
        print(f"\n{wrapped(_steps(every))}")
    for path in written:
        print(path)


def _read(args: argparse.Namespace, wanted: Wanted, say: Callable[[str], None]) -> list[Record]:
    """The results; none where only curves of training are to be drawn, and there are no others."""
    try:
        return records.read(args.folders, wanted, say)
    except UserError:
        if args.figures == ["curves"] and not args.where:
            return []
        raise


def _tables(
    args: argparse.Namespace, every: Sequence[Record], shown: Sequence[Record], note: str
) -> list[Table]:
    if not every:
        return []
    if args.rows or args.columns:
        tables = [views.asked(shown, args.rows, args.columns)]
        tables[0].notes += [note] if note else []
    else:
        tables = views.standard(every, shown, note)
    if args.against:
        tables += paired.tables(shown, args.against)
    return tables


def _figures(
    args: argparse.Namespace, every: Sequence[Record], shown: Sequence[Record]
) -> dict[str, Any]:
    """By name; what there is nothing to draw of is left out, but for what is named alone."""
    if args.scatter and "scatter" not in args.figures:
        raise UserError("--scatter=X,Y says what --figures=scatter draws: add this")
    if not args.figures:
        return {}
    from xl_flax.reports import figures  # needs matplotlib

    every, shown = (views.without_members(own) for own in (every, shown))
    made: dict[str, Any] = {}
    for kind in args.figures:
        if kind == "scatter" and not args.scatter:
            raise UserError("--figures=scatter needs --scatter=X,Y, each as METRIC:DATA")
        match kind:
            case "curves":
                own = figures.curves(shown) | figures.training(
                    curves.read(args.folders), args.setting
                )
            case "layers":
                own = figures.layers(every)
            case "heatmap":
                own = figures.heatmap(shown)
            case "similarity":
                own = figures.similarity(shown)
            case _:
                own = figures.scatter(shown, *args.scatter)
        if not own and len(args.figures) == 1:
            raise UserError(f"--figures={kind}: {figures.LACKING[kind]}")
        made |= own
    return made


def _write(
    args: argparse.Namespace,
    tables: Sequence[Table],
    figures: dict[str, Any],
    notes: Sequence[str],
    every: Sequence[Record],
) -> list[str]:
    if args.out is None:
        return []
    from xl_flax.reports import page

    steps = _steps(every)
    makers = {
        "md": lambda: formats.markdown(tables) + f"\n{steps}\n",
        "csv": lambda: formats.comma_separated(tables),
        "latex": lambda: formats.latex(tables),
        "html": lambda: page.html(tables, figures, [*notes, steps], _signatures(every)),
    }
    written = []
    for kind in args.format or ([] if figures else ["md"]):
        path = os.path.join(args.out, f"report.{ENDINGS[kind]}")
        write_atomically(path, makers[kind]())
        written.append(path)
    for name, figure in figures.items():
        path = os.path.join(args.out, f"{name}.png")
        write_atomically(path, figure.png())
        written.append(path)
    return written


def _steps(every: Sequence[Record]) -> str:
    """Which checkpoints the numbers are of."""
    of_runs = records.described(every)
    if not of_runs:
        return ""
    each = {
        run: ", ".join(f"{step:,}" for step in steps[:8]) + (", …" if len(steps) > 8 else "")
        for run, steps in of_runs.items()
    }
    if len(set(each.values())) == 1:
        runs = next(iter(each)) if len(each) == 1 else f"each of {len(each)} runs"
        return f"Of {runs}: step {next(iter(each.values()))}."
    return "Steps: " + "; ".join(f"{run} {steps}" for run, steps in each.items()) + "."


def _signatures(every: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(record.row.signature for record in every))


def _named(text: str) -> tuple[str, tuple[str, ...]]:
    name, languages = _equation(text)
    return name, tuple(filter(None, languages.split(",")))


def _equation(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: write it as NAME=VALUE")
    return name, value


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    return text


def _renamed(text: str) -> tuple[str, str]:
    name, pattern = _equation(text)
    return pattern, name


def _one_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r}: choose of {', '.join(known)}")
        return list(dict.fromkeys(names))

    return parse


def _some(known: Iterable[str]) -> str:
    return f"some of {','.join(known)}"


def _fields(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _two(text: str) -> tuple[str, str]:
    names = tuple(name.strip() for name in text.split(","))
    if len(names) != 2 or not all(":" in name for name in names):
        raise argparse.ArgumentTypeError(f"{text!r}: write METRIC:DATA,METRIC:DATA")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m xl_flax.report", description=__doc__, formatter_class=cli.Help
    )
    add = parser.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="runs, or folders with runs in them")
    add("--format", type=_one_of([*ENDINGS]), default=[], metavar="FORMATS", help=_some(ENDINGS))
    add("--figures", type=_one_of(FIGURES), default=[], metavar="FIGURES", help=_some(FIGURES))
    add("--out", metavar="FOLDER", help="where files go [report, if there are any]")
    add("--rows", type=_fields, default=[], metavar="FIELDS", help="as in setting,layer")
    add("--columns", type=_fields, default=[], metavar="FIELDS", help="as in data,metric")
    add(
        "--where",
        action="append",
        type=_equation,
        default=[],
        metavar="FIELD=PATTERN",
        help="only such results; repeatable, alternatives where the field is the same",
    )
    add(
        "--steps",
        default="last",
        help='"last" of each run and test [last], "all", "best:METRIC:DATA" by validation text, or '
        "as in 500,1000",
    )
    add("--layer", metavar="WHICH", help='a number, "all", or "best:DATA" (a pattern)')
    add("--pivot", metavar="LANGUAGE", help="of pairs only those with this language")
    add(
        "--group",
        action="append",
        type=_named,
        metavar="NAME=LANGUAGES",
        help="the field group of these languages; without languages all others; repeatable",
    )
    add(
        "--data",
        action="append",
        type=_renamed,
        default=[],
        metavar="NAME=PATTERN",
        help="call all such data by one name, so that they are averaged; repeatable",
    )
    add(
        "--setting",
        type=_regex,
        default=records.SETTING,
        metavar="REGEX",
        help="its group names a setting",
    )
    add("--against", metavar="SETTING", help="test the others against it, paired by example")
    add("--scatter", type=_two, metavar="X,Y", help="two metrics, each as METRIC:DATA")
    return parser


if __name__ == "__main__":
    cli.run(main)
