"""What figures are drawn with: panels, lines with bands, grids of numbers."""

import io
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from xl_flax.errors import UserError
from xl_flax.reports.formats import parts_of
from xl_flax.reports.records import Record
from xl_flax.reports.tables import GAPS, Key, Table, scale

try:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
except ImportError as error:
    raise UserError(
        "figures need matplotlib: install the extra with pip install 'xl-flax[eval]'"
    ) from error

# Okabe and Ito's colours, told apart by colour-blind readers too; then line styles change.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
GREY = "0.6"  # of controls
STEPS = mpl.ticker.EngFormatter(sep="")
WHOLE = mpl.ticker.MaxNLocator(integer=True)
# A mark without width, so that what begins with a Hebrew name is not turned round.
LEFT_TO_RIGHT = "\u200e"
Axes = Any  # matplotlib's


class Drawing:
    """A figure, to be written as a PNG or into a page."""

    def __init__(self, figure: Any, title: str):
        self.figure, self.title = figure, title
        plt.close(figure)

    def png(self) -> bytes:
        """With 150 dots an inch."""
        return self._saved(format="png", dpi=150)

    def svg(self) -> str:
        """With letters as shapes, which look the same everywhere."""
        with mpl.rc_context({"svg.hashsalt": self.title}):  # the same names within, each time
            text = self._saved(format="svg", metadata={"Date": None}).decode()
        return text[text.index("<svg") :]

    def _saved(self, **how: Any) -> bytes:
        file = io.BytesIO()
        self.figure.savefig(file, bbox_inches="tight", **how)
        return file.getvalue()


Drawings = dict[str, Drawing]


def figure(width: float, height: float, rows: int = 1, **how: Any) -> tuple[Any, np.ndarray]:
    """A figure of panels below one another, in inches."""
    made, axes = plt.subplots(
        rows, squeeze=False, figsize=(width, height), layout="constrained", **how
    )
    return made, axes[:, 0]


def panels_of(count: int) -> tuple[Any, list[Axes]]:
    """A figure with so many panels, two in a row."""
    columns = min(2, count)
    rows = -(-count // columns)
    size = (5.2 * columns + 1.5, 3.6 * rows + 0.4)
    made, axes = plt.subplots(rows, columns, squeeze=False, figsize=size, layout="constrained")
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return made, list(axes.flat[:count])


def looks(count: int) -> list[dict[str, Any]]:
    """Colours and styles of so many lines."""
    return [
        {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": STYLES[i // len(COLOURS) % len(STYLES)],
        }
        for i in range(count)
    ]


def split(
    records: Iterable[Record], key: Callable[[Record], tuple], field: str
) -> dict[tuple, list[Record]]:
    """Records by panel, without panels in which no run has several values of a field."""
    panels: dict[tuple, list[Record]] = {}
    values: dict[tuple, set] = {}
    for record in records:
        panels.setdefault(key(record), []).append(record)
        values.setdefault((key(record), record.run), set()).add(record.get(field))
    drawn = {panel for (panel, _), own in values.items() if len(own - {None}) > 1}
    return {panel: own for panel, own in panels.items() if panel in drawn}


def test_of(record: Record) -> tuple[str, str, str]:
    """Data, metric and similarity: what a panel is about."""
    return record.data, record.row.metric, record.row.similarity or ""


def variant_of(record: Record) -> str:
    """How vectors were made, where not in the usual way: as "center test_mean, pooling cls"."""
    usual = {"center": "none", "pooling": "mean", "head": "none"}
    own = {name: record.parts.get(name, value) for name, value in usual.items()}
    return ", ".join(f"{name} {own[name]}" for name in usual if own[name] != usual[name])


def dress(axis: Axes, test: tuple[str, ...], x: str, layer: int | None = None) -> None:
    """Titles of a panel about a test, perhaps a variant of it."""
    data, metric, *similarity = test
    more = [*similarity, "" if layer is None else f"layer {layer}"]
    axis.set_title(", ".join(filter(None, [data, *more])), loc="left", fontsize=10)
    axis.set_ylabel(metric + unit(metric))
    axis.set_xlabel(x)
    plain(axis)


def plain(axis: Axes) -> None:
    """A light grid, and no box."""
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def unit(metric: str) -> str:
    """Behind a metric's name."""
    return " (%)" if scale(metric)[0] == 100 else ""


def label(table: Table, key: Key, fields: Sequence[str]) -> str:
    """What a row or column is called; its parts stand from the left to the right."""
    parts = parts_of(table, key, fields)
    return (LEFT_TO_RIGHT if len(parts) > 1 else "") + ", ".join(parts)


def looks_of(rows: Iterable[Key], controls: Collection[str] = ()) -> dict[Key, dict[str, Any]]:
    """A look for each row of some tables; those of controls are grey."""
    every = list(dict.fromkeys(rows))
    trained = [row for row in every if row[0] not in controls]
    own = dict(zip(trained, looks(len(trained)), strict=True))
    for number, row in enumerate(row for row in every if row[0] in controls):
        own[row] = {"color": GREY, "linestyle": STYLES[number % len(STYLES)]}
    return own


def lines(axis: Axes, table: Table, own: Mapping[Key, dict[str, Any]]) -> None:
    """A line for each row of a table, over its columns, with the range of the seeds."""
    for row in (row for row in table.rows if row[0] not in GAPS):
        columns = [column for column in table.columns if (row, column) in table.cells]
        if not columns:
            continue
        numbers = [table.cells[row, column] for column in columns]
        factor = scale(numbers[0].metric)[0]
        fewest = min(len(number.values) for number in numbers)
        values = factor * np.array([number.values[:fewest] for number in numbers]).T
        x = np.array([column[0] for column in columns])
        band(axis, x, values, label(table, row, table.row_fields), own[row])


def band(axis: Axes, x: np.ndarray, values: np.ndarray, label: str, look: dict[str, Any]) -> None:
    """The mean of values[seeds, points] as a line, and their range around it."""
    axis.plot(x, values.mean(axis=0), linewidth=1.4, label=label, **look)
    if len(x) == 1:
        axis.plot(x, values.mean(axis=0), marker="o", markersize=4, color=look["color"])
    if len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axis.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)


