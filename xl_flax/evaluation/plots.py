"""Curves per language of a run, as a PNG:  python -m xl_flax.evaluation.plots MODEL_DIR

Reads `metrics.jsonl`, and draws every group of values that ends in a language, such as
`mlm/loss/deu` and `mlm/accuracy/deu`, one panel each: training and held-out ones apart. A dashed
line says where another mixture or phase, as a masking rate, begins.
"""

import argparse
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from xl_flax import cli
from xl_flax.errors import UserError
from xl_flax.files.read import read_json_lines

Curves = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]  # panel -> language -> steps, values

Phases = dict[int, dict[str, Any]]  # step -> what begins with it, as {"mlm/mixture": "bible"}

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
    for number, values in _read(path):
        for key, value in values.items():
            if not (match := re.fullmatch(r"(.*\b(?:loss|accuracy))/([^/]+)", key)):
                continue
            if type(value) not in (int, float):
                raise UserError(f"{path}, line {number}: {key!r} is no number; delete this line")
            # A resumed run may have written a step twice: the later line counts.
            points.setdefault(match[1], {}).setdefault(match[2], {})[values["step"]] = value
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


def read_phases(path: str) -> Phases:
    """What began at which step of a run, as mixtures and masking rates do, from `metrics.jsonl`.

    Raises:
      UserError: the file is missing or damaged.
    """
    phases: Phases = {}
    for number, values in _read(path):
        begun = values.get("phases", {})
        if not isinstance(begun, dict):
            raise UserError(f"{path}, line {number}: 'phases' is no object; delete this line")
        for name, value in begun.items():
            phases.setdefault(values["step"], {})[name] = value
    return phases


def _read(path: str) -> list[tuple[int, dict[str, Any]]]:
    """The lines of a `metrics.jsonl` with their numbers; each has a step."""
    if not os.path.lexists(path):
        raise UserError(f"{path} is missing: give the folder of a run that has logged something")
    lines = read_json_lines(path)
    for number, values in lines:
        if type(values.get("step")) is not int:
            raise UserError(f"{path}, line {number}: no metrics of a step; delete this line")
    return lines


def plot(curves: Curves, phases: Phases, title: str, out: str) -> None:
    """Draws each panel's curves into one PNG, with a line where a phase begins.

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
        for step, begun in _of_panel(phases, panel).items():
            axes.axvline(step, color="0.4", linewidth=0.8, linestyle=(0, (4, 3)))
            axes.annotate(
                "\n".join(f"{what} {value}" for what, value in begun.items()),
                (step, 1),
                (3, -3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                va="top",
                fontsize=7,
                color="0.3",
            )
    for axes in grid.flat[len(curves) :]:
        axes.set_visible(False)
    handles = [plt.Line2D([], [], label=name, **look) for name, look in looks.items()]
    figure.legend(
        handles=handles, loc="outside right upper", ncols=legend_columns, frameon=False, fontsize=9
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def _of_panel(phases: Phases, panel: str) -> Phases:
    """The phases that a panel shows: its objective's; of evaluations all."""
    objective = panel.split("/")[0]
    shown = {}
    for step, begun in phases.items():
        own = {k: v for k, v in begun.items() if objective in ("eval", k.split("/")[0])}
        if own:
            names = own if objective == "eval" else {k.split("/")[-1]: v for k, v in own.items()}
            shown[step] = names
    return shown


def _panel_order(item: tuple[str, Any]) -> tuple[str, bool]:
    """An objective's loss before its accuracy."""
    prefix, _, kind = item[0].rpartition("/")
    return prefix, kind != "loss"


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.Help)
    parser.add_argument("model_dir", help="a run's folder")
    parser.add_argument("--out", help="the PNG; default: curves.png in the run's folder")
    args = parser.parse_args(argv)
    cli.check_paths(args, "model_dir", "out")
    out = args.out or os.path.join(args.model_dir, "curves.png")
    path = os.path.join(args.model_dir, "metrics.jsonl")
    plot(read_curves(path), read_phases(path), os.path.normpath(args.model_dir), out)
    print(out)


if __name__ == "__main__":
    cli.run(main)
