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
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xl_flax import cli
from xl_flax.errors import UserError
from xl_flax.evaluation import results as results_lib
from xl_flax.evaluation.cells import (
    CENTRED,
    METRICS,
    Cell,
    Cells,
    collect,
    is_control,
    kind,
    last_step,
    of_setting,
    parts,
)
from xl_flax.evaluation.results import UNTRAINED
from xl_flax.text_table import table, wrapped

LEGEND = (
    "mean ± standard deviation over seeds; in brackets the difference to the untrained model, or ≈ "
    "and no verdict where mean ± deviation overlap or there is one seed; layer: 0 = embeddings; "
    "untrained, tf-idf and length: controls, see docs/evaluation.md"
)


def checkpoints(runs: Sequence[str]) -> str:
    """Says which checkpoint of each run counts."""
    steps: dict[int, list[str]] = {}
    for run in runs:
        step = last_step(results_lib.read(os.path.join(run, results_lib.FILE)))
        steps.setdefault(step, []).append("/".join(os.path.abspath(run).split(os.sep)[-2:]))
    if len(steps) == 1:
        return f"Of all runs step {next(iter(steps)):,}, the last in their results."
    listed = "; ".join(f"{', '.join(own)} {step:,}" for step, own in sorted(steps.items()))
    return wrapped(f"The last steps in the results of runs differ: {listed}")


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
    tables = []
    for metric, title in METRICS.items():
        data = sorted({cell.data for cell in cells if cell.metric == metric})
        shown = {
            (setting, name): cells[Cell(setting, name, layer, metric)]
            for setting, layer in layers.items()
            for name in data
            if Cell(setting, name, layer, metric) in cells
        }
        if shown:
            tables += [
                f"{title.format(pivot)}\n{_table(shown, layers, data)}",
                _orders(shown, data),
            ]
    return "\n\n".join([*tables, wrapped(LEGEND)])


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
    if is_control(setting):
        return ""
    base, centred = parts(setting)
    general = UNTRAINED + centred
    names = [name for name in (of_setting(general, base), general) if (name, data) in shown]
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
    return 0.0 if is_control(setting) else None


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
    base = list(dict.fromkeys(parts(s)[0] for s in settings if not is_control(s)))
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
        name_of, centred = parts(setting)
        style = "--" if centred == CENTRED else "-." if centred else "-"
        if is_control(setting):
            colour = "0.6"
            style = {"tf-idf": (0, (1, 1)), "length": (0, (1, 4))}.get(kind(setting), style)
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
    print(checkpoints(args.runs))
    if args.plot:
        plot(cells, args.plot, args.pivot)
        print(f"\nwrote {args.plot}")


if __name__ == "__main__":
    cli.run(main)
