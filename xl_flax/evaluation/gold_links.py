"""Sentences whose words are linked: what is read of them, and links without a model.

Shapes: M words of a sentence, N of its translation, V pieces of the vocabulary.
"""

import collections
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from xl_flax.data.features import Example
from xl_flax.data.links import Links, read_links
from xl_flax.data.prepare import DatasetSpec
from xl_flax.errors import UserError
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.results import MACRO
from xl_flax.text_table import wrapped

NEARER = 1e-6  # what the distance from the diagonal takes off: it parts equal similarities only

Bags = list[np.ndarray]  # int[n], the pieces of each word of a sentence


def read(spec: DatasetSpec, context: Context) -> dict[str, list[Links]]:
    """The gold links of the examples, by task, in the order of `Context.examples`.

    Raises:
      UserError: a task is none of linked words, two have the same languages, or links do not fit
        the words.
    """
    _, manifests, _ = context.caches[spec]
    where = f"mixture {spec.mixture!r}, split {spec.split!r}"
    pairs = collections.Counter(tuple(manifest.languages) for manifest in manifests.values())
    for task, manifest in manifests.items():
        if manifest.num_texts != 2 or not {"word", "links"} <= {*manifest.features}:
            raise UserError(
                f"{where}: task {task!r} has not the features 'word' and 'links' of two texts: "
                "make it with tasks.alignment.add_alignment_task"
            )
        if pairs[tuple(manifest.languages)] > 1:
            raise UserError(
                f"{where} has several tasks of {'-'.join(manifest.languages)}: give the evaluation "
                "a list of mixtures in each of which a pair of languages is there once"
            )
    gold = {task: [*map(_links, examples)] for task, examples in context.examples(spec).items()}
    for task, own in gold.items():
        if not any(links.sure for links in own):
            raise UserError(f"{where}: task {task!r} has no sure links that could be found")
    return gold


def report_cut(spec: DatasetSpec, context: Context, length: int) -> None:
    """Says how many sentences are longer than a model's input, and which pairs are left out."""
    dropped = sum(sum(m.dropped.values()) for m in context.caches[spec].manifests.values())
    sizes = [len(t) for own in context.examples(spec).values() for e in own for t in e.texts]
    cut = sum(size > length - 2 for size in sizes)
    for count, what in (
        (cut, f"sentences longer than {length} tokens were cut, and words beyond have no links"),
        (dropped, "pairs are too long or empty and left out"),
    ):
        if count:
            print(wrapped(f"{spec.mixture}/{spec.split}: {count:,} {what}"))


def unknown(specs: Sequence[DatasetSpec], context: Context) -> dict[str, float]:
    """The share of unknown pieces by language, and that of the worst as "macro"."""

    def count() -> dict[str, float]:
        texts: dict[str, list[np.ndarray]] = {}
        for spec in specs:
            for task, examples in context.examples(spec).items():
                for k, language in enumerate(context.caches[spec].manifests[task].languages):
                    texts.setdefault(language, []).extend(e.texts[k] for e in examples)
        unk = context.vocabulary.special.unk
        shares = {k: float((np.concatenate(own) == unk).mean()) for k, own in texts.items()}
        return shares | {MACRO: max(shares.values())}

    return context.once(("unknown of links", tuple(specs)), count)


def bags(example: Example) -> tuple[Bags, Bags]:
    """The pieces of the words of both sentences."""
    return tuple(
        np.split(text, np.flatnonzero(np.diff(word)) + 1)
        for text, word in zip(example.texts, example.features["word"], strict=True)
    )


def idf(sentences: Iterable[Bags], vocab_size: int) -> np.ndarray:
    """float64[V]: ln((1 + n) / (1 + df)) + 1, df of all n words have the piece."""
    df_V, n = np.zeros(vocab_size), 0
    for words in sentences:
        n += len(words)
        for word in words:
            df_V[np.unique(word)] += 1
    return np.log((1 + n) / (1 + df_V)) + 1


def by_pieces(
    x: Bags, y: Bags, idf_V: np.ndarray, method: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Links by the cosine of words as counts of pieces times `idf_V`; none without a common piece.

    Of words that are equally near, as repeated ones, those as far through the sentences are linked.

    Returns:
      bool[M, N].
    """
    places = np.unique(np.concatenate([*x, *y]))
    cos_MxN = _vectors(x, places, idf_V) @ _vectors(y, places, idf_V).T
    through = [(np.arange(len(side)) + 0.5) / len(side) for side in (x, y)]
    apart_MxN = np.abs(through[0][:, None] - through[1])
    return method((1 + cos_MxN) / 2 - NEARER * apart_MxN) & (cos_MxN > 0)


def _vectors(words: Bags, places: np.ndarray, idf_V: np.ndarray) -> np.ndarray:
    vectors = np.zeros((len(words), len(places)))
    for own, word in zip(vectors, words, strict=True):
        np.add.at(own, np.searchsorted(places, word), idf_V[word])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _links(example: Example) -> Links:
    sizes = [1 + int(word.max(initial=-1)) for word in example.features["word"]]
    try:
        if not all(sizes):
            raise UserError("a text has no words")
        return read_links(example.features["links"], *sizes)
    except UserError as error:
        raise UserError(f"example {example.number} of linked words: {error}") from error
