"""Zero-shot transfer of several runs:  python -m xl_flax.evaluation.transfer SETTING/SEED…

For each test that the runs were evaluated on, a line for each language: the mean over the seeds of
a setting and their standard deviation, and the controls that need no model. Below stand the means,
and the gap between the languages that labels were trained in (marked *, in brackets where only
some settings were) and the others. Of a run, the last checkpoint that was evaluated counts.
`--against=SETTING` tests each setting against that one, paired by example, with the counts averaged
over seeds (approximate randomisation; Yeh 2000). `--plot=FILE.png` draws all as a heat map. Every
signature is in the runs' `results.jsonl`. Languages of which the vocabulary lacks many pieces say
nothing of transfer: they stand apart, marked !, and are in no mean.

Examples:
  python -m xl_flax.evaluation.transfer runs/transfer/sib200/*/[0-9]
  python -m xl_flax.evaluation.transfer runs/transfer/*/*/[0-9] --plot=transfer.png
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from xl_flax import cli
from xl_flax.data.unknown import MANY_UNKNOWN
from xl_flax.errors import UserError
from xl_flax.evaluation import predictions
from xl_flax.evaluation import results as results_lib
from xl_flax.evaluation.bootstrap import Score, f1, macro_f1, permutation_p, ratio
from xl_flax.evaluation.results import MACRO, OTHERS, Row
from xl_flax.text_table import table, wrapped

LEGEND = (
    "mean ± standard deviation over seeds; * labels of this language were trained, (*) in\n"
    "  some settings; gap: languages of training less the others; ! more than "
    f"{100 * MANY_UNKNOWN:.0f} % of the\n"
    "  pieces are unknown to a vocabulary: in no mean"
)
MEANS = (MACRO, OTHERS)
SCORES: Mapping[str, Score] = {"f1": f1, "macro_f1": macro_f1}  # by metric; others are ratios


class Test(NamedTuple):
    """What a table is about."""

    data: str  # mixture/split
    metric: str


class Runs(NamedTuple):
    """The results of runs on one test."""

    values: dict[str, dict[str, list[float]]]  # setting or control -> language -> of each seed
    rows: dict[str, dict[str, list[Row]]]  # setting -> run's folder -> its results
    trained: dict[str, set[str]]  # setting -> languages that its head was trained in
    unread: set[str]  # languages of which a vocabulary lacks many pieces

    @property
    def settings(self) -> list[str]:
        """Those of `values` that are no controls."""
        return list(self.rows)

    @property
    def languages(self) -> list[str]:
        """Those of training first, the unread ones last."""
        names = sorted({x for own in self.values.values() for x in own})
        marks = ("*", "(*)", "", "* !", "(*) !", "!")
        return sorted(names, key=lambda name: marks.index(self.marks(name)))

    def marks(self, language: str) -> str:
        """ "*" if all settings were trained in it, "(*)" if some; "!" if it is unread."""
        count = sum(language in own for own in self.trained.values())
        trained = {0: "", len(self.trained): "*"}.get(count, "(*)")
        return f"{trained} {'!' if language in self.unread else ''}".strip()


def collect(runs: Sequence[str]) -> dict[Test, Runs]:
    """The results of labelled evaluations by test, the main metric of each.

    A run without such results is left out, which is said.

    Raises:
      UserError: no run has any, or what would be one column was measured in two ways.
    """
    tests: dict[Test, Runs] = {}
    signs: dict[tuple[Test, str], str] = {}

    def check(test: Test, column: str, row: Row) -> None:
        sign = signs.setdefault((test, column), _measured(row))
        if sign != _measured(row):
            raise UserError(
                f"{test.data}: {column} was measured in two ways, {sign} and {_measured(row)}: "
                "give settings folders of their own, or name runs that were measured alike"
            )

    for run in runs:
        measured = results_lib.read(os.path.join(run, results_lib.FILE))
        rows = [r for r in measured if r.interval and len(r.languages) == 1]  # of labelled tests
        own = [row for row in rows if row.model is None]
        if not own:
            print(f"left out, as it has no results of labelled tests: {run}", file=sys.stderr)
            continue
        setting = os.path.basename(os.path.dirname(os.path.abspath(run)))
        for test, chosen in _main(own).items():
            there = tests.setdefault(test, Runs({}, {}, {}, set()))
            there.rows.setdefault(setting, {})[run] = chosen
            there.trained.setdefault(setting, set())
            for row in chosen:
                check(test, setting, row)
                if row.languages[0] in MEANS:
                    continue
                if row.unknown and row.unknown[0] > MANY_UNKNOWN:
                    there.unread.add(row.languages[0])
                by_language = there.values.setdefault(setting, {})
                by_language.setdefault(row.languages[0], []).append(row.value)
                if row.trained:
                    there.trained[setting].add(row.languages[0])
            for row in rows:
                there_too = (row.data, row.metric) == test and row.languages[0] not in MEANS
                if row.model and there_too:
                    name = f"{row.model} of {_part(row, 'trained')}"
                    check(test, name, row)
                    there.values.setdefault(name, {})[row.languages[0]] = [row.value]
    if not tests:
        raise UserError(f"{', '.join(runs)}: no results of labelled tests; evaluate them first")
    return {test: _short_controls(there) for test, there in tests.items()}


def _measured(row: Row) -> str:
    """The signature without by what a checkpoint was chosen: seeds of a run differ in it."""
    return row.signature.replace(f"|chosen:{_part(row, 'chosen')}|", "|")


def _part(row: Row, name: str) -> str:
    """A part of a signature, "" if it has none of this name."""
    parts = dict(part.partition(":")[::2] for part in row.signature.split("|"))
    return parts.get(name, "")


def _short_controls(runs: Runs) -> Runs:
    """Controls that learnt from one text are called by their name alone."""
    short = {name: name.partition(" of ")[0] for name in runs.values if name not in runs.rows}
    alone = {name: base for name, base in short.items() if [*short.values()].count(base) == 1}
    return runs._replace(values={alone.get(k, k): own for k, own in runs.values.items()})


def _main(rows: Sequence[Row]) -> dict[Test, list[Row]]:
    """Of each data set the results of the metric that comes first, those written last."""
    metrics: dict[str, str] = {}
    last: dict[str, int] = {}
    for row in rows:
        metrics.setdefault(row.data, row.metric)
        last[row.data] = row.step
    found: dict[Test, list[Row]] = {}
    for row in rows:
        if row.metric == metrics[row.data] and row.step == last[row.data]:
            found.setdefault(Test(row.data, row.metric), []).append(row)
    return found


def shown(test: Test, runs: Runs) -> str:
    """The table of one test."""
    columns = [*runs.settings, *(name for name in runs.values if name not in runs.rows)]
    rows = [("language", *columns)]

    def add(name: str, values: Sequence[Mapping[str, list[float]]], label: str = "") -> None:
        if any(name in own for own in values):
            cells = (_cell(own.get(name, [])) for own in values)
            rows.append((f"{name} {label}".strip(), *cells))

    by_language = [runs.values[name] for name in columns]
    read = [x for x in runs.languages if x not in runs.unread]
    for language in read:
        add(language, by_language, runs.marks(language))
    for name in ("mean", "mean of others", "gap"):
        add(name, [_means(runs, column) for column in columns])
    for language in runs.languages[len(read) :]:
        add(language, by_language, runs.marks(language))
    steps = "; ".join(
        f"{name} {', '.join(f'{own[0].step:,}' for own in there.values())}"
        for name, there in runs.rows.items()
    )
    head = f"{test.metric} on {test.data}, in %"
    return "\n".join([head, table(rows, in_blocks=True), wrapped(f"steps: {steps}")])


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{100 * np.mean(values):.1f}"
    return f"{mean} ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def _means(runs: Runs, column: str) -> dict[str, list[float]]:
    """Of each seed the means over read languages and over those not trained in, and the gap."""
    languages = [x for x in runs.values[column] if x not in runs.unread]
    trained = [x for x in languages if x in runs.trained.get(column, ())]
    others = [x for x in languages if x not in trained]
    over = lambda names: np.mean([runs.values[column][x] for x in names], axis=0)  # noqa: E731
    means = {"mean": over(languages)} if languages else {}
    if others and trained:
        means["mean of others"] = over(others)
        means["gap"] = over(trained) - over(others)
    return {name: values.tolist() for name, values in means.items()}


def against(test: Test, runs: Runs, base: str) -> str:
    """p of each other setting against one, by language."""
    if base not in runs.settings:
        raise UserError(f"--against={base}: there is no such setting; {', '.join(runs.settings)}")
    others = [name for name in runs.settings if name != base]
    languages = [x for x in runs.languages if x in runs.values[base]]
    score = SCORES.get(test.metric, ratio)
    rows = [("language", *others)]
    for language in languages:
        one = _counts(runs, base, language)
        cells = []
        for name in others:
            other = _counts(runs, name, language)
            if other.shape != one.shape:
                raise UserError(f"{test.data}, {language}: {base} and {name} had other examples")
            change = 100 * float(score(other.sum(axis=0)) - score(one.sum(axis=0)))
            cells.append(f"{change:+.1f} (p {permutation_p(one, other, score):.4f})")
        rows.append((f"{language} {runs.marks(language)}".strip(), *cells))
    return f"{test.metric} on {test.data} less that of {base}, in %\n" + table(rows, in_blocks=True)


def _counts(runs: Runs, setting: str, language: str) -> np.ndarray:
    """Averaged over the seeds of a setting."""
    read = [
        predictions.read_counts(run, row)
        for run, rows in runs.rows[setting].items()
        for row in rows
        if row.languages == (language,)
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
        names = [*runs.settings, *(name for name in runs.values if name not in runs.rows)]
        languages = runs.languages
        grid = np.array(
            [
                [100 * np.mean(runs.values[name].get(x, [np.nan])) for x in languages]
                for name in names
            ]
        )
        panel.imshow(grid, aspect="auto", cmap="viridis", vmin=0, vmax=100)
        marked = [x + runs.marks(x) for x in languages]
        turned = 45 if len(languages) > 20 else 0
        panel.set_xticks(range(len(languages)), marked, fontsize=8, rotation=turned)
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
    print(LEGEND)
    if args.plot:
        plot(tests, args.plot)
        print(args.plot)


if __name__ == "__main__":
    cli.run(main)
