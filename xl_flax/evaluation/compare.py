"""Results of several runs side by side:  python -m xl_flax.evaluation.compare RUN… --layer=8

A run's folder is SETTING/SEED, as launch/parallel.sh makes them; what is shown is the mean over the
seeds of a setting, and their standard deviation. Retrieval with English or another language
(`--pivot`), both directions, by data and by groups of languages (`--group`). Below the settings
stand their controls: the untrained model, TF-IDF and sentence length. Each setting is shown at the
layer that is best for it on the data of `--choose_on`, better not the test itself, or at `--layer`;
so is the untrained model. Data are called by the first part of their names, with the split if it is
not "test". Of a run, its last checkpoint counts. Every signature is in the runs' `results.jsonl`.
`--plot=FILE.png` draws all layers.
"""

import argparse
import itertools
import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xl_flax import cli
from xl_flax.errors import UserError
from xl_flax.evaluation import results as results_lib
from xl_flax.evaluation.lexical import LEXICAL
from xl_flax.evaluation.results import UNTRAINED
from xl_flax.text_table import table, wrapped

METRICS = {
    "p@1": "P@1 by cosine between a language and {}, mean of both directions, in %",
    "p@1_unshared": "The same without queries whose translation shares a digit or a string",
}
CENTRED = ", centred"
CONTROLS = (UNTRAINED, *LEXICAL)
LEGEND = (
    "mean ± standard deviation over seeds; in brackets the difference to the untrained model, or ≈ "
    "and no verdict where mean ± deviation overlap or there is one seed; layer: 0 = embeddings; "
    "untrained, tf-idf and length: controls, see docs/evaluation.md"
)


class Cell(NamedTuple):
    """What one number of the table is about."""

    # Or a control; with ", centred" where languages' means were taken out, of training text "by …".
    setting: str
    data: str  # as in "ntrex, seen": data and a group of languages
    layer: int | None  # None: of what has no layers
    metric: str = "p@1"


Cells = Mapping[Cell, Sequence[float]]  # of each seed


def collect(
    runs: Sequence[str], groups: Mapping[str, Collection[str]], pivot: str = "eng"
) -> dict[Cell, list[float]]:
    """The mean accuracy of each run, by cell; one value per seed. Behind them their controls.

    Args:
      runs: folders SETTING/SEED with a `results.jsonl`.
      groups: languages by the group's name; an empty group has all that no other one names.
      pivot: the language that all are compared with.

    Raises:
      UserError: a folder has no results of retrieval with the pivot, or such of one text that were
        measured in two ways.
    """
    cells: dict[Cell, list[float]] = {}
    controls: dict[Cell, dict[str, list[float]]] = {}
    for run in runs:
        path = os.path.join(run, results_lib.FILE)
        rows = results_lib.read(path)
        setting = os.path.basename(os.path.dirname(os.path.abspath(run)))
        last = max((row.step for row in rows), default=0)
        own = [row for row in rows if row.model is None and row.step == last]
        found = _values(path, own, groups, pivot)
        if not found:
            raise UserError(
                f"{run} has no results of sentence retrieval with {pivot!r}, which is all that "
                "is compared here: evaluate it on text that has this language, too"
            )
        for cell, (value,) in found.items():
            named = cell._replace(setting=setting + cell.setting)
            cells.setdefault(named, []).append(value)
        beside = [row for row in rows if row.model is not None]
        for cell, values in _values(path, beside, groups, pivot).items():
            controls.setdefault(cell, {})[setting] = values
    return cells | _controls(controls)


def _controls(found: Mapping[Cell, Mapping[str, list[float]]]) -> dict[Cell, list[float]]:
    """Each once if it is the same for all settings, else by setting: shapes differ."""
    differ = {
        cell.setting
        for cell, own in found.items()
        if any(values != next(iter(own.values())) for values in own.values())
    }
    controls: dict[Cell, list[float]] = {}
    for cell, own in found.items():
        for setting, values in own.items():
            name = _of(cell.setting, setting) if cell.setting in differ else cell.setting
            controls[cell._replace(setting=name)] = values
    return controls


def _of(control: str, setting: str) -> str:
    """ "untrained, centred" and "mlm" → "untrained of mlm, centred"."""
    base, centred = _parts(control)
    return f"{base} of {setting}{centred}"


def _parts(setting: str) -> tuple[str, str]:
    """ "mlm, centred by bible" → "mlm" and ", centred by bible"."""
    base, centred, by = setting.partition(CENTRED)
    return base, centred + by


