"""Tables of retrieval and mining, in which every number stands beside its controls.

The layer that is shown of each model is chosen by `xl_flax.evaluation.report_layers`.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

from xl_flax.evaluation.report import UNKNOWN, once, unknown_legend, unknown_share, unknown_shares
from xl_flax.evaluation.report_layers import (
    MEANINGS,
    Layers,
    best_layers,
    by_layer,
    controls_of,
    is_pair,
    percent,
    star,
)
from xl_flax.evaluation.results import MACRO, UNTRAINED, Result
from xl_flax.text_table import fits, legend, table, wrapped

UNSHARED = "p@1_unshared"
NO_QUERY = "unshared: without queries whose translation shares a digit or a string of four letters"
ELSEWHERE = "All pairs: in the file named below"
MEANS = "with the other languages (means)"
PAIRS = 15  # of a mixture that get lines of their own; where there are more, languages do

Pair = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a table: what it is called, and the pairs that it is a mean over."""

    label: tuple[str, ...]
    data: str
    pairs: tuple[Pair, ...]
    languages: tuple[str, ...]  # whose unknown pieces count


class Shown:
    """The results of one similarity, of each model in its layer."""

    def __init__(self, results: Iterable[Result]):
        self.results = list(results)
        self._values = {(r.model, r.data, r.languages, r.metric): r for r in self.results}
        self.controls = controls_of(self.results)
        self.layers = {r.model: r.layer for r in self.results}

    def __getitem__(self, key: tuple[str | None, str, Pair, str]) -> Result | None:
        return self._values.get(key)

    def mean(
        self, model: str | None, data: str, pairs: Iterable[Pair], metric: str
    ) -> float | None:
        """Over those of the pairs that have this metric."""
        found = [self[model, data, pair, metric] for pair in pairs]
        return _mean([r.value for r in found if r is not None])

    @property
    def layer(self) -> str:
        """As in "layer 3 (untrained: 0)"."""
        own, other = self.layers[None], self.layers.get(UNTRAINED)
        return f"layer {own}" + ("" if other in (None, own) else f" (untrained: {other})")


def retrieval(results: Sequence[Result], choice: Sequence[Result] = ()) -> str:
    """The means by layer, then pairs, or languages where there are many, in the layer chosen.

    Args:
      results: of the test.
      choice: of the text by which the layer is chosen; (): by the test.
    """
    similarities = once(r.similarity for r in results)
    best = best_layers(choice or results, "p@1", similarities[0])
    meaning, chosen_by = star(choice, best, similarities)
    layers = [_retrieval_layers(results, choice, s, best) for s in similarities]
    parts = [f"{text}\n{meaning}" for text in layers]
    shown = {s: _shown(results, best, s) for s in similarities}
    several, two = _mixtures(shown[similarities[0]])
    for data in several:
        lines, of = _mixture_lines(data, shown[similarities[0]])
        texts = [_lines(lines, shown[s], f"{data} {of}, by {s}") for s in similarities]
        if of == MEANS:
            texts[-1] += f"\n{ELSEWHERE}"
        parts += texts
    if two:
        lines = _two_language_lines(two, shown[similarities[0]])
        parts += [_lines(lines, shown[s], f"{len(two)} mixtures, by {s}") for s in similarities]
    every = [r for s in similarities for r in shown[s].results]
    signatures = [*once(r.signature for r in _cited(every, several)), chosen_by]
    parts.append("\n".join(_end(every, list(filter(None, signatures)))))
    return "\n\n".join(parts)


def retrieval_details(results: Sequence[Result], choice: Sequence[Result] = ()) -> str:
    """Each pair of languages in that layer, where mixtures have too many for the table."""
    similarities = once(r.similarity for r in results)
    best = best_layers(choice or results, "p@1", similarities[0])
    texts = []
    for similarity in similarities:
        shown = _shown(results, best, similarity)
        for data in _mixtures(shown)[0]:
            if _mixture_lines(data, shown)[1] == MEANS:
                texts += [
                    _matrix(data, shown, model, metric)
                    for metric in _metrics(shown.results)
                    for model in (None, *shown.controls)
                ]
                texts.append("\n".join(_end([], once(r.signature for r in shown.results))))
    return "\n\n".join(texts)


def mining(results: Sequence[Result]) -> str:
    """Macro F1 by layer, then all pairs in the layer that is best on the development half."""
    best = best_layers(results, "dev_f1")
    shown = _shown(results, best)
    pairs = _mined(shown)
    if not fits(pairs):
        pairs = f"{_mined(shown, means=True)}\n{ELSEWHERE}"
    columns = {"F1 on dev": (results, "dev_f1"), "F1 on test": (results, "f1")}
    head = "Bitext mining by ratio margin: mean F1 in %, by layer (0 = embeddings)"
    end = _end(shown.results, once(r.signature for r in shown.results))
    chosen = "* best on dev, shown below; thresholds are tuned on dev, scores are of test"
    return "\n".join([head, by_layer(columns, best), chosen, "", pairs, *end])


