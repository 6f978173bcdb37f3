"""Sources of labelled texts and words: files in the layouts in which such data are published."""

import csv
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import tensorflow as tf

from tasks import text
from xl_flax.errors import UserError

NO_NAMES: Mapping[str, str] = {}


def check_label(path: str, line: int, label: str, labels: Sequence[str]) -> None:
    """Raises a UserError that names file and line unless the label is one of those known."""
    if label not in labels:
        raise UserError(f"{path}, line {line}: {unknown_label(label, labels)}")


def unknown_label(label: str, labels: Sequence[str]) -> str:
    """What is wrong with a label that is none of those known."""
    known = ", ".join(labels)
    return f"label {label!r} is none of {known}" if label else f"there is no label; known: {known}"


# --- Texts -----------------------------------------------------------------------------------


def columns(
    labels: Sequence[str],
    *,
    texts: Sequence[int | str],
    label: int | str | None,
    id: int | str | None = None,
    quoted: bool = False,
    rename: Mapping[str, str] = NO_NAMES,
) -> Callable[[Sequence[str], str], Iterator[tuple[str, ...]]]:
    """How `LabelledFiles` reads TSV files.

    Args:
      labels: the names that may stand in the label's column.
      texts: the columns of the texts: numbers from 0, or names if the first line is a header.
      label: the label's column; None if each split has two files, and line i of the second is the
        label of line i of the first.
      id: the identifier's column, None for none.
      quoted: whether cells with quotes are quoted, as Python's and Excel's CSV do; else quotes are
        characters as any other.
      rename: labels of the files -> names among `labels`, where they differ.
    """
    return functools.partial(
        read_columns,
        labels=tuple(labels),
        texts=tuple(texts),
        label=label,
        id=id,
        quoted=quoted,
        rename=dict(rename),
    )


def read_columns(
    paths: Sequence[str],
    split: str,
    *,
    labels: tuple[str, ...],
    texts: tuple[int | str, ...],
    label: int | str | None,
    id: int | str | None,
    quoted: bool,
    rename: Mapping[str, str],
) -> Iterator[tuple[str, ...]]:
    """Yields the texts, the label and the identifier ("" if there is none) of each line.

    Raises:
      UserError: a column is missing, a label is missing or unknown, or labels in a file of their
        own are more or fewer than the texts; names file and line.
    """
    del split
    wanted = [*texts, *([] if label is None else [label]), *([] if id is None else [id])]
    label_path, labels_apart = paths[0], None
    if label is None:
        *paths, label_path = paths
        labels_apart = _labels_apart(paths, label_path)
    for path in paths:
        for number, cells in _rows(path, wanted, quoted):
            row, at = cells[: len(texts)], number
            if labels_apart:
                at, said = next(labels_apart)
            else:
                label_path, said = path, cells[len(texts)]
            said = rename.get(said, said)
            check_label(label_path, at, said, labels)
            yield (*row, said, "" if id is None else cells[-1])


