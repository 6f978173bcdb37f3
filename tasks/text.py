"""What tasks on text are made of: vocabulary, files, and the registration of tasks and mixtures.

A module of your own needs only this one:

    from tasks import text

    languages = ("bre", "cym", "gle")
    for language in languages:
        text.add_text_task(f"celtic_{language}", language, text.TextFiles(f"celtic/{language}.txt"))
    text.add_language_mixture("celtic", [f"celtic_{l}" for l in languages], exponent=0.5)
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import seqio
import tensorflow as tf

from tasks.languages import iso639 as iso639  # part of this module's face
from tasks.run_vocabulary import RunVocabulary
from xl_flax.data.mixtures import PRESENT_ONLY, TOKENS_EXPONENT
from xl_flax.errors import UserError
from xl_flax.files.read import check_local, check_regular

DATA_DIR = "XL_FLAX_DATA_DIR"
# Corpora may lie together in these folders of it: what must not be passed on can stand apart.
GROUPS = ("", "ner", "noncommercial")
READ_CHUNK = 256  # examples that cross from Python to TensorFlow at once, as one takes 0.4 ms
LINE_BYTES = 2**26  # of a line: more is no line of text

Unit = Literal["examples", "tokens"]


def read_lines(path: str, split: str) -> Iterator[str]:
    """Yields the lines of a text file that are not blank: one line, one example."""
    del split
    for _, line in numbered_lines(path):
        if line.strip():
            yield line


def read_aligned(path: str, split: str) -> Iterator[str]:
    """Yields every line of a file whose line i translates line i of others; none may be blank."""
    del split
    for number, line in numbered_lines(path):
        if not line.strip():
            raise UserError(
                f"{path}, line {number} is blank; in aligned text every line needs a translation: "
                "remove this line from all the files"
            )
        yield line


def numbered_lines(path: str) -> Iterator[tuple[int, str]]:
    """Yields (number from 1, line without its end) of a UTF-8 file; ends may be LF or CRLF.

    Raises:
      UserError: the file cannot be read, or a line is too long or no UTF-8 text.
    """
    check_regular(path)
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES), b""), 1):
                if len(line) == LINE_BYTES:
                    raise UserError(
                        f"{path}, line {number} has more than {LINE_BYTES / 1e6:.0f} million "
                        "bytes: write one example a line"
                    )
                try:
                    line = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}, line {number}: byte {error.start + 1} (0x"
                        f"{error.object[error.start]:02x}) is not valid UTF-8; convert the file, "
                        "for example with iconv -f LATIN1 -t UTF-8"
                    ) from error
                if "\0" in line:
                    raise UserError(f"{path}, line {number} holds a NUL byte: this is no text file")
                yield number, line.rstrip("\r\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


class Files(seqio.DataSource):
    """Files of each split, read by a function that yields a string or a tuple of strings at a time.

    All files of a split are read through and checked before its first example is given out, since
    what a tf.data generator raises reaches the user without its line number or not at all.
    """

    def __init__(
        self,
        paths: Mapping[str, str | Sequence[str]],
        read: Callable[[Sequence[str], str], Iterator[str | tuple[str, ...]]],
    ):
        """The source.

        Args:
          paths: the files of each split. Paths that are not absolute start at XL_FLAX_DATA_DIR,
            which is looked up when the files are read.
          read: a function of (all paths of a split, split) that yields the texts.
        """
        self._paths = {s: [p] if isinstance(p, str) else list(p) for s, p in paths.items()}
        self._read = read
        super().__init__(splits=tuple(self._paths))

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """No: a file is read from its start."""
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        """The files, by which the cache knows that the data have changed."""
        return self.files(split)

    def files(self, split: str) -> list[str]:
        """The absolute paths of a split's files.

        Raises:
          UserError: there is no such split, XL_FLAX_DATA_DIR is not set or a file is missing.
        """
        if split not in self._paths:
            raise UserError(f"there is no split {split!r}; there are {', '.join(self._paths)}")
        return [data_path(path) for path in self._paths[split]]

    def missing_files(self, split: str) -> list[str]:
        """The absolute paths of a split's files that are not there.

        Raises:
          UserError: there is no such split, or XL_FLAX_DATA_DIR is not set.
        """
        paths = map(find_data, self._paths.get(split) or self.files(split))
        return [path for path in paths if not os.path.lexists(path)]

    def num_input_examples(self, split: str) -> int:
        """The number of examples, which takes one pass through the files that also checks them."""
        return self._survey(split)[0]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = False,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused,
    ) -> tf.data.Dataset:
        """A dataset of {"text": string or string [K]}, in the order of the files.

        Shuffling is the cache's: it does so over the whole split, not over a buffer.
        """
        del shuffle, seed, unused
        if shard_info and shard_info.num_shards > 1:
            raise ValueError(f"{type(self).__name__} are read as one shard")
        self.num_input_examples(split)  # checks the files
        (_, shape), files = self._survey(split), self.files(split)

        def chunks() -> Iterator[dict[str, list]]:
            texts = self._read(files, split)
            while chunk := list(itertools.islice(texts, READ_CHUNK)):
                yield {"text": chunk}

        signature = {"text": tf.TensorSpec((None, *shape), tf.string)}
        return tf.data.Dataset.from_generator(chunks, output_signature=signature).unbatch()

    def _survey(self, split: str) -> tuple[int, tuple[int, ...]]:
        files = tuple(self.files(split))
        times = tuple(os.stat(file).st_mtime_ns for file in files)
        count, shape = _survey(self._read, split, files, times)
        if not count:
            raise UserError(f"{', '.join(files)}: no examples for the split {split!r}")
        return count, shape


@functools.cache
def _survey(
    read: Callable, split: str, files: tuple[str, ...], mtimes: tuple[int, ...]
) -> tuple[int, tuple[int, ...]]:
    """How many examples there are, and the shape of one: () or (K,). Reads each version once.

    Not kept in the source, which is fingerprinted.
    """
    del mtimes
    examples = read(files, split)
    first = next(examples, None)
    if first is None:
        return 0, ()
    return 1 + sum(1 for _ in examples), () if isinstance(first, str) else (len(first),)


class TextFiles(Files):
    """Text files, read one by one by a function that yields one string per example."""

    def __init__(
        self,
        paths: str | Mapping[str, str | Sequence[str]],
        read: Callable[[str, str], Iterator[str]] = read_lines,
        aligned_with: "TextFiles | None" = None,
    ):
        """The source.

        Args:
          paths: the files of each split; one path alone is the split "train". Paths that are not
            absolute start at XL_FLAX_DATA_DIR, which is looked up when the files are read.
          read: a function of (path, split) that yields the texts.
          aligned_with: a source with a translation of each example, in the same order; they are
            counted where its files are there.
        """
        paths = {"train": paths} if isinstance(paths, str) else paths
        self._aligned_with = aligned_with
        super().__init__(paths, functools.partial(_read_each, read))

    def num_input_examples(self, split: str) -> int:
        """The number of examples, which takes one pass through the files that also checks them."""
        count, other = super().num_input_examples(split), self._aligned_with
        if not other or other.missing_files(split):
            return count
        if (expected := other.num_input_examples(split)) != count:
            raise UserError(
                f"{', '.join(self.files(split))} has {count} examples, but "
                f"{', '.join(other.files(split))} has {expected}: line i of one must translate "
                "line i of the other"
            )
        return count


def _read_each(read: Callable, paths: Sequence[str], split: str) -> Iterator[str]:
    for path in paths:
        yield from read(path, split)


def data_path(path: str) -> str:
    """The absolute path of a file that must exist; relative ones start at XL_FLAX_DATA_DIR.

    Raises:
      UserError: XL_FLAX_DATA_DIR is not set, or the file is missing.
    """
    path = find_data(path)
    check_regular(path, f"a file of text is expected here; relative paths start at {DATA_DIR}")
    return path


def find_data(path: str) -> str:
    """The absolute path of a file, or where it is expected; also in one of the GROUPS.

    Raises:
      UserError: XL_FLAX_DATA_DIR is not set.
    """
    if os.path.isabs(path):
        return path
    if not os.environ.get(DATA_DIR):
        raise UserError(
            f"{DATA_DIR} is not set: set it to the folder of your data, where {path} is expected"
        )
    check_local(os.environ[DATA_DIR], DATA_DIR)
    root = os.path.abspath(os.environ[DATA_DIR])
    places = [os.path.join(root, group, path) for group in GROUPS]
    return next(filter(os.path.lexists, places), places[0])


def set_language(dataset: tf.data.Dataset, language: str) -> tf.data.Dataset:
    """Adds the feature "language", which rows, losses and results are sorted by."""
    return dataset.map(lambda example: {**example, "language": tf.constant(language)})


def add_text_task(
    name: str,
    language: str,
    source: seqio.DataSource,
    *,
    preprocessors: Sequence[Callable[[tf.data.Dataset], tf.data.Dataset]] = (),
) -> seqio.Task:
    """Registers a task on the text of one language.

    Args:
      name: the task's name, unique among all tasks.
      language: what the language is called in logs and results; ISO 639-3 in this project.
      source: yields {"text": string scalar, ...}; `TextFiles`, or any seqio source.
      preprocessors: seqio preprocessors that rewrite, split or drop examples; their results must
        have "text".

    Returns:
      The task, whose examples are {"tokens": int32[n], "language": string scalar}.
    """
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            *preprocessors,
            functools.partial(seqio.preprocessors.rekey, key_map={"tokens": "text"}),
            functools.partial(set_language, language=language),
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
            seqio.CacheDatasetPlaceholder(),
        ],
        output_features={"tokens": seqio.Feature(RunVocabulary(), add_eos=False)},
    )


def add_language_mixture(
    name: str,
    tasks: Sequence[str | seqio.Task],
    *,
    exponent: float = 1.0,
    rates: Mapping[str, float] | None = None,
    by: Unit = "examples",
    present_only: bool = False,
) -> seqio.Mixture:
    """Registers a mixture of tasks, by their sizes or by rates of your own.

    Args:
      name: the mixture's name.
      tasks: the tasks or their names.
      exponent: a task's rate is its training text to this power: 1 takes the data as it is, 0 all
        languages alike.
      rates: the rate of each task by its name, instead; only their proportions matter.
      by: what sizes and rates are counted in; XLM-R's 0.3 is over tokens.
      present_only: leaves out the tasks whose files are missing, split by split, as the cache
        command says when it reads the mixture; without it, a missing file is an error. For
        mixtures of all the languages of a corpus.

    Raises:
      UserError: rates that do not fit the tasks, or an unknown unit.
    """
    if by not in get_args(Unit):
        raise UserError(f"mixture {name!r}: by={by!r}; choose from {', '.join(get_args(Unit))}")
    names = [task if isinstance(task, str) else task.name for task in tasks]
    if rates is not None:
        if set(rates) != set(names):
            wrong = ", ".join(sorted(set(rates) ^ set(names)))
            raise UserError(
                f"mixture {name!r}: tasks without a rate, or rates without a task: {wrong}"
            )
        mixture = seqio.MixtureRegistry.add(name, [(task, rates[task]) for task in names])
    elif exponent == 0 or by == "tokens":
        mixture = seqio.MixtureRegistry.add(name, names, default_rate=1.0)
    else:
        rate = functools.partial(seqio.mixing_rate_num_examples, temperature=1 / exponent)
        mixture = seqio.MixtureRegistry.add(name, names, default_rate=rate)
    if by == "tokens":  # which only the cache can count
        setattr(mixture, TOKENS_EXPONENT, 0.0 if rates else exponent)
    setattr(mixture, PRESENT_ONLY, present_only)
    return mixture


def add_aligned_tasks(
    name: str,
    paths: Mapping[str, str],
    *,
    split: str = "test",
    languages: Mapping[str, str] | None = None,
    read: Callable[[str, str], Iterator[str]] = read_aligned,
    present_only: bool = False,
) -> seqio.Mixture:
    """Registers parallel text: a task `{name}_{code}` per file, and the mixture `name` of them all.

    Line i of every file translates line i of the others, so that retrieval can be scored.

    Args:
      name: the mixture's name.
      paths: the file of each code, as for `TextFiles`.
      split: the split that the files become.
      languages: the language of a code, where they differ.
      read: as for `TextFiles`.
      present_only: as for `add_language_mixture`; name a file that nobody lacks first, since the
        others are compared with it.
    """
    tasks, first = [], None
    for code, path in paths.items():
        source = TextFiles({split: path}, read, aligned_with=first)
        first = first or source
        tasks.append(add_text_task(f"{name}_{code}", (languages or {}).get(code, code), source))
    return add_language_mixture(name, tasks, exponent=0, present_only=present_only)
