"""Tables of word alignment, in which every number stands beside its controls."""

from collections.abc import Sequence

from xl_flax.evaluation.report import UNKNOWN, once, unknown_legend, unknown_share
from xl_flax.evaluation.report_layers import (
    MEANINGS,
    Layers,
    best_layers,
    by_layer,
    controls_of,
    is_pair,
    overall,
    percent,
    percent_interval,
    star,
)
from xl_flax.evaluation.results import UNTRAINED, Result
from xl_flax.text_table import legend, table

SCORES = {"aer": "AER", "precision": "prec.", "recall": "recall", "f1": "F1"}
MEANS = {
    "AER": "alignment error rate, the lower the better",
    "95 %": "bootstrap interval of the AER",
    "prec.": "share of the links that are sure or possible",
    "recall": "share of the sure links that are found",
}


def alignment(results: Sequence[Result], choice: Sequence[Result] = ()) -> str:
    """F1 and AER by layer, then pairs by the first method, and all methods, in the layer chosen.

    Args:
      results: of the test.
      choice: of the text by which the layer is chosen; (): by the test.
    """
    methods = _methods(results)
    best = best_layers(choice or results, "f1", methods[0])
    meaning, chosen_by = star(choice, best, methods, "f1")
    own, chosen = (
        [r for r in some if r.similarity in (methods[0], None)] for some in (results, choice)
    )
    columns = {"choice": (chosen, "f1")} if choice else {}
    columns |= {"F1": (own, "f1"), "AER": (own, "aer")}
    shown = [r for r in results if r.layer == best.get(r.model)]
    data = once(r.data for r in results if is_pair(r))
    name = data[0] if len(data) == 1 else f"{len(data)} mixtures"
    parts = [
        f"Word alignment, {name}, by {methods[0]}",
        "F1 and AER in %, means over pairs of languages, by layer (0 = embeddings)",
        by_layer(columns, best),
        meaning,
        *(f"\n{_pairs(shown, own, methods[0], best)}" for own in data),
    ]
    if len(methods) > 1:
        parts.append(f"\n{_by_method(shown, methods)}")
    of_pairs = [r.signature for r in shown if (r.model, r.similarity) == (None, methods[0])]
    cited = once([*of_pairs, *(r.signature for r in overall(shown)), *filter(None, [chosen_by])])
    return "\n".join([*parts, *_end(shown, cited)])


def alignment_details(results: Sequence[Result], choice: Sequence[Result] = ()) -> str:
    """Each pair by the other methods, in the layer that is shown."""
    methods = _methods(results)
    if len(methods) == 1:
        return ""
    best = best_layers(choice or results, "f1", methods[0])
    shown = [r for r in results if r.layer == best.get(r.model)]
    data = once(r.data for r in results if is_pair(r))
    texts = [_pairs(shown, own, method, best) for method in methods[1:] for own in data]
    return "\n\n".join([*texts, "\n".join(_end(shown, once(r.signature for r in shown)))])


def _methods(results: Sequence[Result]) -> list[str]:
    return once(r.similarity for r in results if r.similarity)


def _pairs(shown: Sequence[Result], data: str, method: str, best: Layers) -> str:
    """A line for each pair of a mixture: the model's scores, and the controls' error rates."""
    own = [r for r in shown if r.data == data and r.similarity in (method, None)]
    values = {(r.model, r.languages, r.metric): r for r in own}
    controls = controls_of(own)
    metrics = ("aer", "precision", "recall")
    aer, *others = map(SCORES.get, metrics)
    rows = [("pair", aer, "95 %", *others, *controls, UNKNOWN)]
    lines = once(r.languages for r in own if r.model is None)
    for languages in lines if len(lines) > 2 else lines[:1]:  # the mean of one pair is its own
        scores = [values[None, languages, metric] for metric in metrics]
        beside = [values.get((control, languages, "aer")) for control in controls]
        cells = [percent(r and r.value) for r in (*scores, *beside)]
        cells.insert(1, percent_interval(scores[0].interval))
        unknown = scores[0].unknown
        rows.append(("-".join(languages), *cells, unknown_share(unknown and max(unknown))))
    other = best.get(UNTRAINED)
    layer = f"layer {best[None]}"
    layer += "" if other in (None, best[None]) else f" (untrained: {other})"
    return f"{data}, {layer}, by {method}\n{table(rows, shorten=0)}"


def _by_method(shown: Sequence[Result], methods: Sequence[str]) -> str:
    """The means over all pairs by each method."""
    values = {(r.model, r.similarity, r.metric): r.value for r in overall(shown)}
    controls = [name for name in controls_of(shown) if (name, methods[0], "aer") in values]
    rows = [("method", *SCORES.values(), *controls)]
    for method in methods:
        keys = [(None, method, metric) for metric in SCORES]
        keys += [(control, method, "aer") for control in controls]
        rows.append((method, *(percent(values[key]) for key in keys)))
    return "All pairs, by method\n" + table(rows)


def _end(results: Sequence[Result], signatures: Sequence[str]) -> list[str]:
    """What columns mean, and how it was measured."""
    controls = {name: MEANINGS[name] for name in controls_of(results)}
    lines = ["in %; of controls the AER", legend(MEANS)]
    return [
        *lines,
        *([legend(controls)] if controls else []),
        *unknown_legend(results),
        *signatures,
    ]
