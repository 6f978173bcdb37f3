"""What labelled tasks are made of: texts with a label, and words with a label each.

A module of your own, for sentence pairs in a TSV with a header and for tagged words in columns with
blank lines between sentences, needs only this one:

    from tasks import labelled

    ANSWERS = ("entailment", "neutral", "contradiction")
    table = labelled.LabelledFiles(
        {"train": "nli/bre.train.tsv", "test": "nli/bre.test.tsv"},
        labelled.columns(ANSWERS, texts=("premise", "hypothesis"), label="answer"),
    )
    labelled.add_labelled_task("nli_bre", ("bre", "bre"), table, ANSWERS)

    TAGS = ("NOUN", "VERB", "X")
    words = labelled.WordFiles({"train": "pos/bre.txt"}, TAGS)
    labelled.add_word_task("pos_bre", "bre", words, TAGS)

Batches then hold the feature "label": a number per example, or one at each word's first piece.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import seqio
import tensorflow as tf

from tasks import text
from tasks.labelled_files import (
    LabelledFiles,
    TaggedFiles,
    WordFiles,
    check_label,
    columns,
    split_words,
    unknown_label,
)
from xl_flax.data import vocabulary
from xl_flax.errors import UserError

__all__ = [
    "Feature",
    "LabelledFiles",
    "TaggedFiles",
    "WordFiles",
    "add_labelled_task",
    "add_word_task",
    "check_label",
    "columns",
    "split_words",
]


@dataclasses.dataclass(frozen=True)
class Feature(seqio.Feature):
    """A feature that travels with the tokens, for `output_features` of any task.

    `kind` and `labels` are those of `xl_flax.data.features.FeatureSpec`. `rank` is 0 for "example"
    and "text", 1 for "span" (two numbers), and that of "tokens" for "token".
    """

    vocabulary: seqio.Vocabulary = dataclasses.field(
        default_factory=lambda: seqio.PassThroughVocabulary(0)
    )
    add_eos: bool = False
    rank: int = 0
    kind: str = "example"
    labels: tuple[str, ...] = ()


def add_labelled_task(
    name: str,
    language: str | Sequence[str],
    source: seqio.DataSource,
    labels: Sequence[str],
    *,
    ids: bool = False,
    preprocessors: Sequence[Callable[[tf.data.Dataset], tf.data.Dataset]] = (),
) -> seqio.Task:
    """Registers a task on texts with a label for each example.

    Args:
      name: the task's name, unique among all tasks.
      language: of the text, or of each of K texts, as in ("eng", "eng").
      source: yields {"text": string or string [K], "label": its name or number}, and with `ids`
        also "id"; `LabelledFiles`, or any seqio source.
      labels: their names; a label's number is its place among them.
      ids: whether examples have an "id", a string that the cache keeps.
      preprocessors: seqio preprocessors that rewrite or drop examples; their results must have what
        a source yields.

    Returns:
      The task, whose examples are {"tokens": int32 [n] or ragged [K, None], "language": string or
      string [K], "label": int32} and perhaps "id".
    """
    languages = (language,) if isinstance(language, str) else tuple(language)
    rank = 1 if len(languages) == 1 else 2
    label = Feature(labels=tuple(labels))
    tokens = seqio.Feature(text.RunVocabulary(), add_eos=False, rank=rank)
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            *preprocessors,
            functools.partial(
                set_label, task=name, languages=languages, labels=label.labels, ids=ids
            ),
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
            seqio.CacheDatasetPlaceholder(),
        ],
        output_features={"tokens": tokens, "label": label, **_identifier(ids)},
    )


def set_label(
    dataset: tf.data.Dataset,
    task: str,
    languages: tuple[str, ...],
    labels: tuple[str, ...],
    ids: bool,
) -> tf.data.Dataset:
    """A preprocessor: the texts as "tokens", their languages, and the label's number."""
    wanted = ("text", "label", "id") if ids else ("text", "label")
    check_keys(dataset, task, wanted)

    def convert(example):
        texts = tf.ensure_shape(tf.reshape(example["text"], [-1]), [len(languages)])
        alone = len(languages) == 1
        converted = {
            "tokens": texts[0] if alone else texts,
            "language": tf.constant(languages[0] if alone else languages),
            "label": label_numbers(example["label"], labels),
        }
        return converted | _given_id(example, ids)

    return dataset.map(convert)


def _identifier(ids: bool) -> dict[str, Feature]:
    return {"id": Feature(kind="text", dtype=tf.string)} if ids else {}


def _given_id(example: dict[str, tf.Tensor], ids: bool) -> dict[str, tf.Tensor]:
    return {"id": example["id"]} if ids else {}


