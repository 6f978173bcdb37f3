"""Results as tables for the console."""

from collections.abc import Sequence

from xl_flax.evaluation.results import MACRO, Result


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligns columns: the first to the left, the others to the right; row 0 is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


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
    by_data: dict[str, list[Result]] = {}
    for result in results:
        by_data.setdefault(result.data, []).append(result)
    mean: dict[int, list[float]] = {}
    for result in results:
        if result.languages == (MACRO,):
            mean.setdefault(result.layer, []).append(result.value)
    by_layer = {layer: sum(v) / len(v) for layer, v in sorted(mean.items())}
    best = max(by_layer, key=by_layer.get)
    shown = {data: [r for r in rs if r.layer == best] for data, rs in by_data.items()}
    pairs_only = all(len(_languages(rs)) == 2 for rs in shown.values()) and len(shown) > 1
    parts = [_layers(by_layer, best, shown)]
    if pairs_only:
        parts.append(_pairs(shown))
    else:
        parts += [f"{_matrix(data, rs)}\n{rs[0].signature}" for data, rs in shown.items()]
    return "\n\n".join(parts)


def _layers(by_layer: dict[int, float], best: int, shown: dict[str, list[Result]]) -> str:
    chances = {1 / r.n for rs in shown.values() for r in rs if r.metric == "p@1" and _is_pair(r)}
    chance = f"{max(chances):.2%}" if len(chances) == 1 else f"at most {max(chances):.2%}"
    row = ["P@1", *(f"{value:.1%}" for value in by_layer.values())]
    head = ["layer", *(f"{layer}{'*' if layer == best else ''}" for layer in by_layer)]
    return (
        f"Sentence retrieval, {', '.join(shown) if len(shown) < 4 else f'{len(shown)} mixtures'}: "
        f"mean over all ordered pairs by layer (0 = embeddings); chance {chance}\n"
        f"{table([head, row])}\n"
        "* best on this very test, shown below; choose a layer on other text before quoting it"
    )


def _matrix(data: str, results: Sequence[Result]) -> str:
    """Query languages down, searched languages across, means at the ends."""
    values = {r.languages: r.value for r in results if r.metric == "p@1"}
    languages = _languages(results)

    def mean(pairs: list[tuple[str, str]]) -> str:
        found = [values[p] for p in pairs if p in values]
        return f"{100 * sum(found) / len(found):.1f}"

    rows = [("query ↓  searched →", *languages, "mean")]
    for a in languages:
        cells = [f"{100 * values[a, b]:.1f}" if a != b else "·" for b in languages]
        rows.append((a, *cells, mean([(a, b) for b in languages])))
    means = [mean([(a, b) for a in languages]) for b in languages]
    rows.append(("mean", *means, f"{100 * values[(MACRO,)]:.1f}"))
    n = next(r.n for r in results if _is_pair(r))
    return f"{data}, P@1 in % of {n:,} sentences, layer {results[0].layer}\n{table(rows)}"


def _pairs(shown: dict[str, list[Result]]) -> str:
    """One line per mixture of two languages."""
    rows = [("mixture", "pair", "sentences", "P@1 →", "P@1 ←", "mean", "chance")]
    means = []
    for data, results in shown.items():
        a, b = _languages(results)
        values = {r.languages: r.value for r in results if r.metric == "p@1"}
        n = next(r.n for r in results if r.languages == (a, b) and r.metric == "p@1")
        numbers = [values[a, b], values[b, a], (values[a, b] + values[b, a]) / 2]
        means.append(numbers)
        cells = [f"{100 * value:.1f}" for value in numbers]
        rows.append((data, f"{a} → {b}", f"{n:,}", *cells, f"{100 / n:.2f}"))
    macro = [f"{100 * sum(column) / len(column):.1f}" for column in zip(*means, strict=True)]
    rows.append((MACRO, "", "", *macro, ""))
    return table(rows)


def _is_pair(result: Result) -> bool:
    return len(result.languages) == 2


def _languages(results: Sequence[Result]) -> list[str]:
    return sorted({language for r in results if _is_pair(r) for language in r.languages})