def common(several: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Of lines (steps, values) the steps that all have, and the values there, [lines, steps]."""
    steps = several[0][0]
    for own, _ in several[1:]:
        steps = np.intersect1d(steps, own)
    return steps, np.stack([v[np.isin(own, steps)] for own, v in several])


def phases(axis: Axes, begun: dict[int, dict[str, Any]]) -> None:
    """A dashed line, with what begins there."""
    for step, what in begun.items():
        axis.axvline(step, color="0.4", linewidth=0.8, linestyle=(0, (4, 3)))
        axis.annotate(
            "\n".join(f"{name} {value}" for name, value in what.items()),
            (step, 1),
            (3, -3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            fontsize=7,
            color="0.3",
        )


def legend(made: Any, axes: Sequence[Axes]) -> None:
    """One for all panels, beside them."""
    handles = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    columns = -(-len(handles) // 20)
    made.legend(
        handles.values(),
        handles.keys(),
        loc="outside right upper",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )


def numbers(axis: Axes, table: Table, metric: str) -> None:
    """A table's numbers as a grid of colours."""
    factor, digits = scale(metric)
    digits = 0 if factor == 100 else digits
    nothing = float("nan")

    def value(row: Key, column: Key) -> float:
        number = table.cells.get((row, column))
        return nothing if number is None else factor * number.mean

    grid = np.array([[value(row, column) for column in table.columns] for row in table.rows])
    top = 100 if factor == 100 else np.nanmax(grid)
    axis.imshow(grid, aspect="auto", cmap="viridis", vmin=0, vmax=top)
    names = [label(table, column, table.column_fields) for column in table.columns]
    turned = 45 if len(names) > 20 else 0
    axis.set_xticks(range(len(names)), names, fontsize=8, rotation=turned)
    rows = [label(table, row, table.row_fields) for row in table.rows]
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    for (i, j), shown in np.ndenumerate(grid):
        if np.isfinite(shown):
            colour = "black" if shown > 0.6 * top else "white"
            text = f"{shown:.{digits}f}"
            axis.text(j, i, text, ha="center", va="center", color=colour, fontsize=7)


def file_name(*parts: str) -> str:
    """Of a figure, from what it is about."""
    return "-".join(re.sub(r"[^\w.+]+", "-", part).strip("-") for part in parts)
