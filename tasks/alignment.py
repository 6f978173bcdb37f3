"""What tasks on word alignment are made of: two sentences in words, and which words are linked.

A module of your own, here for one TSV with the columns sentence, translation and links, as in
"0-0 1-2 1p3" (`xl_flax/data/links.py`), words set apart by spaces, needs only this one:

    from tasks import alignment, text

    files = alignment.AlignedFiles({"validation": "bre-fra.dev.tsv", "test": "bre-fra.test.tsv"})
    alignment.add_alignment_task("alignment_bre_fra", ("bre", "fra"), files)

A fourth column may hold links that are only possible. Examples then have the features "word", the
number of each token's word, and "links". They are measured by `WordAlignment`.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from tasks import text
from tasks.labelled import Feature, encode_words
from xl_flax.data import vocabulary
from xl_flax.data.links import read_links, write_links
from xl_flax.errors import UserError


def add_alignment_task(
    name: str,
    languages: tuple[str, str],
    source: seqio.DataSource,
    *,
    preprocessors: Sequence[Callable[[tf.data.Dataset], tf.data.Dataset]] = (),
) -> seqio.Task:
    """Registers a task on sentences and their translations whose words are linked.

    Args:
      name: the task's name, unique among all tasks.
      languages: what the two languages are called, in the order of the texts.
      source: yields {"text": string [3]}: a sentence and its translation, words set apart by
        spaces, and their links; `AlignedFiles`, or any seqio source.
      preprocessors: seqio preprocessors that rewrite or drop examples; their results must have
        "text".

    Returns:
      The task, whose examples are {"tokens": ragged int32 [2, None], "language": string [2],
      "word": ragged int32 [2, None], the number of each token's word, "links": string}.
    """
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            *preprocessors,
            functools.partial(tokenize_words, task=name, languages=tuple(languages)),
            seqio.CacheDatasetPlaceholder(),
        ],
        output_features={
            "tokens": seqio.Feature(text.RunVocabulary(), add_eos=False, rank=2),
            "word": Feature(kind="token", rank=2),
            "links": Feature(kind="text", dtype=tf.string),
        },
    )


def tokenize_words(
    dataset: tf.data.Dataset, task: str, languages: tuple[str, str]
) -> tf.data.Dataset:
    """A preprocessor: the pieces of both sentences' words, and the number of each piece's word."""
    shape = dataset.element_spec["text"].shape if "text" in dataset.element_spec else None
    if shape is None or not shape.is_compatible_with([3]):
        raise UserError(
            f"task {task!r}: its examples need 'text', three strings: a sentence, its translation, "
            "and the links of their words"
        )

    def convert(example):
        sentences = tf.ensure_shape(example["text"], [3])[:2]
        arrays = tf.numpy_function(_pieces, [sentences], [tf.int32] * 3)
        tokens, word, sizes = (tf.ensure_shape(array, [None]) for array in arrays)
        sizes = tf.ensure_shape(sizes, [2])
        return {
            "tokens": tf.RaggedTensor.from_row_lengths(tokens, sizes),
            "word": tf.RaggedTensor.from_row_lengths(word, sizes),
            "language": tf.constant(languages),
            "links": example["text"][2],
        }

    return dataset.map(convert)


def _pieces(sentences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens of both sentences, the numbers of their words, and each sentence's tokens."""
    vocab = vocabulary.run_vocabulary()
    tokens, word, sizes = [], [], []
    for sentence in sentences:
        pieces = encode_words(vocab, sentence.decode().split())
        tokens += itertools.chain.from_iterable(pieces)
        word += [number for number, own in enumerate(pieces) for _ in own]
        sizes.append(sum(map(len, pieces)))
    return np.array(tokens, np.int32), np.array(word, np.int32), np.array(sizes, np.int32)


class AlignedFiles(text.Files):
    """Files of aligned words: {"text": string [3]}, a sentence, its translation and links."""

    def __init__(
        self,
        paths: Mapping[str, str | Sequence[str]],
        read: Callable[[Sequence[str], str], Iterator[tuple[str, ...]]] | None = None,
    ):
        """The source.

        Args:
          paths: the files of each split. Paths that are not absolute start at XL_FLAX_DATA_DIR,
            which is looked up when the files are read.
          read: a function of (all paths of a split, split) that yields sentence, translation and
            links; by default `read_columns`.
        """
        super().__init__(paths, read or read_columns)


def read_columns(paths: Sequence[str], split: str) -> Iterator[tuple[str, str, str]]:
    """Yields what TSV files hold: sentence, translation, links, and possible links if any.

    Raises:
      UserError: a column is missing, a sentence has no words, or links are none; names file and
        line.
    """
    del split
    for path in paths:
        for number, line in text.numbered_lines(path):
            cells = line.split("\t")
            if len(cells) not in (3, 4):
                raise UserError(
                    f"{path}, line {number} has {len(cells)} columns set apart by tabs: expected a "
                    "sentence, its translation, their links, and perhaps possible links"
                )
            yield checked(f"{path}, line {number}", *cells)


def read_numbered(paths: Sequence[str], split: str) -> Iterator[tuple[str, str, str]]:
    """Yields what three files hold in SimAlign's format: sentences, translations, links.

    Each line begins with the pair's number and a tab; pairs without links are left out.

    Raises:
      UserError: a line has no number or one that was there before, or links are none.
    """
    del split
    sentences, translations, links = (dict(_by_number(path)) for path in paths)
    for number, (line, gold) in links.items():
        where = f"{paths[2]}, line {line}"
        if number not in sentences or number not in translations:
            raise UserError(f"{where}: there is no pair {number!r} in {paths[0]} and {paths[1]}")
        yield checked(where, sentences[number][1], translations[number][1], gold)


def _by_number(path: str) -> Iterator[tuple[str, tuple[int, str]]]:
    seen = set()
    for line, content in text.numbered_lines(path):
        number, tab, rest = content.partition("\t")
        if not tab or number in seen:
            raise UserError(
                f"{path}, line {line}: expected a number of its own, a tab and text, not "
                f"{content[:40]!r}"
            )
        seen.add(number)
        yield number, (line, rest)


def checked(
    where: str, sentence: str, translation: str, links: str, possible: str = ""
) -> tuple[str, str, str]:
    """A pair with its links, those that are only possible among them.

    Raises:
      UserError: a sentence has no words, or links do not fit; begins with `where`.
    """
    sizes = len(sentence.split()), len(translation.split())
    if not all(sizes):
        raise UserError(f"{where}: a sentence or its translation has no words")
    try:
        sure, more = (read_links(own, *sizes) for own in (links, possible))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return sentence, translation, write_links(sure.sure, sure.possible | more.possible)
