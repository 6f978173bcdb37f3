"""Results as tables, for a console of 80 columns and, where they are longer, for a file."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from xl_flax.data.unknown import MANY_UNKNOWN
from xl_flax.evaluation.results import MACRO, Result
from xl_flax.text_table import fits, legend, table, wrapped

T = TypeVar("T")

UNKNOWN = "unknown"


def plain(results: Sequence[Result]) -> str:
    """A line for each result; where they are many, for each mean over languages."""
    text = _plain(results)
    if not fits(text):
        means = [r for r in results if r.languages == (MACRO,)]
        text = _plain(means or results[:40])
        text += f"\n{len(results):,} results in all: see results.jsonl"
    return "\n".join([text, *once(r.signature for r in results)])


def _plain(results: Sequence[Result]) -> str:
    shares = [UNKNOWN] if any(r.unknown for r in results) else []
    models = ["model"] if any(r.model for r in results) else []
    rows = [("data", "layer", "languages", "metric", "value", "n", *shares, *models)]
    for r in results:
        layer = "" if r.layer is None else str(r.layer)
        value = f"{r.value:.4f}" + (f" ± {r.spread:.4f}" if r.seeds else "")
        cells = (r.data, layer, "-".join(r.languages), r.metric, value, f"{r.n:,}")
        cells += tuple(unknown_share(max(r.unknown) if r.unknown else None) for _ in shares)
        rows.append((*cells, *(r.model or "" for _ in models)))
    return "\n".join([table(rows, left=(0, 2, 3), in_blocks=True), *unknown_legend(results)])


def masked_lm(results: Sequence[Result]) -> str:
    """Per language: loss and accuracy of the model and of token frequencies."""
    values = {(r.languages[0], r.metric): r.value for r in results}
    counts = {r.languages[0]: r.n for r in results}
    unknown = unknown_shares(results)
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
                unknown_share(unknown.get(language)),
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
            *unknown_legend(results),
            results[0].signature,
        ]
    )


def unknown_shares(results: Iterable[Result]) -> dict[str, float]:
    """The share of unknown pieces of each language."""
    return {x: u for r in results if r.unknown for x, u in zip(r.languages, r.unknown, strict=True)}


def unknown_share(share: float | None) -> str:
    """As a cell of a table, flagged where it is large."""
    return "-" if share is None else f"{share:.1%}{'!' if share > MANY_UNKNOWN else ' '}"


def unknown_legend(results: Sequence[Result]) -> list[str]:
    """What the flags mean, and the languages that they concern."""
    shares = unknown_shares(results)
    if not shares:
        return []
    lines = [f"{UNKNOWN}: pieces that the vocabulary lacks, in % of the text's; ! above 5 %"]
    many = [f"{x} {u:.1%}" for x, u in sorted(shares.items()) if u > MANY_UNKNOWN and x != MACRO]
    if many:
        lines.append(wrapped(f"! where pieces are unknown, scores say little: {', '.join(many)}"))
    return lines


def once(values: Iterable[T]) -> list[T]:
    """The different values in their order."""
    return list(dict.fromkeys(values))
