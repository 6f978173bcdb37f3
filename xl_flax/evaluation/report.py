"""Results as tables for the console."""

from collections.abc import Iterable, Sequence

from xl_flax.evaluation.results import MACRO, Result
from xl_flax.text_table import table


def plain(results: Sequence[Result]) -> str:
    """A line for each result."""
    rows = [("data", "layer", "languages", "metric", "value", "n")]
    for r in results:
        layer = "" if r.layer is None else str(r.layer)
        cells = (r.data, layer, "-".join(r.languages), r.metric, f"{r.value:.4f}", f"{r.n:,}")
        rows.append(cells)
    return "\n".join([table(rows), *_once(r.signature for r in results)])


def masked_lm(results: Sequence[Result]) -> str:
    """Per language: loss and accuracy of the model and of token frequencies."""
    values = {(r.languages[0], r.metric): r.value for r in results}
    counts = {r.languages[0]: r.n for r in results}
    languages = sorted(counts.keys() - {MACRO})
    rows = [("language", "loss", "unigram loss", "accuracy", "unigram accuracy", "masked tokens")]
    for language in [*languages, MACRO]:
        tokens = sum(counts[x] for x in languages) if language == MACRO else counts[language]
        rows.append(
            (
                language,
                f"{values[language, 'loss']:.3f}",
                f"{values[language, 'unigram_loss']:.3f}",
                f"{values[language, 'accuracy']:.1%}",
                f"{values[language, 'unigram_accuracy']:.1%}",
                f"{tokens:,}",
            )
        )
    title = f"Masked tokens of {results[0].data}: cross-entropy in nats, accuracy"
    return f"{title}\n{table(rows)}\n{results[0].signature}"


def retrieval(results: Sequence[Result]) -> str:
    """The mean by layer, then all pairs in the best layer."""
    scores = [r for r in results if r.metric == "p@1"]
    first = scores[0].similarity
    pairs = [r for r in scores if _is_pair(r)]
    by_layer = {
        layer: {
            similarity: _mean([r.value for r in of_layer if r.similarity == similarity])
            for similarity in dict.fromkeys(r.similarity for r in of_layer)
        }
        for layer in sorted({r.layer for r in pairs})
        for of_layer in [[r for r in pairs if r.layer == layer]]
    }
    best = max(by_layer, key=lambda layer: by_layer[layer][first])
    shown = [r for r in scores if r.layer == best]
    data = list(dict.fromkeys(r.data for r in pairs))
    parts = [_layers(by_layer, best, data, pairs)]
    if len(data) > 1 and all(len(_languages(shown, name)) == 2 for name in data):
        signatures = [r.signature for r in shown if r.data not in data]
        parts.append("\n".join([_pairs(shown, data, list(by_layer[best])), *_once(signatures)]))
        return "\n\n".join(parts)
    for name in data:
        here, languages = [r for r in shown if r.data == name], _languages(shown, name)
        met = {r.languages for r in here if _is_pair(r)}
        if len(met) < len(languages) * (len(languages) - 1):
            parts.append(_with_pivot(name, here, list(by_layer[best])))
        else:
            parts.append(_matrix(name, [r for r in here if r.similarity == first]))
            if len(by_layer[best]) > 1:
                parts.append(_by_language(here, list(by_layer[best])))
        parts[-1] += "\n" + "\n".join(_once(r.signature for r in here))
    return "\n\n".join(parts)


def mining(results: Sequence[Result]) -> str:
    """Macro F1 by layer, then all pairs in the layer that is best on the development half."""
    macro = {(r.metric, r.layer): r.value for r in results if r.languages == (MACRO,)}
    layers = sorted({r.layer for r in results})
    best = max(layers, key=lambda layer: macro["dev_f1", layer])
    head = ("layer", *(f"{layer}{'*' if layer == best else ''}" for layer in layers))
    by_layer = [
        (name, *(f"{100 * macro[metric, layer]:.1f}" for layer in layers))
        for name, metric in (("F1 on dev", "dev_f1"), ("F1 on test", "f1"))
    ]
    shown = [r for r in results if r.layer == best]
    values = {(r.data, r.languages, r.metric): r for r in shown}
    rows = [("mixture", "pair", "gold", "precision", "recall", "F1", "threshold")]
    for data, languages in dict.fromkeys((r.data, r.languages) for r in shown):
        of = lambda metric: values[data, languages, metric].value  # noqa: B023, E731
        numbers = [f"{100 * of(metric):.1f}" for metric in ("precision", "recall", "f1")]
        if _is_pair(values[data, languages, "f1"]):
            gold = f"{values[data, languages, 'recall'].n:,}"
            end = (gold, *numbers, f"{of('threshold'):.3f}")
        else:
            end = ("", *numbers, "")
        rows.append((data, "-".join(languages), *end))
    return "\n".join(
        [
            "Bitext mining by ratio margin: macro F1 in % by layer (0 = embeddings)",
            table([head, *by_layer]),
            "* best on dev, shown below; thresholds are tuned on dev, scores are of test, in %",
            "",
            table(rows),
            *_once(r.signature for r in shown),
        ]
    )