def _rows(path: str, wanted: Sequence[int | str], quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """Line number and the wanted cells of each line that is not blank."""
    split = quoted_cells if quoted else _cells
    lines, places = text.numbered_lines(path), wanted
    if any(isinstance(column, str) for column in wanted):
        header = split(path, *next(lines, (1, "")))
        if missing := [column for column in wanted if column not in header]:
            raise UserError(
                f"{path}, line 1: there is no column {missing[0]!r} among {', '.join(header)}"
            )
        places = [header.index(column) for column in wanted]
    for number, line in lines:
        if not line.strip():
            continue
        cells = split(path, number, line)
        if len(cells) <= max(places):
            raise UserError(
                f"{path}, line {number} has {len(cells)} columns set apart by tabs: expected "
                f"{max(places) + 1} at least"
            )
        yield number, [cells[place] for place in places]


def _cells(path: str, number: int, line: str) -> list[str]:
    del path, number
    return line.split("\t")


def quoted_cells(path: str, number: int, line: str) -> list[str]:
    """The cells of a line that are set apart by tabs, and quoted as in CSV where they need be.

    Raises:
      UserError: the line is none, as with a carriage return inside; names file and line.
    """
    try:
        return next(csv.reader([line], delimiter="\t"), [""])
    except csv.Error as error:
        raise UserError(f"{path}, line {number} has no cells set apart by tabs: {error}") from error


def _labels_apart(paths: Sequence[str], label_path: str) -> Iterator[tuple[int, str]]:
    """Line numbers and labels of a file of labels only, after a check that it is long enough."""

    def filled(path: str) -> list[tuple[int, str]]:
        return [(n, line.strip()) for n, line in text.numbered_lines(path) if line.strip()]

    labels, texts = filled(label_path), sum(len(filled(path)) for path in paths)
    if len(labels) != texts:
        raise UserError(
            f"{label_path} has {len(labels):,} labels, but {', '.join(paths)} has {texts:,} lines: "
            "line i of one must be the label of line i of the other"
        )
    return iter(labels)


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


def split_words(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """A preprocessor: {"text": lines of a word, a tab and its label} as words and labels."""

    def convert(example):
        cells = tf.strings.split(tf.strings.split(example["text"], "\n"), "\t")
        cells = cells.to_tensor(shape=[None, 2])
        rest = {key: value for key, value in example.items() if key != "text"}
        return {"words": cells[:, 0], "labels": cells[:, 1], **rest}

    return dataset.map(convert)


class TaggedFiles(text.Files):
    """Files of sentences: {"words": string [n], "labels": string [n], "id": string}.

    What reads them yields, of each sentence, a line for each word (the word, a tab and its label)
    and an identifier, "" for none.
    """

    def get_dataset(self, *args, **options) -> tf.data.Dataset:
        """A dataset of the sentences, in the order of the files."""
        rows = super().get_dataset(*args, **options)
        return split_words(rows.map(lambda row: {"text": row["text"][0], "id": row["text"][1]}))


class WordFiles(TaggedFiles):
    """Files of words and their labels in columns.

    One word in a line, blank lines between sentences; columns stand apart by tabs, or by spaces in
    lines without a tab. Sentences have no identifiers ("").
    """

    def __init__(
        self,
        paths: Mapping[str, str | Sequence[str]],
        labels: Sequence[str],
        *,
        word: int = 0,
        label: int = -1,
        prefix: str = "",
    ):
        """The source.

        Args:
          paths: the files of each split. Paths that are not absolute start at XL_FLAX_DATA_DIR,
            which is looked up when the files are read.
          labels: the names that may stand in the label's column.
          word: the word's column, from 0; from -1 backwards.
          label: the label's column.
          prefix: cut off where all words of a file begin with it, as with "en:" in WikiANN.
        """
        read = functools.partial(
            read_words, labels=tuple(labels), word=word, label=label, prefix=prefix
        )
        super().__init__(paths, read)


def read_words(
    paths: Sequence[str],
    split: str,
    *,
    labels: tuple[str, ...],
    word: int,
    label: int,
    prefix: str,
) -> Iterator[tuple[str, str]]:
    """Yields what `TaggedFiles` wants; sentences have no identifiers.

    Raises:
      UserError: a column is missing, or a label is missing or unknown; names file and line.
    """
    del split
    needed = max(column + 1 if column >= 0 else -column for column in (word, label, 1))

    def read(path: str) -> Iterator[tuple[int, str, str] | None]:
        for number, line in text.numbered_lines(path):
            if not line.strip():
                yield None
                continue
            cells = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
            if len(cells) < needed:
                raise UserError(
                    f"{path}, line {number} has {len(cells)} column"
                    f"{'s' if len(cells) > 1 else ''}, but the word is expected in column "
                    f"{word} and its label in column {label}, from 0"
                )
            yield number, cells[word].strip(), cells[label].strip()

    for path in paths:
        cut = 0
        if prefix:
            words = [row[1] for row in read(path) if row]
            cut = len(prefix) if all(each.startswith(prefix) for each in words) else 0
        for filled, rows in itertools.groupby(read(path), bool):
            if filled:
                lines = []
                for number, said, tag in rows:
                    check_label(path, number, tag, labels)
                    lines.append(f"{said[cut:].strip()}\t{tag}")
                yield "\n".join(lines), ""
