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
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from tasks import text
from xl_flax.data import vocabulary
from xl_flax.errors import UserError


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
    identifier = {"id": Feature(kind="text", dtype=tf.string)} if ids else {}
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
        output_features={"tokens": tokens, "label": label, **identifier},
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
        return converted | ({"id": example["id"]} if ids else {})

    return dataset.map(convert)


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
            raise UserError(_unknown(value.decode(errors="replace"), labels))
    return np.array([numbers[value] for value in names.flat], np.int32).reshape(names.shape)


def _unknown(label: str, labels: Sequence[str]) -> str:
    known = ", ".join(labels)
    return f"label {label!r} is none of {known}" if label else f"there is no label; known: {known}"


def check_keys(dataset: tf.data.Dataset, task: str, wanted: Sequence[str]) -> None:
    """Raises a UserError that names the task unless its examples have these keys."""
    if missing := [key for key in wanted if key not in dataset.element_spec]:
        raise UserError(
            f"task {task!r}: its examples have {', '.join(dataset.element_spec)}, but no "
            f"{missing[0]!r}: a preprocessor must make it"
        )


# --- Files of texts --------------------------------------------------------------------------


def columns(
    labels: Sequence[str],
    *,
    texts: Sequence[int | str],
    label: int | str,
    id: int | str | None = None,
) -> Callable[[Sequence[str], str], Iterator[tuple[str, ...]]]:
    """How `LabelledFiles` reads TSV files without quotes.

    Args:
      labels: the names that may stand in the label's column.
      texts: the columns of the texts: numbers from 0, or names if the first line is a header.
      label: the label's column.
      id: the identifier's column, None for none.
    """
    return functools.partial(
        read_columns, labels=tuple(labels), texts=tuple(texts), label=label, id=id
    )


def read_columns(
    paths: Sequence[str],
    split: str,
    labels: tuple[str, ...],
    texts: tuple[int | str, ...],
    label: int | str,
    id: int | str | None,
) -> Iterator[tuple[str, ...]]:
    """Yields the texts, the label and the identifier ("" if there is none) of each line.

    Raises:
      UserError: a column is missing, or a label is missing or unknown; names file and line.
    """
    del split
    wanted = [*texts, label, *([] if id is None else [id])]
    for path in paths:
        lines, places = text.numbered_lines(path), wanted
        if any(isinstance(column, str) for column in wanted):
            header = next(lines, (1, ""))[1].split("\t")
            if missing := [column for column in wanted if column not in header]:
                raise UserError(
                    f"{path}, line 1: there is no column {missing[0]!r} among {', '.join(header)}"
                )
            places = [header.index(column) for column in wanted]
        for number, line in lines:
            cells = line.split("\t")
            if not line.strip():
                continue
            if len(cells) <= max(places):
                raise UserError(
                    f"{path}, line {number} has {len(cells)} columns set apart by tabs: expected "
                    f"{max(places) + 1} at least"
                )
            row = [cells[place] for place in places]
            check_label(path, number, row[len(texts)], labels)
            yield (*row, "") if id is None else tuple(row)


def check_label(path: str, line: int, label: str, labels: Sequence[str]) -> None:
    """Raises a UserError that names file and line unless the label is one of those known."""
    if label not in labels:
        raise UserError(f"{path}, line {line}: {_unknown(label, labels)}")


class LabelledFiles(text.Files):
    """Files of labelled texts: {"text": string [K], "label": string, "id": string}."""

    def __init__(
        self,
        paths: Mapping[str, str | Sequence[str]],
        read: Callable[[Sequence[str], str], Iterator[tuple[str, ...]]],
    ):
        """The source.

        Args:
          paths: the files of each split. Paths that are not absolute start at XL_FLAX_DATA_DIR,
            which is looked up when the files are read.
          read: a function of (all paths of a split, split) that yields the K texts, the label and
            the identifier of each example; `columns` makes one for TSV files.
        """
        super().__init__(paths, read)

    def get_dataset(self, *args, **options) -> tf.data.Dataset:
        """A dataset of the examples, in the order of the files."""
        rows = super().get_dataset(*args, **options)
        return rows.map(
            lambda row: {"text": row["text"][:-2], "label": row["text"][-2], "id": row["text"][-1]}
        )


# --- Words -----------------------------------------------------------------------------------


