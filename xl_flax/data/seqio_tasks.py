"""Reading tasks and mixtures of seqio: only the cache and vocabulary commands import this."""

import contextlib
import difflib
import importlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from xl_flax.quiet import silenced_stderr

with silenced_stderr():
    import seqio
    import tensorflow as tf

from xl_flax.data import fingerprint
from xl_flax.data.features import NO_FEATURES, Example, Features, FeatureSpec, Texts
from xl_flax.data.mixtures import PRESENT_ONLY
from xl_flax.data.task_errors import explain, explain_import
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.files.read import check_regular
from xl_flax.files.text import count_lines
from xl_flax.text_table import wrapped

READ_BATCH = 256  # examples that cross from TensorFlow to NumPy at once
# Of a batch, see `Stream.rows`.
RESERVED = ("segment_ids", "positions", "languages", "row_id", "example", "piece")

Languages = tuple[str, ...]  # of each text of an example


def import_tasks(names: Sequence[str]) -> dict[str, str]:
    """Imports task modules.

    Returns:
      Task or mixture -> the module whose import defined it.

    Raises:
      UserError: a module cannot be imported, or raises an error or exits meanwhile.
    """
    owners: dict[str, str] = {}
    for name in names:
        try:
            importlib.import_module(name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit is no Exception
            raise UserError(explain_import(error, name)) from error
        for provider in (*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()):
            owners.setdefault(provider, name)
    return owners


def find(name: str, modules: Sequence[str]) -> seqio.Task | seqio.Mixture:
    """The task or mixture of this name.

    Raises:
      UserError: there is none; the message names those that are close.
    """
    names = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in names:
        close = difflib.get_close_matches(name, sorted(names), n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "none is close."
        raise UserError(
            f"no task or mixture is called {name!r}; {hint} Those of {list(modules)} are known; "
            "name the module that defines it in Cache.task_modules (TASK_MODULES in gin/)"
        )
    return seqio.get_mixture_or_task(name)


def split_tasks(provider: seqio.Task | seqio.Mixture, split: str) -> list[seqio.Task]:
    """The tasks of a mixture that have a split, and files where the mixture asks for no more.

    Raises:
      UserError: none has.
    """
    tasks = seqio.get_subtasks(provider)
    having = [task for task in tasks if split in task.splits]
    if not having:
        known = sorted({s for task in tasks for s in task.splits})
        raise UserError(
            f"{provider.name!r} has no split {split!r}; it has {known}: add text for this "
            "split, or read another one"
        )
    missing = missing_files(provider, split)
    if len(missing) == len(having):
        files = [file for files in missing.values() for file in files]
        more = f" and {len(files) - 3} other files" if len(files) > 3 else ""
        raise UserError(
            f"{provider.name!r} has no task with files for the split {split!r}: expected "
            f"{', '.join(files[:3])}{more}; one of its {len(having)} tasks is enough"
        )
    return [task for task in having if task.name not in missing]


def missing_files(provider: seqio.Task | seqio.Mixture, split: str) -> dict[str, list[str]]:
    """Of a mixture that leaves out tasks without files: these tasks, and the files they lack."""
    if not getattr(provider, PRESENT_ONLY, False):
        return {}
    tasks = [task for task in seqio.get_subtasks(provider) if split in task.splits]
    # A source that cannot tell has all it needs.
    lacking = {t.name: getattr(t.source, "missing_files", lambda split: [])(split) for t in tasks}
    return {task: files for task, files in lacking.items() if files}


NAMED = 8  # tasks whose names are printed


def say_missing(provider: seqio.Task | seqio.Mixture, split: str) -> None:
    """Says which tasks a mixture is read without, since they have no files."""
    if missing := missing_files(provider, split):
        kept = len(split_tasks(provider, split))
        names = ", ".join([*missing][:NAMED])
        names += f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        first = next(iter(missing.values()))[0]
        said = f"{provider.name} ({split}): {kept} of {kept + len(missing)} tasks have files; "
        print(wrapped(f"{said}without {names} (as {first})"), file=sys.stderr, flush=True)


def cached_preprocessors(task: seqio.Task) -> list[Callable]:
    """What runs before the cache.

    Raises:
      UserError: something would have to run after it.
    """
    steps = list(task.preprocessors)
    marks = [i for i, s in enumerate(steps) if isinstance(s, seqio.CacheDatasetPlaceholder)]
    if marks and marks[0] + 1 < len(steps):
        late = [fingerprint.describe(step) for step in steps[marks[0] + 1 :]]
        raise UserError(
            f"task {task.name!r}: preprocessor {late[0]} comes after CacheDatasetPlaceholder, where"
            " it would run anew in each epoch, and rows are read without TensorFlow. Put it before"
            " the placeholder; what must differ in each epoch belongs in an objective, as masks do"
        )
    return steps[: marks[0]] if marks else steps


def task_fingerprint(
    task: seqio.Task, split: str, owners: dict[str, str], vocabulary: Vocabulary
) -> fingerprint.Fingerprint:
    """What the examples of a task and split are made from."""
    steps, source = cached_preprocessors(task), vars(task.source)
    parts = fingerprint.reachable([*steps, type(task.source), source])
    modules = {owners[task.name], *fingerprint.modules_among(parts)}
    files = [*shards(task, split), *fingerprint.files_among(parts)]
    return {
        "modules": fingerprint.modules_sha256(modules),
        "vocabulary": vocabulary.fingerprint,
        "source": f"{type(task.source).__qualname__}({fingerprint.describe(source)})",
        "preprocessors": [fingerprint.describe(step) for step in steps],
        "files": fingerprint.files_state(map(os.path.abspath, files)),
        "filter": {},
    }


def shards(task: seqio.Task, split: str) -> list[str]:
    """The files of a source, where it has any.

    Raises:
      UserError: one is no regular file, so that reading it might never end.
    """
    paths = [path for path in task.source.list_shards(split) if os.path.exists(path)]
    for path in paths:
        check_regular(path, f"task {task.name!r}, split {split!r} needs a file")
    return paths


@contextlib.contextmanager
def source_errors(task: seqio.Task, split: str) -> Iterator[None]:
    """Turns what reading a task raises into a UserError that names the task and the file."""
    try:
        yield
    except UserError:
        raise
    except (tf.errors.OpError, OSError, ValueError) as error:
        raise UserError(explain(error, task.name, split, lambda: shards(task, split))) from error


def task_features(task: seqio.Task) -> dict[str, FeatureSpec]:
    """The features that a task declares in `output_features` besides its tokens, by name.

    A feature of rank 0 belongs to the example (a string is kept as text), one of the rank of
    "tokens" to the tokens; a feature with an attribute `kind` says itself, and its attribute
    `labels` names the values.

    Raises:
      UserError: a feature is of none of the kinds, or has a name that batches use.
    """
    specs = {}
    for name, feature in sorted(task.output_features.items()):
        if name in ("tokens", "language"):
            continue
        where = f"task {task.name!r}, feature {name!r}"
        if name in RESERVED:
            raise UserError(f"{where}: batches use this name themselves; choose another one")
        by_rank = {0: "text" if feature.dtype == tf.string else "example"}
        by_rank[task.output_features["tokens"].rank] = "token"
        kind = getattr(feature, "kind", by_rank.get(feature.rank))
        if kind is None:
            raise UserError(
                f"{where} has rank {feature.rank}: a number per example has 0, one per token the "
                "rank of 'tokens'; a span or a text needs tasks.labelled.Feature with its kind"
            )
        numbers = "float32" if feature.dtype.is_floating else "int32"
        dtype = "string" if kind == "text" else numbers
        try:
            specs[name] = FeatureSpec(kind, dtype, tuple(getattr(feature, "labels", ())))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return specs


def examples(task: seqio.Task, split: str) -> Iterator[tuple[list[Example], list[Languages]]]:
    """Reads a task in a reproducible order.

    Yields:
      Batches of examples, numbered from 0, and of the languages of their texts.

    Raises:
      UserError: a file is missing or damaged, text is not UTF-8, or a feature is missing.
    """
    specs, first = task_features(task), 0
    with source_errors(task, split):
        for batch in _dataset(task, split, specs):
            texts = _arrays(batch["tokens"])
            columns = [_column(batch[name], spec) for name, spec in specs.items()]
            features = (
                [dict(zip(specs, values, strict=True)) for values in zip(*columns, strict=True)]
                if specs
                else itertools.repeat(NO_FEATURES)
            )
            numbers = range(first, first + len(texts))
            first += len(texts)
            yield (
                list(map(Example, numbers, texts, features)),
                [tuple(map(bytes.decode, names)) for names in batch["language"].numpy()],
            )


def _dataset(task: seqio.Task, split: str, specs: Features) -> tf.data.Dataset:
    """Batches of a task's features, ragged where examples differ in size."""
    steps = cached_preprocessors(task)
    dataset = task.source.get_dataset(split=split, shuffle=False)
    dataset = dataset.map(_check_utf8)
    if len(steps) < len(task.preprocessors):
        dataset = task.preprocess_precache(dataset, seed=0)
    else:
        dataset = task.preprocess_postcache(dataset, sequence_length=None, seed=0)
    missing = {"tokens", "language", *specs} - set(dataset.element_spec)
    if missing:
        declared = "".join(f"; {name!r} is declared in output_features" for name in sorted(specs))
        raise UserError(
            f"task {task.name!r} yields no feature {sorted(missing)[0]!r}: its preprocessors "
            "must make 'tokens' (int[n], no special tokens; ragged int[K, n] for several texts) "
            f"and 'language' (a string, or K of them){declared}"
        )
    dataset = dataset.map(
        lambda e: {
            "tokens": tf.cast(e["tokens"], tf.int32),
            "language": tf.reshape(e["language"], [-1]),
            **{
                name: tf.cast(e[name], tf.int32) if e[name].dtype == tf.bool else e[name]
                for name in specs
            },
        }
    )
    options = tf.data.Options()
    options.deterministic = True
    return dataset.ragged_batch(READ_BATCH).prefetch(2).with_options(options)


def _arrays(batch: tf.RaggedTensor | tf.Tensor) -> list[Texts]:
    """The arrays of each example: one, or one for each of its texts."""
    if isinstance(batch, tf.Tensor):
        batch = tf.RaggedTensor.from_tensor(batch, ragged_rank=batch.shape.rank - 1)
    counts = np.ones(batch.nrows(), int)
    if batch.shape.rank == 3:
        counts, batch = batch.row_lengths().numpy(), batch.merge_dims(0, 1)
    arrays = iter(np.split(batch.flat_values.numpy(), batch.row_starts().numpy()[1:]))
    return [tuple(itertools.islice(arrays, int(count))) for count in counts]


def _column(batch: tf.RaggedTensor | tf.Tensor, spec: FeatureSpec) -> Sequence[Any]:
    """A feature's value in each example."""
    if spec.kind == "token":
        return _arrays(batch)
    values = batch.numpy()
    return [value.decode() for value in values] if spec.kind == "text" else values


def _check_utf8(example: Any) -> Any:
    def check(value: Any) -> Any:
        if isinstance(value, tf.Tensor) and value.dtype == tf.string:
            return tf.strings.unicode_transcode(value, "UTF-8", "UTF-8", errors="strict")
        return value

    # The tokeniser would put U+FFFD where the text is broken and say nothing.
    return tf.nest.map_structure(check, example)


def num_examples(task: seqio.Task, split: str) -> int | None:
    """How many examples a source has, where that is cheap to know; for the progress bar."""
    declared = task.source.num_input_examples(split)
    if declared is None and isinstance(task.source, seqio.TextLineDataSource):
        return sum(count_lines(file) for file in shards(task, split))
    return declared