def _values(
    path: str, rows: Sequence[results_lib.Row], groups: Mapping[str, Collection[str]], pivot: str
) -> dict[Cell, list[float]]:
    """P@1 by cosine, the mean over a group's languages and both directions; one value per seed."""
    values: dict[Cell, dict[tuple, results_lib.Row]] = {}
    for row in rows:
        counts = row.metric in METRICS and row.similarity == "cosine" and len(row.languages) == 2
        if not counts or pivot not in row.languages or results_lib.MACRO in row.languages:
            continue
        group = _group(*(x for x in row.languages if x != pivot), groups)
        if group is None:
            continue
        center = re.search(r"\|center:([^|]*)|$", row.signature)[1] or "none"  # of lexical ones
        centred = {"none": "", "test_mean": CENTRED}.get(center, f"{CENTRED} by {center}")
        data = f"{_data(row.data)}, {group}"
        cell = Cell((row.model or "") + centred, data, row.layer, row.metric)
        there = values.setdefault(cell, {})
        other = there.setdefault((row.data, row.languages), row)
        if row.model is None and other.signature != row.signature:
            raise UserError(
                f"{path}: {row.data} was measured in two ways, which are not to be mixed: "
                f"{other.signature} and {row.signature}; delete the lines of one of them"
            )
    return {
        cell: np.mean([row.seeds or (row.value,) for row in own.values()], axis=0).tolist()
        for cell, own in values.items()
    }


def _group(language: str, groups: Mapping[str, Collection[str]]) -> str | None:
    rest = next((name for name, languages in groups.items() if not languages), None)
    return next((name for name, languages in groups.items() if language in languages), rest)


def _data(data: str) -> str:
    """ "ntrex/test" → "ntrex", "bible_deu_eng/validation" → "bible/validation"."""
    mixture, _, split = data.rpartition("/")
    return mixture.split("_")[0] + ("" if split == "test" else f"/{split}")


def chosen_layers(cells: Cells, data: str) -> dict[str, int | None]:
    """The layer of each setting with the best mean over seeds on some data.

    The untrained model's is chosen likewise; what has no layers has None.

    Raises:
      UserError: there are no results of that data.
    """
    best: dict[str, tuple[float, int | None]] = {}
    for cell, values in cells.items():
        if cell.data.split(",")[0] == data and cell.metric == "p@1":
            scored = (float(np.mean(values)), cell.layer)
            best[cell.setting] = max(best.get(cell.setting, scored), scored)
    if missing := {cell.setting for cell in cells} - set(best):
        known = ", ".join(dict.fromkeys(cell.data.split(",")[0] for cell in cells))
        raise UserError(
            f"--choose_on={data}: {', '.join(sorted(missing))} have no results of it; "
            f"there are {known}"
        )
    return {setting: layer for setting, (_, layer) in best.items()}


def report(cells: Cells, layers: Mapping[str, int | None], pivot: str = "eng") -> str:
    """A table for each metric: settings down, data across; then what is above what.

    Args:
      cells: from `collect`.
      layers: which one to show of each setting.
      pivot: the language that all are compared with.
    """
    parts = []
    for metric, title in METRICS.items():
        data = sorted({cell.data for cell in cells if cell.metric == metric})
        shown = {
            (setting, name): cells[Cell(setting, name, layer, metric)]
            for setting, layer in layers.items()
            for name in data
            if Cell(setting, name, layer, metric) in cells
        }
        if shown:
            parts += [f"{title.format(pivot)}\n{_table(shown, layers, data)}", _orders(shown, data)]
    return "\n\n".join([*parts, wrapped(LEGEND)])


def _table(
    shown: Mapping[tuple[str, str], Sequence[float]],
    layers: Mapping[str, int | None],
    data: Sequence[str],
) -> str:
    rows = [("setting", "layer", *data, "seeds")]
    for setting, layer in layers.items():
        own = [shown.get((setting, name), ()) for name in data]
        cells = [
            _spread(values) + _difference(setting, name, shown)
            for values, name in zip(own, data, strict=True)
        ]
        seeds = max(map(len, own))
        rows.append((setting, "-" if layer is None else str(layer), *cells, str(seeds)))
    return table(rows, in_blocks=True)


def _difference(setting: str, data: str, shown: Mapping[tuple[str, str], Sequence[float]]) -> str:
    """How far above its untrained model, as in " (+2.1)"; "" for a control."""
    if _is_control(setting):
        return ""
    base, centred = _parts(setting)
    general = UNTRAINED + centred
    names = [name for name in (_of(general, base), general) if (name, data) in shown]
    if not names or (setting, data) not in shown:
        return ""
    values, other = shown[setting, data], shown[names[0], data]
    if not _apart((setting, values), (names[0], other)):
        return " (≈)"
    return f" ({100 * (np.mean(values) - np.mean(other)):+.1f})"


def _orders(shown: Mapping[tuple[str, str], Sequence[float]], data: Sequence[str]) -> str:
    """For each data the settings from the best to the worst."""
    lines = []
    for name in data:
        own = [(setting, values) for (setting, of), values in shown.items() if of == name]
        own.sort(key=lambda item: -float(np.mean(item[1])))
        text = own[0][0]
        for better, worse in itertools.pairwise(own):
            text += f" {'>' if _apart(better, worse) else '≈'} {worse[0]}"
        lines.append(wrapped(f"{name}: {text}"))
    return "\n".join(lines)


