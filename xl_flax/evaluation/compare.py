"""Results of several runs side by side:  python -m xl_flax.evaluation.compare RUN… --layer=8

A run's folder is SETTING/SEED, as launch/parallel.sh makes them; what is shown is the mean over the
seeds of a setting, and their standard deviation. Retrieval with English, both directions, over the
languages that were trained on (`--seen`) and over those that were not, by data. Each setting is
shown at the layer that is best for it on the data of `--choose_on`, better not the test itself, or
at `--layer`. Every signature is in the runs' `results.jsonl`. `--plot=FILE.png` draws all layers.
"""

import argparse
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from xl_flax import cli
from xl_flax.errors import UserError
from xl_flax.evaluation import results as results_lib
from xl_flax.text_table import table

PIVOT = "eng"


class Cell(NamedTuple):
    """What one number of the table is about."""

    setting: str  # with ", centred" where languages' means were taken out, of training text "by …"
    data: str  # "ntrex" or "tatoeba", with ", seen" or ", unseen"
    layer: int


def collect(runs: Sequence[str], seen: Iterable[str]) -> dict[Cell, list[float]]:
    """The mean accuracy of each run, by cell; one value per seed.

    Args:
      runs: folders SETTING/SEED with a `results.jsonl`.
      seen: languages of training, as results name them.

    Raises:
      UserError: a folder has no results of retrieval with English.
    """
    cells: dict[Cell, list[float]] = {}
    for run in runs:
        rows = results_lib.read(os.path.join(run, results_lib.FILE))
        values = _values(rows, set(seen))
        if not values:
            raise UserError(
                f"{run} has no results of sentence retrieval with {PIVOT!r}, which is all that "
                "is compared here: evaluate it on text that has this language, too"
            )
        setting = os.path.basename(os.path.dirname(os.path.abspath(run)))
        for (centred, data, layer), scores in values.items():
            cell = Cell(setting + centred, data, layer)
            cells.setdefault(cell, []).append(float(np.mean(scores)))
    return cells


def _values(rows: Sequence[results_lib.Row], seen: set[str]) -> dict[tuple, list[float]]:
    """(centred, data, layer) -> P@1 by cosine of each direction of each language with English."""
    last = max((row.step for row in rows), default=0)
    values: dict[tuple, list[float]] = {}
    for row in rows:
        a, b = row.languages if len(row.languages) == 2 else (None, None)
        counts = row.metric == "p@1" and row.similarity == "cosine"
        if not counts or row.step != last or PIVOT not in (a, b) or results_lib.MACRO in (a, b):
            continue
        language = b if a == PIVOT else a
        part = "seen" if language in seen else "unseen"
        family = re.split(r"[_/]", row.data)[0]
        center = re.search(r"\|center:([^|]*)", row.signature)[1]
        centred = {"none": "", "test_mean": ", centred"}.get(center, f", centred by {center}")
        values.setdefault((centred, f"{family}, {part}", row.layer), []).append(row.value)
    return values


def chosen_layers(cells: Mapping[Cell, Sequence[float]], data: str) -> dict[str, int]:
    """The layer of each setting with the best mean over seeds on some data, as in "bible".

    Raises:
      UserError: there are no results of that data.
    """
    best: dict[str, tuple[float, int]] = {}
    for cell, values in cells.items():
        if cell.data.split(",")[0] == data:
            scored = (float(np.mean(values)), cell.layer)
            best[cell.setting] = max(best.get(cell.setting, scored), scored)
    if missing := {cell.setting for cell in cells} - set(best):
        known = ", ".join(dict.fromkeys(cell.data.split(",")[0] for cell in cells))
        raise UserError(
            f"--choose_on={data}: {', '.join(sorted(missing))} have no results of it; "
            f"there are {known}"
        )
    return {setting: layer for setting, (_, layer) in best.items()}


def report(cells: Mapping[Cell, Sequence[float]], layers: Mapping[str, int]) -> str:
    """A table: settings down, data across, with a legend.

    Args:
      cells: from `collect`.
      layers: which one to show of each setting.
    """
    data = sorted({cell.data for cell in cells})
    rows = [("setting", "layer", *data, "seeds")]
    for setting, layer in layers.items():
        seeds = [cells.get(Cell(setting, name, layer), ()) for name in data]
        rows.append((setting, str(layer), *map(_spread, seeds), str(max(map(len, seeds)))))
    legend = "mean ± standard deviation over seeds; layer: 0 = embeddings; seen: in training"
    return f"{table(rows, in_blocks=True)}\n{legend}"


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{100 * values[0]:.1f}" if values else "-"
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"


def plot(cells: Mapping[Cell, Sequence[float]], path: str) -> None:
    """Draws accuracy by layer, a panel per data and a line per setting, with the seeds' range."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from xl_flax.evaluation.plots import COLOURS

    data = sorted({c.data for c in cells})
    settings = list(dict.fromkeys(c.setting for c in cells))
    base = list(dict.fromkeys(s.split(", centred")[0] for s in settings))
    figure, axes = plt.subplots(1, len(data), figsize=(4 * len(data), 3.6), squeeze=False)
    for axis, name in zip(axes[0], data, strict=True):
        for setting in settings:
            points = sorted((c.layer, v) for c, v in cells.items() if c[:2] == (setting, name))
            layers = [layer for layer, _ in points]
            values = [100 * np.array(v) for _, v in points]
            colour = COLOURS[base.index(setting.split(", centred")[0]) % len(COLOURS)]
            style = "--" if ", centred" in setting else "-"
            axis.plot(layers, [v.mean() for v in values], style, color=colour, label=setting)
            low, high = [v.min() for v in values], [v.max() for v in values]
            axis.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set_title(name)
        axis.set_xlabel("layer (0 = embeddings)")
        axis.set_xticks(layers)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("P@1 with English (%)")
    figure.tight_layout()
    lines = axes[0][0].get_legend_handles_labels()
    figure.legend(*lines, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.Help)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders SETTING/SEED")
    parser.add_argument("--seen", default="", help="languages of training, as in eng,deu")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--layer", type=int, help="show this layer")
    which.add_argument("--choose_on", metavar="DATA", help="show each setting's best layer on this")
    parser.add_argument("--plot", metavar="FILE", help="also draw the layers as a PNG")
    args = parser.parse_args(argv)
    cli.check_paths(args, "runs", "plot")
    cells = collect(args.runs, args.seen.split(","))
    print(f"P@1 by cosine between a language and {PIVOT}, mean of both directions, in %")
    settings = dict.fromkeys(cell.setting for cell in cells)
    if args.choose_on:
        layers = chosen_layers(cells, args.choose_on)
    else:
        layers = dict.fromkeys(settings, args.layer)
    print(report(cells, {setting: layers[setting] for setting in settings}))
    if args.plot:
        plot(cells, args.plot)
        print(f"\nwrote {args.plot}")


if __name__ == "__main__":
    cli.run(main)