def mining_details(results: Sequence[Result]) -> str:
    """Each pair in the layer that is best on the development half, where they are many."""
    shown = _shown(results, best_layers(results, "dev_f1"))
    pairs = _mined(shown)
    if fits(pairs):
        return ""
    return "\n".join([pairs, *_end(shown.results, once(r.signature for r in shown.results))])


def _mined(shown: Shown, means: bool = False) -> str:
    """The pairs, or only their means."""
    groups = once((r.data, r.languages) for r in shown.results if r.model is None)
    several = len({data for data, _ in groups}) > 1
    rows = [("pair", "gold", "precision", "recall", "F1", *shown.controls, UNKNOWN)]
    for data, languages in groups:
        if means and languages != (MACRO,):
            continue
        own = {m: shown[None, data, languages, m] for m in ("precision", "recall", "f1")}
        f1 = own["f1"]
        name = "-".join(languages)
        if several and languages == (MACRO,):
            name = f"{data.rpartition('/')[0]} {name}"
        rows.append(
            (
                name,
                f"{f1.n:,}" if is_pair(f1) else "",
                *(percent(r.value) for r in own.values()),
                *(percent(shown.mean(c, data, [languages], "f1")) for c in shown.controls),
                unknown_share(max(f1.unknown) if f1.unknown else None),
            )
        )
    title = f"{groups[0][0] if not several else 'several mixtures'}, {shown.layer}"
    f1 = f"; {', '.join(shown.controls)}: their F1" if shown.controls else ""
    end = f"in %; gold: pairs to be found{f1}"
    return f"{title}\n{table(rows, in_blocks=True)}\n{end}"


def _retrieval_layers(
    results: Sequence[Result],
    choice: Sequence[Result],
    similarity: str,
    best: Layers,
) -> str:
    own = [r for r in results if r.similarity == similarity]
    columns = {"choice": ([r for r in choice if r.similarity == similarity], "p@1")}
    columns = (columns if choice else {}) | {"P@1": (own, "p@1")}
    if UNSHARED in _metrics(own):
        columns["unshared"] = (own, UNSHARED)
    data = once(r.data for r in own if is_pair(r))
    chances = {1 / r.n for r in own if is_pair(r) and r.metric == "p@1"}
    chance = f"{max(chances):.2%}" if len(chances) == 1 else f"at most {max(chances):.2%}"
    xsim = "; xSIM error: 100 less P@1" if similarity == "margin" else ""
    name = data[0] if len(data) == 1 else f"{len(data)} mixtures"
    return "\n".join(
        [
            f"Sentence retrieval, {name}, by {similarity}{xsim}",
            f"P@1 in %, mean over all ordered pairs, by layer (0 = embeddings); chance {chance}",
            by_layer(columns, best),
        ]
    )


def _lines(lines: Sequence[Line], shown: Shown, title: str) -> str:
    """A table, with a second line for the queries that share nothing with their translation."""
    columns = len(lines[0].label)
    rows = [
        (*("mixture", "pair")[-columns:], "n", "→", "←", *shown.controls, UNKNOWN),
    ]
    if lines[0].label == lines[0].languages[:1]:
        rows[0] = ("language", *rows[0][1:])
    metrics = _metrics(shown.results)
    unknown = unknown_shares(shown.results)
    values: dict[str, list[list[float | None]]] = {metric: [] for metric in metrics}

    def row(label: Sequence[str], n: str, own: list[float | None], unknown: str) -> tuple[str, ...]:
        return (*label, n, *map(percent, own), unknown)

    for line in lines:
        back = [pair[::-1] for pair in line.pairs]
        for metric in metrics:
            of = functools.partial(shown.mean, data=line.data, metric=metric)
            own = [of(None, pairs=line.pairs), of(None, pairs=back)]
            own += [of(name, pairs=[*line.pairs, *back]) for name in shown.controls]
            values[metric].append(own)
            counts = [shown[None, line.data, pair, metric] for pair in line.pairs]
            n = _mean([r.n for r in counts if r is not None])
            if metric == "p@1":
                queries = n
            elif n == queries:
                continue  # nothing is left out: the same again
            worst = max((unknown[x] for x in line.languages if x in unknown), default=None)
            plain = metric == "p@1"
            label = line.label if plain else ("  unshared", *line.label[1:-1], "")[:columns]
            count = "-" if n is None else f"{n:,.0f}"
            rows.append(row(label, count, own, unknown_share(worst) if plain else ""))
    for metric in metrics:
        means = [
            _mean([v for v in own if v is not None]) for own in zip(*values[metric], strict=True)
        ]
        label = (MACRO if metric == "p@1" else "  unshared", "")[:columns]
        rows.append(
            row(label, "", means, unknown_share(unknown.get(MACRO)) if metric == "p@1" else "")
        )
    text = table(rows, left=range(columns), in_blocks=True)
    end = "n: queries; → the first searches, or the line's language; ← it is searched"
    if len(rows) < 1 + len(metrics) * (1 + len(lines)):
        end += "\nno line for unshared: no sentence shares a string with its translation"
    if shown.controls:
        end += f"\n{', '.join(shown.controls)}: mean of both directions"
    return f"{title}, {shown.layer}: P@1 in %\n{text}\n{end}"


