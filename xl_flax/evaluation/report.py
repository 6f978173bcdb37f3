"""Results as tables, for a console of 80 columns and, where they are longer, for a file."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from xl_flax.data.unknown import MANY_UNKNOWN
from xl_flax.evaluation.results import MACRO, Result
from xl_flax.text_table import fits, legend, table, wrapped

ELSEWHERE = "All pairs: in the file named below"
UNKNOWN = "unknown"


def plain(results: Sequence[Result]) -> str:
    """A line for each result; where they are many, for each mean over languages."""
    text = _plain(results)
    if not fits(text):
        means = [r for r in results if r.languages == (MACRO,)]
        text = _plain(means or results[:40])
        text += f"\n{len(results):,} results in all: see results.jsonl"
    return "\n".join([text, *_once(r.signature for r in results)])


def _plain(results: Sequence[Result]) -> str:
    shares = [UNKNOWN] if any(r.unknown for r in results) else []
    rows = [("data", "layer", "languages", "metric", "value", "n", *shares)]
    for r in results:
        layer = "" if r.layer is None else str(r.layer)
        cells = (r.data, layer, "-".join(r.languages), r.metric, f"{r.value:.4f}", f"{r.n:,}")
        rows.append((*cells, *(_share(max(r.unknown) if r.unknown else None) for _ in shares)))
    return "\n".join([table(rows, left=(0, 2, 3), in_blocks=True), *_unknown_legend(results)])


def masked_lm(results: Sequence[Result]) -> str:
    """Per language: loss and accuracy of the model and of token frequencies."""
    values = {(r.languages[0], r.metric): r.value for r in results}
    counts = {r.languages[0]: r.n for r in results}
    unknown = _shares(results)
    languages = sorted(counts.keys() - {MACRO})
    rows = [("language", "loss", "by frequency", "accuracy", "by frequency", "masked", UNKNOWN)]
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
                _share(unknown.get(language)),
            )
        )
    return "\n".join(
        [
            f"Masked tokens of {results[0].data}",
            table(rows, in_blocks=True),
            legend(
                {
                    "loss": "cross-entropy in nats",
                    "accuracy": "share of the masked tokens that are found",
                    "by frequency": "what the frequencies of a language's tokens alone reach",
                }
            ),
            *_unknown_legend(results),
            results[0].signature,
        ]
    )


def retrieval(results: Sequence[Result]) -> str:
    """The mean by layer, then the pairs in the best layer, or the languages where they are many."""
    by_layer, best, shown = _best_layer(results)
    mixtures = _by_mixture(shown)
    parts = [_layers(by_layer, best, list(mixtures), results)]
    if _are_pairs(mixtures):
        signatures = [r.signature for r in shown if r.data not in mixtures]
        text = _pairs(mixtures, list(by_layer[best]))
        parts.append("\n".join([text, *_unknown_legend(shown), *_once(signatures)]))
    else:
        parts += [_mixture(name, own, list(by_layer[best]))[0] for name, own in mixtures.items()]
    return "\n\n".join(parts)


def retrieval_details(results: Sequence[Result]) -> str:
    """Each pair of languages in the best layer, where that is too long for the table."""
    by_layer, best, shown = _best_layer(results)
    mixtures = _by_mixture(shown)
    if _are_pairs(mixtures):
        return ""
    texts = [_mixture(name, own, list(by_layer[best]))[1] for name, own in mixtures.items()]
    return "\n\n".join(filter(None, texts))


def _mixture(data: str, results: Sequence[Result], similarities: Sequence[str]) -> tuple[str, str]:
    """For the console and for a file, where the first has no room for each pair."""
    end = "\n".join([*_unknown_legend(results), *_once(r.signature for r in results)])
    by_language = _by_language(data, results, similarities)
    if _pivot(results):
        return f"{by_language}\n{end}", ""
    matrices = [_matrix([r for r in results if r.similarity == s]) for s in similarities]
    if not fits(matrices[0]):
        return f"{by_language}\n{ELSEWHERE}\n{end}", "\n\n".join([*matrices, end])
    shown = [matrices[0], by_language] if len(similarities) > 1 else [matrices[0]]
    return "\n\n".join(shown) + f"\n{end}", ""


def mining(results: Sequence[Result]) -> str:
    """Macro F1 by layer, then all pairs in the layer that is best on the development half."""
    macro = {(r.metric, r.layer): r.value for r in results if r.languages == (MACRO,)}
    best, shown = _best_mining(results)
    by_layer = [("layer", "F1 on dev", "F1 on test")]
    for layer in sorted({r.layer for r in results}):
        numbers = [f"{100 * macro[metric, layer]:.1f}" for metric in ("dev_f1", "f1")]
        by_layer.append((f"{layer}{' *' if layer == best else '  '}", *numbers))
    pairs = _mined(shown)
    if not fits(pairs):
        pairs = _mined([r for r in shown if r.languages == (MACRO,)])
        pairs += f"\n{ELSEWHERE}"
    return "\n".join(
        [
            "Bitext mining by ratio margin: mean F1 in %, by layer (0 = embeddings)",
            table(by_layer, left=()),
            "* best on dev, shown below; thresholds are tuned on dev, scores are of test",
            "",
            pairs,
            *_unknown_legend(shown),
            *_once(r.signature for r in shown),
        ]
    )


def mining_details(results: Sequence[Result]) -> str:
    """Each pair in the layer that is best on the development half, where they are many."""
    _, shown = _best_mining(results)
    pairs = _mined(shown)
    if fits(pairs):
        return ""
    return "\n".join([pairs, *_unknown_legend(shown), *_once(r.signature for r in shown)])


def _best_mining(results: Sequence[Result]) -> tuple[int, list[Result]]:
    means = [r for r in results if (r.languages, r.metric) == ((MACRO,), "dev_f1")]
    best = max(sorted(means, key=lambda r: r.layer), key=lambda r: r.value).layer
    return best, [r for r in results if r.layer == best]


def _mined(shown: Sequence[Result]) -> str:
    values = {(r.data, r.languages, r.metric): r for r in shown}
    rows = [("mixture", "pair", "gold", "precision", "recall", "F1", "threshold", UNKNOWN)]
    for data, languages in dict.fromkeys((r.data, r.languages) for r in shown):
        of = lambda metric: values[data, languages, metric].value  # noqa: B023, E731
        numbers = [f"{100 * of(metric):.1f}" for metric in ("precision", "recall", "f1")]
        f1 = values[data, languages, "f1"]
        unknown = _share(max(f1.unknown) if f1.unknown else None)
        if _is_pair(f1):
            gold = f"{values[data, languages, 'recall'].n:,}"
            end = (gold, *numbers, f"{of('threshold'):.3f}", unknown)
        else:
            end = ("", *numbers, "", unknown)
        rows.append((data, "-".join(languages), *end))
    end = "in %; gold: pairs to be found; unknown: of the language that has more"
    return f"{table(rows, left=(0, 1), in_blocks=True)}\n{end}"


def _best_layer(results: Sequence[Result]) -> tuple[dict[int, dict[str, float]], int, list[Result]]:
    """Mean P@1 by layer and similarity, the best layer by the first of them, and its results."""
    scores = [r for r in results if r.metric == "p@1"]
    values: dict[int, dict[str, list[float]]] = {}
    for r in sorted(filter(_is_pair, scores), key=lambda r: r.layer):
        values.setdefault(r.layer, {}).setdefault(r.similarity, []).append(r.value)
    by_layer = {layer: {s: _mean(v) for s, v in own.items()} for layer, own in values.items()}
    best = max(by_layer, key=lambda layer: by_layer[layer][scores[0].similarity])
    return by_layer, best, [r for r in scores if r.layer == best]


def _layers(
    by_layer: dict[int, dict[str, float]], best: int, data: list[str], results: Sequence[Result]
) -> str:
    chances = {1 / r.n for r in results if _is_pair(r) and r.metric == "p@1"}
    chance = f"{max(chances):.2%}" if len(chances) == 1 else f"at most {max(chances):.2%}"
    errors = ["xSIM error"] if "margin" in by_layer[best] else []
    rows = [["layer", *by_layer[best], *errors]]
    for layer, values in by_layer.items():
        cells = [f"{value:.1%}" for value in values.values()]
        cells += [f"{1 - values['margin']:.1%}" for _ in errors]
        rows.append([f"{layer}{' *' if layer == best else '  '}", *cells])
    return "\n".join(
        [
            f"Sentence retrieval, {data[0] if len(data) == 1 else f'{len(data)} mixtures'}",
            f"P@1, mean over all ordered pairs, by layer (0 = embeddings); chance {chance}",
            table(rows, left=()),
            "* best on this very test, shown below: choose a layer on other text to quote it",
        ]
    )


def _matrix(results: Sequence[Result]) -> str:
    """Query languages down, searched languages across, means at the ends."""
    values = {r.languages: r.value for r in results}
    languages, unknown = _languages(results), _shares(results)

    def mean(pairs: list[tuple[str, str]]) -> str:
        return f"{100 * _mean([values[p] for p in pairs if p in values]):.1f}"

    rows = [("query", *languages, "mean", UNKNOWN)]
    for a in languages:
        cells = [f"{100 * values[a, b]:.1f}" if a != b else "·" for b in languages]
        mean_of_a = mean([(a, b) for b in languages])
        rows.append((a, *cells, mean_of_a, _share(unknown.get(a))))
    means = [mean([(a, b) for a in languages]) for b in languages]
    rows.append(("mean", *means, f"{100 * values[(MACRO,)]:.1f}", _share(unknown.get(MACRO))))
    r = next(filter(_is_pair, results))
    title = f"{r.data}, layer {r.layer}: P@1 by {r.similarity} in %, {r.n:,} sentences"
    return f"{title}\n{table(rows)}\nqueries down, the language that is searched across"


def _by_language(data: str, results: Sequence[Result], similarities: Sequence[str]) -> str:
    """A line per language: with the one that all pairs share, or its mean with all others."""
    values = {(r.languages, r.similarity): 100 * r.value for r in results}
    languages, unknown, pivot = _languages(results), _shares(results), _pivot(results)
    rows = [("language", *_arrows(similarities), UNKNOWN)]
    columns = []
    for x in languages:
        others = [pivot] if pivot else [y for y in languages if y != x]
        if x != pivot:
            both = [[(x, y) for y in others], [(y, x) for y in others]]
            cells = [_mean([values[p, s] for p in pairs]) for s in similarities for pairs in both]
            columns.append(cells)
            rows.append((x, *(f"{cell:.1f}" for cell in cells), _share(unknown.get(x))))
    cells = [f"{_mean(column):.1f}" for column in zip(*columns, strict=True)]
    rows.append((MACRO, *cells, _share(unknown.get(MACRO))))
    r = next(filter(_is_pair, results))
    return "\n".join(
        [
            f"{data}, layer {r.layer}: P@1 in %, {r.n:,} sentences, "
            + (f"with {pivot}" if pivot else "mean over the other languages"),
            table(rows, in_blocks=True),
            f"→ the language's sentences search {pivot or 'the others'}, ← they are searched",
        ]
    )


def _pairs(mixtures: Mapping[str, Sequence[Result]], similarities: Sequence[str]) -> str:
    """One line per mixture of two languages; a language that all have comes second."""
    languages = {name: _languages(results) for name, results in mixtures.items()}
    shared = set.intersection(*map(set, languages.values()))
    rows = [("mixture", "pair", "n", *_arrows(similarities), UNKNOWN)]
    columns, worst = [], []
    for name, results in mixtures.items():
        values = {(r.languages, r.similarity): r for r in results}
        a, b = sorted(languages[name], key=lambda x: (x in shared, x))
        scores = [values[pair, s] for s in similarities for pair in ((a, b), (b, a))]
        columns.append([r.value for r in scores])
        worst.append(max(_shares(results).values(), default=None))
        cells = [f"{100 * r.value:.1f}" for r in scores]
        mixture = name.rpartition("/")[0]
        rows.append((mixture, f"{a}-{b}", f"{scores[0].n:,}", *cells, _share(worst[-1])))
    macro = [f"{100 * _mean(column):.1f}" for column in zip(*columns, strict=True)]
    most = max((share for share in worst if share is not None), default=None)
    rows.append((MACRO, "", "", *macro, _share(most)))
    name, results = next(iter(mixtures.items()))
    return "\n".join(
        [
            f"Split {name.rpartition('/')[2]}, layer {results[0].layer}: P@1 in % of n sentences",
            table(rows, left=(0, 1), in_blocks=True),
            "→ the first language's sentences search the second's, ← the other way;",
            "chance: 1 in n; unknown: of the language that has more",
        ]
    )


def _arrows(similarities: Sequence[str]) -> Iterator[str]:
    for similarity in similarities:
        yield f"{similarity} →"
        yield "←"


def _shares(results: Iterable[Result]) -> dict[str, float]:
    """The share of unknown pieces of each language."""
    return {x: u for r in results if r.unknown for x, u in zip(r.languages, r.unknown, strict=True)}


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}{'!' if share > MANY_UNKNOWN else ' '}"


def _unknown_legend(results: Sequence[Result]) -> list[str]:
    shares = _shares(results)
    if not shares:
        return []
    lines = [f"{UNKNOWN}: pieces that the vocabulary lacks, in % of the text's; ! above 5 %"]
    many = [f"{x} {u:.1%}" for x, u in sorted(shares.items()) if u > MANY_UNKNOWN and x != MACRO]
    if many:
        lines.append(wrapped(f"! where pieces are unknown, scores say little: {', '.join(many)}"))
    return lines


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _once(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))


def _is_pair(result: Result) -> bool:
    return len(result.languages) == 2 and MACRO not in result.languages


def _by_mixture(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Those of each mixture; means over several mixtures belong to none."""
    data = dict.fromkeys(r.data for r in results if _is_pair(r))
    return {name: [r for r in results if r.data == name] for name in data}


def _are_pairs(mixtures: Mapping[str, Sequence[Result]]) -> bool:
    """Whether there are several mixtures, each of two languages."""
    return len(mixtures) > 1 and all(len(_languages(own)) == 2 for own in mixtures.values())


def _pivot(results: Sequence[Result]) -> str | None:
    """The language that all pairs share, where not all pairs are there."""
    met = [r.languages for r in results if _is_pair(r)]
    if len(set(met)) == len(_languages(results)) * (len(_languages(results)) - 1):
        return None
    (pivot,) = set.intersection(*map(set, met))
    return pivot


def _languages(results: Sequence[Result]) -> list[str]:
    return sorted({language for r in results if _is_pair(r) for language in r.languages})