def _layers(
    by_layer: dict[int, dict[str, float]], best: int, data: list[str], pairs: Sequence[Result]
) -> str:
    chances = {1 / r.n for r in pairs}
    chance = f"{max(chances):.2%}" if len(chances) == 1 else f"at most {max(chances):.2%}"
    head = ["layer", *(f"{layer}{'*' if layer == best else ''}" for layer in by_layer)]
    rows = [
        [f"P@1, {similarity}", *(f"{values[similarity]:.1%}" for values in by_layer.values())]
        for similarity in by_layer[best]
    ]
    if "margin" in by_layer[best]:
        errors = (f"{1 - values['margin']:.1%}" for values in by_layer.values())
        rows.append(["xSIM error", *errors])
    return (
        f"Sentence retrieval, {', '.join(data) if len(data) < 4 else f'{len(data)} mixtures'}: "
        f"mean over all ordered pairs by layer (0 = embeddings); chance {chance}\n"
        f"{table([head, *rows])}\n"
        "* best on this very test, shown below; choose a layer on other text before quoting it"
    )


def _matrix(data: str, results: Sequence[Result]) -> str:
    """Query languages down, searched languages across, means at the ends."""
    values = {r.languages: r.value for r in results}
    languages = _languages(results, data)

    def mean(pairs: list[tuple[str, str]]) -> str:
        return f"{100 * _mean([values[p] for p in pairs if p in values]):.1f}"

    rows = [("query ↓  searched →", *languages, "mean")]
    for a in languages:
        cells = [f"{100 * values[a, b]:.1f}" if a != b else "·" for b in languages]
        rows.append((a, *cells, mean([(a, b) for b in languages])))
    means = [mean([(a, b) for a in languages]) for b in languages]
    rows.append(("mean", *means, f"{100 * values[(MACRO,)]:.1f}"))
    n = next(r.n for r in results if _is_pair(r))
    title = f"{data}, P@1 by {results[0].similarity} in % of {n:,} sentences"
    return f"{title}, layer {results[0].layer}\n{table(rows)}"


def _with_pivot(data: str, results: Sequence[Result], similarities: Sequence[str]) -> str:
    """One line per language: with the language that all pairs share, in both directions."""
    values = {(r.languages, r.similarity): 100 * r.value for r in results}
    pairs = [r for r in results if _is_pair(r)]
    (pivot,) = set.intersection(*(set(r.languages) for r in pairs))
    rows = [("language", *(f"{s} {d} {pivot}" for s in similarities for d in "→←"))]
    for x in _languages(results, data):
        if x != pivot:
            cells = [values[p, s] for s in similarities for p in ((x, pivot), (pivot, x))]
            rows.append((x, *(f"{cell:.1f}" for cell in cells)))
    ends = ((MACRO, pivot), (pivot, MACRO))
    cells = [values[end, s] for s in similarities for end in ends]
    rows.append((MACRO, *(f"{cell:.1f}" for cell in cells)))
    title = f"{data}, P@1 in % of {pairs[0].n:,} sentences, layer {pairs[0].layer}"
    return f"{title}; an arrow goes from query to searched\n{table(rows)}"


def _by_language(results: Sequence[Result], similarities: Sequence[str]) -> str:
    """The mean of each language as the query's and as the one searched, by similarity."""
    values = {(r.languages, r.similarity): 100 * r.value for r in results}
    languages = sorted({r.languages[0] for r in results if r.languages[1:] == (MACRO,)})
    ends = [("query", lambda x: (x, MACRO)), ("searched", lambda x: (MACRO, x))]
    rows = [("language", *(f"{s}, {end}" for s in similarities for end, _ in ends))]
    for language in languages:
        cells = [values[key(language), s] for s in similarities for _, key in ends]
        rows.append((language, *(f"{cell:.1f}" for cell in cells)))
    cells = [values[(MACRO,), s] for s in similarities for _ in ends]
    rows.append((MACRO, *(f"{cell:.1f}" for cell in cells)))
    return f"P@1 in %, mean over the other languages\n{table(rows)}"


def _pairs(results: Sequence[Result], data: Sequence[str], similarities: Sequence[str]) -> str:
    """One line per mixture of two languages; a language that all have comes second."""
    values = {(r.data, r.languages, r.similarity): r for r in results}
    shared = set.intersection(*(set(_languages(results, name)) for name in data))
    rows = [("mixture", "pair", "sentences", *(f"{s} {d}" for s in similarities for d in "→←"))]
    rows[0] += ("chance",)
    columns = []
    for name in data:
        a, b = sorted(_languages(results, name), key=lambda x: (x in shared, x))
        scores = [values[name, pair, s] for s in similarities for pair in ((a, b), (b, a))]
        columns.append([r.value for r in scores])
        cells = [f"{100 * r.value:.1f}" for r in scores]
        rows.append((name, f"{a} → {b}", f"{scores[0].n:,}", *cells, f"{100 / scores[0].n:.2f}"))
    macro = [f"{100 * _mean(column):.1f}" for column in zip(*columns, strict=True)]
    rows.append((MACRO, "", "", *macro, ""))
    title = f"P@1 in %, layer {results[0].layer}; a pair's arrow goes from query to searched"
    return f"{title}, ← is the other way\n{table(rows)}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _once(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))


def _is_pair(result: Result) -> bool:
    return len(result.languages) == 2 and MACRO not in result.languages


def _languages(results: Sequence[Result], data: str) -> list[str]:
    pairs = [r for r in results if r.data == data and _is_pair(r)]
    return sorted({language for r in pairs for language in r.languages})