def _mixture_lines(data: str, shown: Shown) -> tuple[list[Line], str]:
    """For each pair, or each language where there are many; and what is shown of it."""
    pairs = once(r.languages for r in shown.results if is_pair(r) and r.data == data)
    languages = sorted({language for pair in pairs for language in pair})
    forward = [pair for pair in pairs if pair[0] < pair[1]]
    shared = set.intersection(*map(set, pairs))
    if len(languages) > 2 and shared:
        (pivot,) = shared
        return [
            Line((x,), data, ((x, pivot),), (x,)) for x in languages if x != pivot
        ], f"with {pivot}"
    if len(forward) <= PAIRS:
        return [Line(("-".join(pair),), data, (pair,), pair) for pair in forward], "by pairs"
    every = {x: tuple(pair for pair in pairs if pair[0] == x) for x in languages}
    return [Line((x,), data, own, (x,)) for x, own in every.items()], MEANS


def _two_language_lines(mixtures: Sequence[str], shown: Shown) -> list[Line]:
    """A line for each mixture; a language that all have comes second."""
    pairs = {r.data: r.languages for r in shown.results if is_pair(r) and r.data in mixtures}
    shared = set.intersection(*map(set, pairs.values()))
    lines = []
    for data, pair in pairs.items():
        pair = tuple(sorted(pair, key=lambda x: (x in shared, x)))
        lines.append(Line((data.rpartition("/")[0], "-".join(pair)), data, (pair,), pair))
    return lines


def _matrix(data: str, shown: Shown, model: str | None, metric: str) -> str:
    """Query languages down, searched languages across, means at the ends."""
    found = [
        r
        for r in shown.results
        if is_pair(r) and (r.model, r.data, r.metric) == (model, data, metric)
    ]
    values = {r.languages: r.value for r in found}
    languages = sorted({language for pair in values for language in pair})

    def mean(pairs: Iterable[Pair]) -> str:
        return percent(_mean([values[p] for p in pairs if p in values]))

    rows = [("query", *languages, "mean")]
    for a in languages:
        own = [percent(values.get((a, b))) if a != b else "·" for b in languages]
        rows.append((a, *own, mean([(a, b) for b in languages])))
    means = [mean([(a, b) for a in languages]) for b in languages]
    rows.append(("mean", *means, mean(values)))
    which = model or "this checkpoint"
    what = "P@1" if metric == "p@1" else "P@1, unshared"
    similarity, layer = found[0].similarity, found[0].layer
    where = "" if layer is None else f", layer {layer}"
    title = f"{data}: {what} by {similarity} in %, {which}{where}"
    return f"{title}\n{table(rows)}\nqueries down, the language that is searched across"


def _shown(results: Sequence[Result], best: Layers, similarity: str | None = None) -> Shown:
    """Of each model its best layer, and what has no layers."""
    return Shown(r for r in results if r.similarity == similarity and r.layer == best.get(r.model))


def _mixtures(shown: Shown) -> tuple[list[str], list[str]]:
    """The mixtures that have a table of their own, and those of two languages, which have a line.

    Means over several mixtures belong to none.
    """
    languages: dict[str, set[str]] = {}
    for r in filter(is_pair, shown.results):
        languages.setdefault(r.data, set()).update(r.languages)
    two = [data for data, own in languages.items() if len(own) == 2]
    several = [data for data in languages if data not in two]
    return (several, two) if several or len(two) > 1 else (two, [])


def _cited(results: Sequence[Result], several: Sequence[str]) -> list[Result]:
    """Those whose signatures are printed: of many mixtures of two languages only the means'."""
    pairs = {r.data for r in results if is_pair(r)} - set(several)
    return [r for r in results if r.data not in pairs]


def _end(results: Sequence[Result], signatures: Sequence[str]) -> list[str]:
    """What columns mean, and how it was measured."""
    meanings = {name: MEANINGS[name] for name in controls_of(results)}
    lines = [legend(meanings)] if meanings else []
    if UNSHARED in _metrics(results):
        lines.append(wrapped(NO_QUERY))
    return [*lines, *unknown_legend(results), *signatures]


def _metrics(results: Iterable[Result]) -> list[str]:
    there = {r.metric for r in results}
    return [metric for metric in ("p@1", UNSHARED) if metric in there]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
