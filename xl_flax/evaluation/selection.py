"""Which of a run's checkpoints is the best, by a number on validation text and never on a test."""

import os
import statistics
from collections.abc import Callable, Sequence

from xl_flax.errors import UserError
from xl_flax.evaluation import results as results_lib
from xl_flax.evaluation.results import MACRO, Row

BEST = "best:"
# The lower the better; all others the higher.
LOWER = {"loss", "unigram_loss", "xsim", "aer", "cut", "threshold"}
DEV = ("validation", "dev")


def parse(text: str) -> tuple[str, str]:
    """Metric and data of "best:METRIC:DATA", as in "best:loss:bible/validation".

    Raises:
      UserError: it is written in another way, or the data are no validation split.
    """
    metric, _, data = text.removeprefix(BEST).partition(":")
    if not text.startswith(BEST) or not metric or not data:
        raise UserError(f"{text!r}: write best:METRIC:DATA, as in best:loss:bible/validation")
    split = data.rpartition("/")[2]
    if split not in DEV:
        raise UserError(
            f"{text!r}: {data} is no validation split. Who chooses by a test has tuned on it, and "
            f"its numbers are too good then: choose by {data.rpartition('/')[0] or data}/validation"
        )
    return metric, data


def best_step(rows: Sequence[Row], metric: str, data: str, where: str) -> tuple[int, float]:
    """The step with the best mean over languages, in its best layer; of equals the earliest.

    Args:
      rows: of one run, with all their steps.
      metric: as in "loss".
      data: as in "bible/validation".
      where: the results are, for the message.

    Returns:
      The step, and the value.

    Raises:
      UserError: there are no such results.
    """
    own = [row for row in rows if row.model is None]
    named = [row for row in own if (row.metric, row.data) == (metric, data)]
    if not named:
        known = sorted({f"{r.metric}:{r.data}" for r in own if r.data.rpartition("/")[2] in DEV})
        raise UserError(
            f"{where} has no {metric} on {data}, by which a checkpoint would be chosen; there are "
            f"{', '.join(known) or 'no results on validation text'}"
        )
    means = [row for row in named if row.languages == (MACRO,)] or named
    first = means[0].similarity
    values: dict[int, dict[int | None, list[float]]] = {}
    for row in means:
        if row.similarity == first:
            values.setdefault(row.step, {}).setdefault(row.layer, []).append(row.value)
    sign = -1 if metric in LOWER else 1
    best = {
        step: max(sign * statistics.fmean(own) for own in layers.values())
        for step, layers in values.items()
    }
    step = max(sorted(best), key=best.__getitem__)
    return step, sign * best[step]


def select(
    checkpoints: Sequence[str],
    homes: dict[str, str],
    text: str,
    fail: Callable[[str, UserError], None],
) -> list[str]:
    """Of the checkpoints of each run the one that its results say is best.

    Args:
      checkpoints: of one or more runs.
      homes: where the results of each are.
      text: as of `parse`.
      fail: is called with the folder of a run that has no such results, and why.
    """
    metric, data = parse(text)
    chosen = []
    for home in dict.fromkeys(homes[checkpoint] for checkpoint in checkpoints):
        own = [c for c in checkpoints if homes[c] == home]
        try:
            chosen.append(_best_of_run(own, os.path.join(home, results_lib.FILE), metric, data))
        except UserError as error:
            fail(home, error)
    return chosen


def _best_of_run(own: Sequence[str], path: str, metric: str, data: str) -> str:
    """One of a run's checkpoints, by its file of results."""
    rows = results_lib.read(path)
    there = {os.path.basename(c) for c in own}
    rows = [r for r in rows if os.path.basename(r.checkpoint) in there or len(own) == 1]
    step, value = best_step(rows, metric, data, path)
    best = next((c for c in own if os.path.basename(c) == str(step)), own[0])
    lacking = len(own) - len({row.step for row in rows if row.model is None})
    more = f"; {lacking} checkpoints have no results" if lacking > 0 else ""
    print(f"selected: {best} ({metric} on {data}: {value:.4f}{more})", flush=True)
    return best