def label_numbers(values: tf.Tensor, labels: tuple[str, ...]) -> tf.Tensor:
    """Labels as numbers int32, of the same shape; numbers stay as they are."""
    if values.dtype != tf.string:
        return tf.cast(values, tf.int32)
    find = functools.partial(_find_labels, labels)
    return tf.ensure_shape(tf.numpy_function(find, [values], tf.int32), values.shape)


def _find_labels(labels: tuple[str, ...], values: np.ndarray) -> np.ndarray:
    numbers = {label.encode(): number for number, label in enumerate(labels)}
    names = np.asarray(values, object)
    for value in names.flat:
        if value not in numbers:
            raise UserError(unknown_label(value.decode(errors="replace"), labels))
    return np.array([numbers[value] for value in names.flat], np.int32).reshape(names.shape)


def check_keys(dataset: tf.data.Dataset, task: str, wanted: Sequence[str]) -> None:
    """Raises a UserError that names the task unless its examples have these keys."""
    if missing := [key for key in wanted if key not in dataset.element_spec]:
        raise UserError(
            f"task {task!r}: its examples have {', '.join(dataset.element_spec)}, but no "
            f"{missing[0]!r}: a preprocessor must make it"
        )


# --- Words -----------------------------------------------------------------------------------


def add_word_task(
    name: str,
    language: str,
    source: seqio.DataSource,
    labels: Sequence[str],
    *,
    ids: bool = False,
    preprocessors: Sequence[Callable[[tf.data.Dataset], tf.data.Dataset]] = (),
) -> seqio.Task:
    """Registers a task on words with a label each.

    Words are tokenised one by one, as if spaces stood between them; one without any piece becomes
    the unknown token.

    Args:
      name: the task's name, unique among all tasks.
      language: what the language is called.
      source: yields {"words": string [n], "labels": names or numbers [n]}, and with `ids` also
        "id"; `WordFiles`, or any seqio source.
      labels: their names; a label's number is its place among them.
      ids: whether sentences have an "id", a string that the cache keeps.
      preprocessors: seqio preprocessors that rewrite or drop examples; their results must have what
        a source yields.

    Returns:
      The task, whose examples are {"tokens": int32 [t], "language": string, "word": int32 [t], the
      number of each token's word in the sentence, "label": int32 [t], that of its word at the first
      piece of a word and -1 elsewhere} and perhaps "id".
    """
    label = Feature(kind="token", rank=1, labels=tuple(labels))
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            *preprocessors,
            functools.partial(
                tokenize_words, task=name, language=language, labels=label.labels, ids=ids
            ),
            seqio.CacheDatasetPlaceholder(),
        ],
        output_features={
            "tokens": seqio.Feature(text.RunVocabulary(), add_eos=False),
            "word": Feature(kind="token", rank=1),
            "label": label,
            **_identifier(ids),
        },
    )


def tokenize_words(
    dataset: tf.data.Dataset, task: str, language: str, labels: tuple[str, ...], ids: bool
) -> tf.data.Dataset:
    """A preprocessor: the pieces of the words as "tokens", and what belongs to each piece."""
    check_keys(dataset, task, ("words", "labels", "id") if ids else ("words", "labels"))

    def convert(example):
        numbers = label_numbers(example["labels"], labels)
        arrays = tf.numpy_function(_pieces, [example["words"], numbers], [tf.int32] * 3)
        names = ("tokens", "word", "label")
        features = {k: tf.ensure_shape(v, [None]) for k, v in zip(names, arrays, strict=True)}
        return features | {"language": tf.constant(language)} | _given_id(example, ids)

    return dataset.map(convert)


def _pieces(words: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if len(words) != len(labels):
        raise UserError(f"{len(words)} words, but {len(labels)} labels: each word needs one")
    pieces = encode_words(vocabulary.run_vocabulary(), [word.decode() for word in words])
    sizes = [len(ids) for ids in pieces]
    tokens = np.array([i for ids in pieces for i in ids], np.int32)
    at_first = np.full(len(tokens), -1, np.int32)
    at_first[np.cumsum([0, *sizes[:-1]], dtype=int)[: len(sizes)]] = labels
    return tokens, np.repeat(np.arange(len(sizes), dtype=np.int32), sizes), at_first


def encode_words(vocab: vocabulary.Vocabulary, words: Sequence[str]) -> list[list[int]]:
    """The ids of each word's pieces, at least one."""
    # SentencePiece puts a space before every text; tokenizers want to see it.
    space = "" if isinstance(vocab, vocabulary.SentencePieceVocabulary) else " "
    spaced = (word if i == 0 else space + word for i, word in enumerate(words))
    return [vocab.encode(word) or [vocab.special.unk] for word in spaced]