def add_word_task(
    name: str,
    language: str,
    source: seqio.DataSource,
    labels: Sequence[str],
    *,
    preprocessors: Sequence[Callable[[tf.data.Dataset], tf.data.Dataset]] = (),
) -> seqio.Task:
    """Registers a task on words with a label each.

    Words are tokenised one by one, as if spaces stood between them; one without any piece becomes
    the unknown token.

    Args:
      name: the task's name, unique among all tasks.
      language: what the language is called.
      source: yields {"words": string [n], "labels": names or numbers [n]}; `WordFiles`, or any
        seqio source.
      labels: their names; a label's number is its place among them.
      preprocessors: seqio preprocessors that rewrite or drop examples; their results must have what
        a source yields.

    Returns:
      The task, whose examples are {"tokens": int32 [t], "language": string, "word": int32 [t], the
      number of each token's word in the sentence, "label": int32 [t], that of its word at the first
      piece of a word and -1 elsewhere}.
    """
    label = Feature(kind="token", rank=1, labels=tuple(labels))
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            *preprocessors,
            functools.partial(tokenize_words, task=name, language=language, labels=label.labels),
            seqio.CacheDatasetPlaceholder(),
        ],
        output_features={
            "tokens": seqio.Feature(text.RunVocabulary(), add_eos=False),
            "word": Feature(kind="token", rank=1),
            "label": label,
        },
    )


def tokenize_words(
    dataset: tf.data.Dataset, task: str, language: str, labels: tuple[str, ...]
) -> tf.data.Dataset:
    """A preprocessor: the pieces of the words as "tokens", and what belongs to each piece."""
    check_keys(dataset, task, ("words", "labels"))

    def convert(example):
        numbers = label_numbers(example["labels"], labels)
        arrays = tf.numpy_function(_pieces, [example["words"], numbers], [tf.int32] * 3)
        names = ("tokens", "word", "label")
        features = {k: tf.ensure_shape(v, [None]) for k, v in zip(names, arrays, strict=True)}
        return features | {"language": tf.constant(language)}

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


def split_words(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """A preprocessor: {"text": lines of a word, a tab and its label} as words and labels."""

    def convert(example):
        cells = tf.strings.split(tf.strings.split(example["text"], "\n"), "\t")
        cells = cells.to_tensor(shape=[None, 2])
        return {"words": cells[:, 0], "labels": cells[:, 1]}

    return dataset.map(convert)


class WordFiles(text.Files):
    """Files of words and their labels in columns: {"words": string [n], "labels": string [n]}.

    One word in a line, blank lines between sentences; columns stand apart by tabs, or by spaces in
    lines without a tab.
    """

    def __init__(
        self,
        paths: Mapping[str, str | Sequence[str]],
        labels: Sequence[str],
        *,
        word: int = 0,
        label: int = -1,
    ):
        """The source.

        Args:
          paths: the files of each split. Paths that are not absolute start at XL_FLAX_DATA_DIR,
            which is looked up when the files are read.
          labels: the names that may stand in the label's column.
          word: the word's column, from 0; from -1 backwards.
          label: the label's column.
        """
        read = functools.partial(read_words, labels=tuple(labels), word=word, label=label)
        super().__init__(paths, read)

    def get_dataset(self, *args, **options) -> tf.data.Dataset:
        """A dataset of the sentences, in the order of the files."""
        return split_words(super().get_dataset(*args, **options))


def read_words(
    paths: Sequence[str], split: str, labels: tuple[str, ...], word: int, label: int
) -> Iterator[str]:
    """Yields sentences, a line for each word: the word, a tab and its label.

    Raises:
      UserError: a column is missing, or a label is missing or unknown; names file and line.
    """
    del split
    needed = max(column + 1 if column >= 0 else -column for column in (word, label, 1))
    for path in paths:
        sentence: list[str] = []
        for number, line in text.numbered_lines(path):
            if line.strip():
                cells = line.split("\t") if "\t" in line else line.split()
                if len(cells) < needed:
                    raise UserError(
                        f"{path}, line {number} has {len(cells)} column"
                        f"{'s' if len(cells) > 1 else ''}, but the word is expected in column "
                        f"{word} and its label in column {label}, from 0"
                    )
                check_label(path, number, cells[label].strip(), labels)
                sentence.append(f"{cells[word].strip()}\t{cells[label].strip()}")
            elif sentence:
                yield "\n".join(sentence)
                sentence = []
        if sentence:
            yield "\n".join(sentence)