def _apart(a: tuple[str, Sequence[float]], b: tuple[str, Sequence[float]]) -> bool:
    """Whether mean ± standard deviation of two settings do not overlap."""
    spreads = [_deviation(*a), _deviation(*b)]
    distance = abs(np.mean(a[1]) - np.mean(b[1]))
    return None not in spreads and bool(distance > sum(spreads))


def _deviation(setting: str, values: Sequence[float]) -> float | None:
    """Over seeds; 0 of what has none, None of what has too few."""
    if len(values) > 1:
        return float(np.std(values, ddof=1))
    return 0.0 if _is_control(setting) else None


def _is_control(setting: str) -> bool:
    return _kind(setting) in CONTROLS


def _kind(setting: str) -> str:
    """ "untrained of mlm, centred" → "untrained"."""
    return _parts(setting)[0].split(" of ")[0]


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{100 * values[0]:.1f}" if values else "-"
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"


def plot(cells: Cells, path: str, pivot: str = "eng") -> None:
    """Draws accuracy by layer, with the seeds' range: data across, measures down.

    Controls are grey: the untrained model by layer, what has no layers as a dotted line.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    data = sorted({c.data for c in cells})
    metrics = [metric for metric in METRICS if any(c.metric == metric for c in cells)]
    every = sorted({c.layer for c in cells if c.layer is not None})
    size = 4 * len(data), 3.4 * len(metrics)
    figure, axes = plt.subplots(len(metrics), len(data), figsize=size, squeeze=False)
    for metric, row in zip(metrics, axes, strict=True):
        for axis, name in zip(row, data, strict=True):
            _panel(axis, cells, name, metric, every)
        row[0].set_ylabel(f"{metric.capitalize().replace('_', ', ')} with {pivot} (%)")
    for axis in axes[-1]:
        axis.set_xlabel("layer (0 = embeddings)")
    figure.tight_layout()
    lines = axes[0][0].get_legend_handles_labels()
    figure.legend(*lines, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)


def _panel(axis: Any, cells: Cells, data: str, metric: str, every: Sequence[int]) -> None:
    from xl_flax.evaluation.plots import COLOURS

    settings = list(dict.fromkeys(c.setting for c in cells))
    base = list(dict.fromkeys(_parts(s)[0] for s in settings if not _is_control(s)))
    for setting in settings:
        own = {
            c.layer: 100 * np.array(v)
            for c, v in cells.items()
            if c == (setting, data, c.layer, metric)
        }
        if not own:
            continue
        layers = every if None in own else sorted(own)
        values = [own.get(layer, own.get(None)) for layer in layers]
        name_of, centred = _parts(setting)
        style = "--" if centred == CENTRED else "-." if centred else "-"
        if _is_control(setting):
            colour = "0.6"
            style = {"tf-idf": (0, (1, 1)), "length": (0, (1, 4))}.get(_kind(setting), style)
        else:
            colour = COLOURS[base.index(name_of) % len(COLOURS)]
        axis.plot(layers, [v.mean() for v in values], ls=style, color=colour, label=setting)
        low, high = [v.min() for v in values], [v.max() for v in values]
        axis.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.set_title(data)
    axis.set_xticks(every)
    axis.grid(alpha=0.3)


def _named(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, languages = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=LANGUAGES, as in seen=ces,deu")
    return name, tuple(filter(None, languages.split(",")))


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.Help)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders SETTING/SEED")
    parser.add_argument(
        "--group",
        action="append",
        type=_named,
        metavar="NAME=LANGUAGES",
        help="show these together, as in seen=ces,deu; without languages all others; repeatable",
    )
    parser.add_argument("--pivot", default="eng", metavar="LANGUAGE", help="compare with this one")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--layer", type=int, help="show this layer")
    which.add_argument(
        "--choose_on",
        metavar="DATA",
        help="show each setting's best layer on this, as on bible/validation",
    )
    parser.add_argument("--plot", metavar="FILE", help="also draw the layers as a PNG")
    args = parser.parse_args(argv)
    cli.check_paths(args, "runs", "plot")
    groups = dict(args.group or [("all", ())])
    cells = collect(args.runs, groups, args.pivot)
    if args.choose_on:
        layers = chosen_layers(cells, args.choose_on)
    else:
        layers = {c.setting: None if c.layer is None else args.layer for c in cells}
    print(report(cells, {c.setting: layers[c.setting] for c in cells}, args.pivot))
    if args.plot:
        plot(cells, args.plot, args.pivot)
        print(f"\nwrote {args.plot}")


if __name__ == "__main__":
    cli.run(main)
