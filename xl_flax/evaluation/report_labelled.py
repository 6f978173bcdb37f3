"""Tables of labelled evaluations: a line for each language, the controls beside the model."""

from collections.abc import Sequence

from xl_flax.evaluation.report import (
    UNKNOWN,
    once,
    unknown_legend,
    unknown_share,
    unknown_shares,
)
from xl_flax.evaluation.report_layers import percent, percent_interval
from xl_flax.evaluation.results import MACRO, OTHERS, Result
from xl_flax.text_table import legend, table

NAMES = {MACRO: "mean", OTHERS: "mean of others"}


def table_of(results: Sequence[Result], metrics: Sequence[str]) -> str:
    """Scores in %, with intervals for the first metric, and the same of controls.

    Args:
      results: of one evaluation, those of controls with a `Result.model`.
      metrics: the main one first.
    """
    own = [r for r in results if r.model is None]
    values = {(r.languages[0], r.metric): r for r in own}
    controls = once(r.model for r in results if r.model is not None)
    beside = {(r.model, r.languages[0]): r.value for r in results if r.metric == metrics[0]}
    unknown = unknown_shares(own)
    main, *more = metrics
    shares = [UNKNOWN] if unknown else []
    rows = [("language", "n", main, "95 %", *more, *controls, *shares)]
    for name in once(r.languages[0] for r in own):
        result = values[name, main]
        cells = [
            NAMES.get(name, name),
            f"{result.n:,}",
            percent(result.value),
            percent_interval(result.interval),
        ]
        cells += [percent(values[name, metric].value) for metric in more]
        cells += [
            percent(beside[model, name]) if (model, name) in beside else "" for model in controls
        ]
        cells += [unknown_share(unknown.get(name)) for _ in shares]
        rows.append(cells)
    gap = values.get((OTHERS, f"{main}_gap"))
    lines = [f"{own[0].data}, head {own[0].head}, in %", table(rows, in_blocks=True)]
    if gap is not None:
        lines.append(
            f"gap: {percent(gap.value)} ({percent_interval(gap.interval)}) from the languages of "
            "training to the others"
        )
    words = {
        "n": "examples; of means, languages",
        "95 %": "bootstrap interval of the column before it",
        "mean of others": "of languages that the head was not trained in",
    }
    if not any(r.languages == (OTHERS,) for r in own):
        del words["mean of others"]
    words |= {name: CONTROLS[name] for name in controls if name in CONTROLS}
    return "\n".join(
        [*lines, legend(words), *unknown_legend(own), *once(r.signature for r in results)]
    )


CONTROLS = {
    "majority": "no model, the most frequent label of training",
    "tf-idf": "no model, logistic regression on pieces",
    "most frequent": "no model, each word's most frequent tag in training, or that of all words",
    "neighbour": "no model, each word depends on the one before it, or each on that behind it",
    "lexicon": "no model, each word as far from its head as most often in training",
}
