"""Figures of results: curves, layers, a heat map, similarities between languages, a scatter."""

import statistics
from collections.abc import Sequence

import numpy as np

from xl_flax.errors import UserError
from xl_flax.evaluation.results import MACRO
from xl_flax.reports import drawing
from xl_flax.reports.curves import Run, of_panel
from xl_flax.reports.drawing import STEPS, STYLES, Drawing, Drawings, test_of, variant_of
from xl_flax.reports.records import MEANS, SETTING, Record, names_of, setting_of
from xl_flax.reports.tables import Key, Table, make, scale
from xl_flax.reports.views import VARIANTS, differing, tests

LACKING = {
    "curves": "no run has results of more than one step (--steps=all), or values by language in "
    "its metrics.jsonl yet",
    "layers": "no results are of more than one layer",
    "heatmap": "no test has results of more than one language, or they are of several layers: "
    "choose one with --layer",
    "similarity": "no results are of pairs of languages",
    "scatter": "no checkpoint has both",
}


def layers(records: Sequence[Record]) -> Drawings:
    """A value by layer, with the range of the seeds: a panel for each test and metric."""
    own = [r for r in records if r.layer is not None and not r.row.metric.endswith("_mean")]
    panels = drawing.split(own, test_of, "layer")
    if not panels:
        return {}
    grey = _controls(own)
    figure, axes = drawing.panels_of(len(panels))
    rows = ["setting", *differing(own, ("step", *VARIANTS))]
    tables = {key: make(panel, rows, ["layer"]) for key, panel in panels.items()}
    every = sorted((row for t in tables.values() for row in t.rows), key=lambda row: row[0] in grey)
    looks = drawing.looks_of(every, grey)
    for axis, (key, table) in zip(axes, tables.items(), strict=False):
        flat = [r for r in records if r.layer is None and test_of(r) == key and r.is_control]
        drawing.lines(axis, table, looks)
        for i, (name, number) in enumerate(_without_layers(flat)):
            style = STYLES[(i + 2) % len(STYLES)]
            axis.axhline(
                scale(key[1])[0] * number,
                color=drawing.GREY,
                linewidth=1.2,
                linestyle=style,
                label=name,
            )
        drawing.dress(axis, key, "layer (0 = embeddings)")
        axis.xaxis.set_major_locator(drawing.WHOLE)
    drawing.legend(figure, axes)
    return {"layers": Drawing(figure, "By layer")}


def curves(records: Sequence[Record]) -> Drawings:
    """Values over steps by language, with bands over seeds: a figure for each setting.

    Of several layers the last one is drawn.
    """
    drawings = {}
    own = [r for r in records if not r.is_control and not r.row.metric.endswith(("_mean", "_gap"))]
    for setting in dict.fromkeys(r.setting for r in own):
        mine = [r for r in own if r.setting == setting]
        panels = drawing.split(mine, lambda r: (*test_of(r), variant_of(r)), "step")
        if not panels:
            continue
        figure, axes = drawing.panels_of(len(panels))
        names = sorted({x for panel in panels.values() for r in panel for x in r.row.languages})
        looks = drawing.looks_of((name,) for name in names)
        for axis, (key, panel) in zip(axes, panels.items(), strict=False):
            last = max((r.layer for r in panel if r.layer is not None), default=None)
            panel = [r for r in panel if r.layer == last]
            table = make(panel, ["language"], ["step"])
            table.marks = {}  # of one test only, and all panels have one legend
            drawing.lines(axis, table, looks)
            drawing.dress(axis, key, "step", last)
            axis.xaxis.set_major_formatter(STEPS)
        drawing.legend(figure, axes)
        name = drawing.file_name("curves", setting)
        drawings[name] = Drawing(figure, f"{setting}: by language over steps")
    return drawings


def training(runs: Sequence[Run], rule: str = SETTING) -> Drawings:
    """What runs logged by language, with bands over seeds, and lines where a phase begins.

    Args:
      runs: what they logged.
      rule: as `Wanted.setting`.
    """
    names = names_of([run.folder for run in runs]) if runs else {}
    by_setting: dict[str, list[Run]] = {}
    for run in runs:
        by_setting.setdefault(setting_of(names[run.folder], rule), []).append(run)
    drawings = {}
    for setting, own in by_setting.items():
        panels = list(dict.fromkeys(panel for run in own for panel in run.curves))
        languages = sorted({x for run in own for panel in run.curves.values() for x in panel})
        looks = dict(zip(languages, drawing.looks(len(languages)), strict=True))
        figure, axes = drawing.panels_of(len(panels))
        for axis, panel in zip(axes, panels, strict=False):
            for language in languages:
                lines = [
                    run.curves[panel][language]
                    for run in own
                    if language in run.curves.get(panel, ())
                ]
                if lines:
                    steps, values = drawing.common(lines)
                    drawing.band(axis, steps, values, language, looks[language])
            kind = panel.rsplit("/", 1)[-1]
            axis.set_title(panel, loc="left", fontsize=10)
            axis.set_ylabel("cross-entropy (nats)" if kind == "loss" else kind)
            axis.set_xlabel("step")
            axis.xaxis.set_major_formatter(STEPS)
            drawing.phases(axis, of_panel(own[0].phases, panel))
        drawing.legend(figure, axes)
        name = drawing.file_name("training", setting)
        drawings[name] = Drawing(figure, f"{setting}: what it logged, by language")
    return drawings


