"""Zero-shot transfer of several runs:  python -m xl_flax.evaluation.transfer SETTING/SEED…

For each test that the runs were evaluated on, a line for each language: the mean over the seeds of
a setting and their standard deviation, and the controls that need no model. Below stand the means,
and the gap between the languages that labels were trained in (marked *) and the others. Of a run,
its last evaluated checkpoint counts. `--against=SETTING` tests each setting against that one,
paired by example, with the counts averaged over seeds (approximate randomisation; Yeh 2000).
`--plot=FILE.png` draws all as a heat map. Every signature is in the runs' `results.jsonl`.

Examples:
  python -m xl_flax.evaluation.transfer runs/transfer/sib200/*/[0-9]
  python -m xl_flax.evaluation.transfer runs/transfer/*/*/[0-9] --plot=transfer.png
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from xl_flax import cli
from xl_flax.errors import UserError
from xl_flax.evaluation import predictions
from xl_flax.evaluation import results as results_lib
from xl_flax.evaluation.bootstrap import Score, f1, macro_f1, permutation_p, ratio
from xl_flax.evaluation.results import MACRO, OTHERS, Row
from xl_flax.text_table import table, wrapped

NAMES = {MACRO: "mean", OTHERS: "mean of others"}
SCORES: Mapping[str, Score] = {"f1": f1, "macro_f1": macro_f1}  # by metric; others are ratios


class Test(NamedTuple):
    """What a table is about."""

    data: str  # mixture/split
    metric: str


class Runs(NamedTuple):
    """The results of runs on one test."""

    values: dict[str, dict[str, list[float]]]  # setting or control -> language -> of each seed
    sources: dict[str, dict[str, int]]  # setting -> run folder -> step
    trained: set[str]  # languages that some head was trained in
    settings: list[str]  # those of `values` that are no controls


def collect(runs: Sequence[str]) -> dict[Test, Runs]:
    """The results of labelled evaluations by test, the main metric of each.

    Raises:
      UserError: a run has none, or two settings of one name were measured in two ways.
    """
    tests: dict[Test, Runs] = {}
    signatures: dict[tuple[Test, str], str] = {}
    for run in runs:
        rows = [r for r in results_lib.read(os.path.join(run, results_lib.FILE)) if r.interval]
        own = [row for row in rows if row.model is None]
        if not own:
            raise UserError(f"{run} has no results of labelled tests: evaluate it first")
        setting = os.path.basename(os.path.dirname(os.path.abspath(run)))
        last = max(row.step for row in own)
        for test, chosen in _main([row for row in own if row.step == last]).items():
            there = tests.setdefault(test, Runs({}, {}, set(), []))
            sign = signatures.setdefault((test, setting), chosen[0].signature)
            if sign != chosen[0].signature:
                raise UserError(
                    f"{run} and another run of {setting} were measured in two ways: {sign} and "
                    f"{chosen[0].signature}; give their folders different names"
                )
            if setting not in there.settings:
                there.settings.append(setting)
            there.sources.setdefault(setting, {})[run] = last
            for row in chosen:
                by_language = there.values.setdefault(setting, {})
                by_language.setdefault(row.languages[0], []).append(row.value)
            there.trained.update(row.languages[0] for row in chosen if row.trained)
            for row in rows:
                if row.model and (row.data, row.metric) == test:
                    there.values.setdefault(row.model, {})[row.languages[0]] = [row.value]
    return tests


def _main(rows: Sequence[Row]) -> dict[Test, list[Row]]:
    """Of each data set the results of the metric that comes first."""
    metrics: dict[str, str] = {}
    found: dict[Test, list[Row]] = {}
    for row in rows:
        if row.metric == metrics.setdefault(row.data, row.metric):
            found.setdefault(Test(row.data, row.metric), []).append(row)
    return found


def shown(test: Test, runs: Runs) -> str:
    """The table of one test."""
    columns = [*runs.settings, *(name for name in runs.values if name not in runs.settings)]
    languages = sorted({x for own in runs.values.values() for x in own} - {MACRO, OTHERS})
    languages.sort(key=lambda x: x not in runs.trained)
    rows = [("language", *columns)]
    for language in [*languages, MACRO, OTHERS]:
        cells = [_cell(runs.values[name].get(language, [])) for name in columns]
        mark = " *" if language in runs.trained else ""
        if any(cells):
            rows.append((NAMES.get(language, language) + mark, *cells))
    gaps = [_gap(runs.values[name], runs.trained) for name in columns]
    if any(gaps):
        rows.append(("gap", *gaps))
    return f"{test.metric} on {test.data}, in %\n" + table(rows, in_blocks=True)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{100 * np.mean(values):.1f}"
    return f"{mean} ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def _gap(values: Mapping[str, list[float]], trained: set[str]) -> str:
    sources = [values[x] for x in trained if x in values]
    others = [own for x, own in values.items() if x not in trained | {MACRO, OTHERS}]
    if not sources or not others:
        return ""
    return _cell((np.mean(sources, axis=0) - np.mean(others, axis=0)).tolist())


def against(test: Test, runs: Runs, base: str) -> str:
    """p of each other setting against one, by language."""
    if base not in runs.settings:
        raise UserError(f"--against={base}: there is no such setting; {', '.join(runs.settings)}")
    others = [name for name in runs.settings if name != base]
    languages = [x for x in runs.values[base] if x not in (MACRO, OTHERS)]
    score = SCORES.get(test.metric, ratio)
    rows = [("language", *others)]
    for language in languages:
        one = _counts(test, runs, base, language)
        cells = []
        for name in others:
            other = _counts(test, runs, name, language)
            if other.shape != one.shape:
                raise UserError(f"{test.data}, {language}: {base} and {name} had other examples")
            change = 100 * float(score(other.sum(axis=0)) - score(one.sum(axis=0)))
            cells.append(f"{change:+.1f} (p {permutation_p(one, other, score):.4f})")
        rows.append((language, *cells))
    return f"{test.metric} on {test.data} less that of {base}, in %\n" + table(rows, in_blocks=True)


def _counts(test: Test, runs: Runs, setting: str, language: str) -> np.ndarray:
    """Averaged over the seeds of a setting."""
    read = [
        predictions.read_counts(run, step, test.data, language, test.metric)
        for run, step in runs.sources[setting].items()
    ]
    return np.mean(read, axis=0)


def plot(tests: Mapping[Test, Runs], path: str) -> None:
    """A heat map for each test: settings and controls by languages."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [len(runs.values) for runs in tests.values()]
    figure, panels = pyplot.subplots(
        len(tests),
        squeeze=False,
        figsize=(11, 0.36 * sum(heights) + 1.1 * len(tests)),
        height_ratios=heights,
        layout="constrained",
    )
    for (test, runs), panel in zip(tests.items(), panels[:, 0], strict=True):
        names = [*runs.settings, *(name for name in runs.values if name not in runs.settings)]
        languages = sorted({x for own in runs.values.values() for x in own} - {MACRO, OTHERS})
        languages.sort(key=lambda x: x not in runs.trained)
        grid = np.array(
            [
                [100 * np.mean(runs.values[name].get(x, [np.nan])) for x in languages]
                for name in names
            ]
        )
        panel.imshow(grid, aspect="auto", cmap="viridis", vmin=0, vmax=100)
        marked = [f"{x}*" if x in runs.trained else x for x in languages]
        panel.set_xticks(range(len(languages)), marked, fontsize=8)
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.set_title(f"{test.metric} on {test.data}, in %", fontsize=9, loc="left")
        for (i, j), value in np.ndenumerate(grid):
            if np.isfinite(value):
                colour = "black" if value > 60 else "white"
                panel.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=7)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m xl_flax.evaluation.transfer",
        description=__doc__,
        formatter_class=cli.Help,
    )
    parser.add_argument("runs", nargs="+", metavar="SETTING/SEED", help="folders of runs")
    parser.add_argument("--against", metavar="SETTING", help="test the others against it")
    parser.add_argument("--plot", metavar="FILE", help="a PNG to write")
    args = parser.parse_args(argv)
    tests = collect(args.runs)
    for test, runs in tests.items():
        print(f"{shown(test, runs)}\n")
        if args.against:
            print(f"{against(test, runs, args.against)}\n")
    print(wrapped("mean ± standard deviation over seeds; * labels of this language were trained"))
    if args.plot:
        plot(tests, args.plot)
        print(args.plot)


if __name__ == "__main__":
    cli.run(main)
