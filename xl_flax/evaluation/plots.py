"""Curves per language of a run, as a PNG:  python -m xl_flax.evaluation.plots MODEL_DIR

Reads `metrics.jsonl`, and draws every group of values that ends in a language, such as
`mlm/loss/deu` and `mlm/accuracy/deu`, one panel each: training and held-out ones apart.
"""

import argparse
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from xl_flax import cli
from xl_flax.errors import UserError

Curves = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]  # panel -> language -> steps, values

# Okabe and Ito's colours, told apart by colour-blind readers too; then line styles change.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
LABELS = {"loss": "cross-entropy (nats)", "accuracy": "accuracy"}


def read_curves(path: str) -> Curves:
    """The values per language in a `metrics.jsonl`.

    Args:
      path: the file.

    Returns:
      Panel, as "mlm/loss", to language to (steps int[n], values float[n]).

    Raises:
      UserError: the file is missing, damaged, or has no values per language.
    """
    points: dict[str, dict[str, dict[int, float]]] = {}
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().split("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a run's folder") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            step = values["step"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # cut off in writing
                break
            raise UserError(f"{path}, line {number}: no metrics of a step; delete it") from error
        for key, value in values.items():
            if match := re.fullmatch(r"(.*\b(?:loss|accuracy))/([^/]+)", key):
                # A resumed run may have written a step twice: the later line counts.
                points.setdefault(match[1], {}).setdefault(match[2], {})[step] = value
    if not points:
        raise UserError(
            f"{path} has no values per language (as in mlm/loss/deu) yet: wait for the first "
            "logged step"
        )
    return {
        panel: {
            language: (np.array(sorted(steps)), np.array([steps[step] for step in sorted(steps)]))
            for language, steps in sorted(languages.items())
        }
        for panel, languages in sorted(points.items(), key=_panel_order)
    }


def plot(curves: Curves, title: str, out: str) -> None:
    """Draws each panel's curves into one PNG.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl

        mpl.use("agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise UserError(
            "plots need matplotlib: install the extra with pip install 'xl-flax[eval]'"
        ) from error

    languages = sorted({language for panel in curves.values() for language in panel})
    looks = {
        language: {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": STYLES[i // len(COLOURS) % len(STYLES)],
        }
        for i, language in enumerate(languages)
    }
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    legend_columns = -(-len(languages) // 20)
    size = (5.2 * columns + 0.4 + 1.1 * legend_columns, 3.6 * rows + 0.4)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes, (panel, lines) in zip(grid.flat, curves.items(), strict=False):
        for language, (steps, values) in lines.items():
            axes.plot(steps, values, linewidth=1.4, **looks[language])
            if len(steps) == 1:
                axes.plot(steps, values, marker="o", markersize=4, color=looks[language]["color"])
        kind = panel.rsplit("/", 1)[-1]
        axes.set_title(panel, loc="left", fontsize=10)
        axes.set_ylabel(LABELS[kind])
        if kind == "accuracy":
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
        axes.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
        axes.set_xlim(left=0)
        axes.set_xlabel("step")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(curves) :]:
        axes.set_visible(False)
    handles = [plt.Line2D([], [], label=name, **look) for name, look in looks.items()]
    figure.legend(
        handles=handles, loc="outside right upper", ncols=legend_columns, frameon=False, fontsize=9
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def _panel_order(item: tuple[str, Any]) -> tuple[str, bool]:
    """An objective's loss before its accuracy."""
    prefix, _, kind = item[0].rpartition("/")
    return prefix, kind != "loss"


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_dir", help="a run's folder")
    parser.add_argument("--out", help="the PNG; default: curves.png in the run's folder")
    args = parser.parse_args(argv)
    out = args.out or os.path.join(args.model_dir, "curves.png")
    curves = read_curves(os.path.join(args.model_dir, "metrics.jsonl"))
    plot(curves, os.path.normpath(args.model_dir), out)
    print(out)


if __name__ == "__main__":
    cli.run(main)