def heatmap(records: Sequence[Record]) -> Drawings:
    """Zero-shot transfer at a glance: languages across, settings and controls down, by test.

    Of one setting at one step, tests are down instead, and its controls are below.
    """
    found: dict[tuple[str, str], list[Record]] = {}
    for data, metric, every in tests(records):
        own = [r for r in every if r.target or r.language not in MEANS]
        if own and _one_layer(own):
            similarity = own[0].row.similarity
            found[data, metric] = [r for r in own if r.row.similarity in (similarity, None)]
    shares = [test for test in found if scale(test[1])[0] == 100]  # losses have colours apart
    models = {(r.setting, r.row.step) for t in shares for r in found[t] if not r.is_control}
    tables = []
    if len(shares) > len(models) == 1:
        tables += _by_model([r for test in shares for r in found.pop(test)])
    for (data, metric), own in found.items():
        table = _languages_across(own, ["setting", *differing(own, ("step", *VARIANTS))])
        tables.append((f"{metric} on {data}{drawing.unit(metric)}", table))
    tables = [(title, table) for title, table in tables if len(table.columns) > 1]
    if not tables:
        return {}
    heights = [len(table.rows) for _, table in tables]
    widest = max(len(table.columns) for _, table in tables)
    size = (max(6.0, 0.42 * widest + 2), 0.36 * sum(heights) + 1.1 * len(tables))
    figure, panels = drawing.figure(*size, rows=len(tables), height_ratios=heights)
    for axis, (title, table) in zip(panels, tables, strict=True):
        drawing.numbers(axis, table, next(iter(table.cells.values())).metric)
        axis.set_title(title, fontsize=9, loc="left")
    return {"heatmap": Drawing(figure, "By language")}


def _by_model(records: Sequence[Record]) -> list[tuple[str, Table]]:
    """A title and a table for each setting or control: tests, in %, by languages."""
    fields = ["setting", *differing(records, ("step", *VARIANTS))]
    models = make(records, fields, ["data", "metric", "language"])
    ranks: dict[Key, int] = {}  # of languages: in all tables as in the first one
    tables = []
    for row in models.rows:
        own = [r for r in records if tuple(map(r.get, fields)) == row]
        table = _languages_across(own, ["data", "metric"])
        for column in table.columns:
            ranks.setdefault(column, len(ranks))
        table.columns.sort(key=ranks.__getitem__)
        tables.append((f"{drawing.label(models, row, fields)} (%)", table))
    return tables


def _languages_across(records: Sequence[Record], down: Sequence[str]) -> Table:
    """Those of training come first, those that are not read last."""
    table = make(records, down, ["language"])
    languages = make(records, ["language"], down)
    table.marks = languages.marks
    table.columns = [row for row in languages.rows if row in table.columns]
    return table


def similarity(records: Sequence[Record]) -> Drawings:
    """For each setting and test a matrix of pairs: what is searched, or alike, stands across.

    Of several steps of a run the last one is drawn.
    """
    drawings = {}
    pairs = [r for r in records if r.target and not {*r.row.languages} & {*MEANS}]
    pairs = [r for r in pairs if not r.is_control and not r.row.metric.endswith("_mean")]
    last: dict[tuple[str, str], int] = {}
    for r in pairs:
        last[r.run, r.row.task] = max(last.get((r.run, r.row.task), 0), r.row.step)
    pairs = [r for r in pairs if r.row.step == last[r.run, r.row.task]]
    kind = lambda r: (r.setting, r.data, variant_of(r), r.row.task)  # noqa: E731
    drawn = dict.fromkeys(map(kind, pairs))
    for setting, data, variant, task in drawn:
        own = [r for r in pairs if kind(r) == (setting, data, variant, task)]
        first = own[0].row
        own = [
            r for r in own if (r.row.metric, r.row.similarity) == (first.metric, first.similarity)
        ]
        own = [r for r in own if r.layer == max(x.layer or 0 for x in own) or r.layer is None]
        table = make(own, ["language"], ["target"])
        table.rows.sort(key=lambda row: str(row[0]))
        languages = {language for r in own for language in r.row.languages}
        if len(languages) < 3 or min(len(table.rows), len(table.columns)) < 2:
            continue
        size = 0.42 * len(table.columns) + 1.6
        figure, (axis,) = drawing.figure(size + 0.6, size)
        drawing.numbers(axis, table, first.metric)
        layer = "" if own[0].layer is None else f", layer {own[0].layer}"
        more = f", {variant}" if variant else ""
        title = f"{setting}: {first.metric} on {data}{layer}{more}{drawing.unit(first.metric)}"
        axis.set_title(drawing.LEFT_TO_RIGHT + title, fontsize=9, loc="left")
        if task == "retrieval":  # others are of both languages alike
            axis.set_ylabel("query")
            axis.set_xlabel("searched")
        parts = filter(None, [variant, "" if task == "retrieval" else task])
        name = drawing.file_name("similarity", setting, data, *parts)
        drawings[name] = Drawing(figure, title)
    return drawings


