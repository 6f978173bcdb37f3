"""What tasks on parallel text are made of: sentences with their translations.

A module of your own, here for one pair in two files, line i translating line i, and for one whose
two languages are the columns of a TSV, needs only this one:

    from tasks import parallel, text

    files = parallel.ParallelFiles({
        "train": ["news/train.bre", "news/train.fra"],
        "validation": ["news/dev.bre", "news/dev.fra"],
    })
    parallel.add_parallel_task("celtic_bre_fra", ("bre", "fra"), files)
    table = parallel.ParallelFiles({"train": "cym-eng.tsv"})
    parallel.add_parallel_task("celtic_cym_eng", ("cym", "eng"), table)
    text.add_language_mixture("celtic_pairs", ["celtic_bre_fra", "celtic_cym_eng"], exponent=0.5)

One task serves both directions: objectives swap the texts. A task may have more than two languages
(multi-way text); a mixture is of tasks with equally many. Tasks are named by their languages in
alphabetical order, with underscores, as seqio wants them.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import seqio
import tensorflow as tf

from tasks import text
from xl_flax.errors import UserError


def read_lines_together(paths: Sequence[str], split: str) -> Iterator[tuple[str, ...]]:
    """Yields line i of every file: one file per language (Moses), all equally long.

    Blank lines are kept, so that the cache can count them.
    """
    del split
    for lines in itertools.zip_longest(*map(text.numbered_lines, paths)):
        if None in lines:
            counts = [f"{path} has {sum(1 for _ in text.numbered_lines(path)):,}" for path in paths]
            raise UserError(
                f"{', '.join(counts)} lines, but line i of one must translate line i of the other: "
                "find where they part, and leave a line blank where a translation is missing"
            )
        yield tuple(line for _, line in lines)


def read_columns(
    paths: Sequence[str], split: str, columns: Sequence[int] | None = None
) -> Iterator[tuple[str, ...]]:
    """Yields the columns of TSV files without header or quotes: one column per language.

    Args:
      paths: the files, which are read one after the other.
      split: their split.
      columns: the columns to take, from 0; all by default. WikiMatrix, which opens its lines with a
        score, takes `functools.partial(read_columns, columns=(1, 2))`.
    """
    del split
    needed, expected = max(columns) + 1 if columns else 2, None
    for path in paths:
        for number, line in text.numbered_lines(path):
            cells = line.split("\t")
            expected = expected or max(len(cells), needed)
            if len(cells) != expected:
                raise UserError(
                    f"{path}, line {number} has {len(cells)} columns, not {expected}: every line "
                    "needs one text per language with a tab between them, and no tab within a text"
                )
            yield tuple(cells[i] for i in columns) if columns else tuple(cells)


def read_translations(paths: Sequence[str], split: str) -> Iterator[tuple[str, ...]]:
    """Yields what one TSV holds in its columns, or several files in their lines."""
    read = read_columns if len(paths) == 1 else read_lines_together
    return read(paths, split)


class ParallelFiles(text.Files):
    """Files of parallel text: {"text": string [K]}, a sentence in K languages."""

    def __init__(
        self,
        paths: Mapping[str, str | Sequence[str]],
        read: Callable[[Sequence[str], str], Iterator[tuple[str, ...]]] = read_translations,
    ):
        """The source.

        Args:
          paths: the files of each split: a TSV, or one per language, in the order of the task's.
            Paths that are not absolute start at XL_FLAX_DATA_DIR, which is looked up when the files
            are read.
          read: a function of (all paths of a split, split) that yields K texts at a time.
        """
        super().__init__(paths, read)


def set_languages(dataset: tf.data.Dataset, task: str, languages: Sequence[str]) -> tf.data.Dataset:
    """Adds the feature "language", string [K], after a check that there are K texts."""
    if "text" not in dataset.element_spec:
        raise UserError(
            f"task {task!r}: its examples have {', '.join(dataset.element_spec)}, but no 'text' "
            "with a string per language; a preprocessor makes it: parallel.translation_texts"
        )
    shape = dataset.element_spec["text"].shape
    if not shape.is_compatible_with([len(languages)]):
        raise UserError(
            f"task {task!r} has {len(languages)} languages, {', '.join(languages)}, but its source "
            f"yields {'one text' if not shape.rank else f'{shape[0]} texts'} per example"
        )

    def add(example):
        texts = tf.ensure_shape(example["text"], [len(languages)])
        return {"tokens": texts, "language": tf.constant(languages)}

    return dataset.map(add)


def translation_texts(dataset: tf.data.Dataset, codes: Sequence[str]) -> tf.data.Dataset:
    """A preprocessor for TFDS's translations: {"text": string [K]} in the order of the codes.

    Takes examples that are, or have as "translation", {"de": string, "en": string, ...}; and those
    of `TranslationVariableLanguages`, as "translations", {"language": [n], "translation": [n]},
    where examples that lack one of the languages are left out.
    """
    spec = dataset.element_spec
    if "translations" in spec:
        return _variable_texts(dataset, tf.constant(codes))
    known = spec.get("translation", spec)
    if missing := [code for code in codes if code not in known]:
        raise UserError(
            f"no translation into {', '.join(missing)}; the examples have {', '.join(known)}"
        )

    def stack(example):
        by_code = example.get("translation", example)
        return {"text": tf.stack([by_code[code] for code in codes])}

    return dataset.map(stack)


def _variable_texts(dataset: tf.data.Dataset, codes: tf.Tensor) -> tf.data.Dataset:
    def is_text(example):  # bool [K, n]
        return codes[:, None] == example["translations"]["language"]

    def gather(example):
        first = tf.argmax(tf.cast(is_text(example), tf.int32), axis=1)
        return {"text": tf.gather(example["translations"]["translation"], first)}

    complete = dataset.filter(lambda example: tf.reduce_all(tf.reduce_any(is_text(example), 1)))
    return complete.map(gather)


def add_parallel_task(
    name: str,
    languages: Sequence[str],
    source: seqio.DataSource,
    *,
    preprocessors: Sequence[Callable[[tf.data.Dataset], tf.data.Dataset]] = (),
) -> seqio.Task:
    """Registers a task on parallel text.

    Args:
      name: the task's name, unique among all tasks.
      languages: what the K languages are called, in the order of the texts.
      source: yields {"text": string [K]}; `ParallelFiles`, or any seqio source.
      preprocessors: seqio preprocessors that rewrite or drop examples, such as
        `translation_texts`; their results must have "text".

    Returns:
      The task, whose examples are {"tokens": ragged int32 [K, None], "language": string [K]}.

    Raises:
      UserError: fewer than two languages, or one of them twice.
    """
    if len(languages) < 2 or len(set(languages)) < len(languages):
        raise UserError(
            f"task {name!r} needs two or more languages, each once, not {', '.join(languages)}"
        )
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            *preprocessors,
            functools.partial(set_languages, task=name, languages=tuple(languages)),
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
            seqio.CacheDatasetPlaceholder(),
        ],
        output_features={"tokens": seqio.Feature(text.RunVocabulary(), add_eos=False, rank=2)},
    )