def scatter(records: Sequence[Record], x: str, y: str) -> Drawings:
    """Two metrics of the same checkpoints, and how far their ranks agree (Spearman).

    Of several layers of a checkpoint the last one counts.

    Raises:
      UserError: there is no such metric.
    """
    found: list[dict[tuple, float]] = []
    for name in (x, y):
        metric, _, data = name.partition(":")
        own = [r for r in records if (r.row.metric, r.data) == (metric, data) and not r.is_control]
        if not own:
            known = dict.fromkeys(f"{r.row.metric}:{r.data}" for r in records if not r.is_control)
            raise UserError(
                f"--scatter: there are no results of {name}; there are {', '.join(known)}"
            )
        means = [r for r in own if r.row.languages == (MACRO,)] or own
        first = test_of(means[0]), variant_of(means[0])
        means = [r for r in means if (test_of(r), variant_of(r)) == first]
        layers: dict[tuple, dict[int | None, list[float]]] = {}
        for record in means:
            key = record.setting, record.run, record.row.step
            layers.setdefault(key, {}).setdefault(record.layer, []).append(record.row.value)
        values = {key: own[max(own, key=lambda x: x or 0)] for key, own in layers.items()}
        found.append({key: statistics.fmean(own) for key, own in values.items()})
    both = [key for key in found[0] if key in found[1]]
    if not both:
        return {}
    figure, (axis,) = drawing.figure(5.6, 4.4)
    settings = list(dict.fromkeys(key[0] for key in both))
    for setting, look in zip(settings, drawing.looks(len(settings)), strict=True):
        own = [key for key in both if key[0] == setting]
        factors = [scale(name.partition(":")[0])[0] for name in (x, y)]
        points = [[f * part[key] for key in own] for f, part in zip(factors, found, strict=True)]
        axis.scatter(*points, color=look["color"], label=setting, s=22)
        for key, *place in zip(own, *points, strict=True):
            axis.annotate(f"{key[2]:,}", place, (3, 3), textcoords="offset points", fontsize=6)
    rank = spearman([found[0][key] for key in both], [found[1][key] for key in both])
    shown = "no rank correlation: all are equal" if rank is None else f"rank correlation {rank:.2f}"
    axis.set_title(f"{len(both)} checkpoints, {shown}", loc="left", fontsize=10)
    axis.set_xlabel(x + drawing.unit(x.partition(":")[0]))
    axis.set_ylabel(y + drawing.unit(y.partition(":")[0]))
    drawing.plain(axis)
    if len(settings) > 1:
        axis.legend(fontsize=8, frameon=False)
    return {"scatter": Drawing(figure, f"{x} and {y}")}


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The correlation of ranks; those that tie share theirs. None where there is none."""
    from scipy import stats

    ranks = [stats.rankdata(values) for values in (x, y)]
    if len(x) < 2 or any(np.ptp(own) == 0 for own in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def _one_layer(records: Sequence[Record]) -> bool:
    """Whether no model is there with several layers."""
    layers: dict[tuple, set[int | None]] = {}
    for record in records:
        key = record.setting, variant_of(record), record.get("step"), record.run
        layers.setdefault(key, set()).add(record.layer)
    return all(len(own) == 1 for own in layers.values())


def _controls(records: Sequence[Record]) -> set[str]:
    return {record.setting for record in records if record.is_control}


def _without_layers(records: Sequence[Record]) -> list[tuple[str, float]]:
    """The means of controls that have no layers."""
    means = [r for r in records if r.row.languages == (MACRO,)] or list(records)
    by_name: dict[str, list[float]] = {}
    for record in means:
        by_name.setdefault(record.setting, []).append(record.row.value)
    return [(name, statistics.fmean(own)) for name, own in by_name.items()]
