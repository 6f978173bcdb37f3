"""python -m xl_flax.cache: tokenises and packs what a run reads; the one process with TensorFlow.

Without --tasks it caches all that the run's Gin file names: the mixtures of its phases and of its
evaluations. What is there and fresh is left alone, so an interrupted run of this command goes on
with the first split that is not complete.
"""

import contextlib
import difflib
import functools
import importlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import logging
from tqdm import tqdm

from xl_flax.quiet import silenced_stderr

with silenced_stderr():
    import seqio
    import tensorflow as tf

from xl_flax import cli
from xl_flax.data import fingerprint
from xl_flax.data.build import TRAIN, write_split
from xl_flax.data.cache_flags import add_flags, choose
from xl_flax.data.filtering import Hashes, hash_sides
from xl_flax.data.manifest import Cache, read_manifest
from xl_flax.data.mixtures import Mixture, common_num_texts, write_mixture
from xl_flax.data.prepare import locked
from xl_flax.data.report import report, show_rows
from xl_flax.data.required import planned_rows
from xl_flax.data.shuffling import Sides
from xl_flax.data.task_errors import check_languages, explain
from xl_flax.data.text_files import count_lines
from xl_flax.data.vocabulary import Vocabulary, run_vocabulary
from xl_flax.errors import UserError

READ_BATCH = 256  # examples that cross from TensorFlow to NumPy at once


# --- Tasks -----------------------------------------------------------------------------------


def import_tasks(names: Sequence[str]) -> dict[str, str]:
    """Imports task modules.

    Returns:
      Task or mixture -> the module whose import defined it.

    Raises:
      UserError: a module cannot be imported.
    """
    owners: dict[str, str] = {}
    for name in names:
        try:
            importlib.import_module(name)
        except (ImportError, SyntaxError, ValueError) as error:
            raise UserError(
                f"cannot import task module {name!r} ({error}): is it on PYTHONPATH, spelt as in "
                "Cache.task_modules, and does it define each task once?"
            ) from error
        for found in (*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()):
            owners.setdefault(found, name)
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
            "add your module to Cache.task_modules or name it with --module_import"
        )
    return seqio.get_mixture_or_task(name)


def split_tasks(provider: seqio.Task | seqio.Mixture, split: str) -> list[seqio.Task]:
    """The tasks of a mixture that have a split.

    Raises:
      UserError: none has.
    """
    tasks = seqio.get_subtasks(provider)
    having = [task for task in tasks if split in task.splits]
    if not having:
        known = sorted({s for task in tasks for s in task.splits})
        raise UserError(f"{provider.name!r} has no split {split!r}; it has {known}")
    return having


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
            " the placeholder; what must differ in each epoch belongs in xl_flax/data/augment, as a"
            " NumPy function of a row"
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
    """The files of a source, where it has any."""
    return [shard for shard in task.source.list_shards(split) if os.path.isfile(shard)]


# --- Examples --------------------------------------------------------------------------------


@contextlib.contextmanager
def source_errors(task: seqio.Task, split: str) -> Iterator[None]:
    """Turns what reading a task raises into a UserError that names the task and the file."""
    try:
        yield
    except UserError:
        raise
    except (tf.errors.OpError, OSError, ValueError) as error:
        raise UserError(explain(error, task.name, split, lambda: shards(task, split))) from error


def examples(task: seqio.Task, split: str) -> Iterator[tuple[list[Sides], list[tuple[str, ...]]]]:
    """Reads a task in a reproducible order.

    Yields:
      Batches of the sides of each example, tokens int32[n], and of their languages: one, or one for
      the sentence and each of its translations.

    Raises:
      UserError: a file is missing or damaged, text is not UTF-8, or a feature is missing.
    """
    steps = cached_preprocessors(task)
    with source_errors(task, split):
        dataset = task.source.get_dataset(split=split, shuffle=False)
        dataset = dataset.map(_check_utf8)
        if len(steps) < len(task.preprocessors):
            dataset = task.preprocess_precache(dataset, seed=0)
        else:
            dataset = task.preprocess_postcache(dataset, sequence_length=None, seed=0)
        missing = {"tokens", "language"} - set(dataset.element_spec)
        if missing:
            raise UserError(
                f"task {task.name!r} yields no feature {sorted(missing)[0]!r}: its preprocessors "
                "must make 'tokens' (int[n], no special tokens; ragged int[K, n] for parallel "
                "text) and 'language' (a string, or K of them)"
            )
        dataset = dataset.map(
            lambda e: {
                "tokens": tf.cast(e["tokens"], tf.int32),
                "language": tf.reshape(e["language"], [-1]),
            }
        )
        options = tf.data.Options()
        options.deterministic = True
        dataset = dataset.ragged_batch(READ_BATCH).prefetch(2).with_options(options)
        for batch in dataset:
            texts = batch["tokens"]
            counts = np.ones(len(batch["language"]), int)
            if texts.shape.rank == 3:
                counts, texts = texts.row_lengths().numpy(), texts.merge_dims(0, 1)
            texts = iter(np.split(texts.flat_values.numpy(), texts.row_starts().numpy()[1:]))
            yield (
                [tuple(itertools.islice(texts, int(count))) for count in counts],
                [tuple(map(bytes.decode, names)) for names in batch["language"].numpy()],
            )


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


# --- Caching ---------------------------------------------------------------------------------


class Excluded:
    """The text that is never trained on: `Filter.exclude`, all splits but "train"."""

    def __init__(
        self,
        names: Sequence[str],
        modules: Sequence[str],
        owners: dict[str, str],
        vocabulary: Vocabulary,
    ):
        self._owners, self._vocabulary = owners, vocabulary
        self._splits: list[tuple[seqio.Task, str]] = []
        for name in names:
            tasks = seqio.get_subtasks(find(name, modules))
            splits = [(task, split) for task in tasks for split in task.splits if split != TRAIN]
            if not splits:
                raise UserError(f"Filter.exclude: {name!r} has no split but {TRAIN!r} to exclude")
            self._splits += splits

    @functools.cached_property
    def sources(self) -> dict[str, dict[str, Any]]:
        """The modules and files that the text comes from."""
        found = [task_fingerprint(*s, self._owners, self._vocabulary) for s in self._splits]
        keys = ("modules", "files")
        return {key: {k: v for each in found for k, v in each[key].items()} for key in keys}

    @functools.cached_property
    def hashes(self) -> Hashes:
        """Of the tokens of each text, read when they are first needed."""
        hashes = Hashes()
        for task, split in self._splits:
            hash_sides((sides for batch, _ in examples(task, split) for sides in batch), hashes)
        return hashes


def cache_split(
    task: seqio.Task,
    split: str,
    length: int,
    cache: Cache,
    vocabulary: Vocabulary,
    owners: dict[str, str],
    excluded: Excluded,
    *,
    overwrite: bool = False,
    title: str = "",
) -> bool:
    """Caches one split unless its rows are there and fresh.

    Returns:
      Whether anything was written.
    """
    now = task_fingerprint(task, split, owners, vocabulary)
    if split == TRAIN:
        now |= {key: now[key] | found for key, found in excluded.sources.items()}
    try:
        manifest = read_manifest(cache.folder(task.name, split, length))
        if manifest:
            now["filter"] = cache.filter.settings(split, manifest.num_texts)
        reasons = fingerprint.changes(manifest.fingerprint, now) if manifest else ["not cached"]
    except UserError as error:
        reasons = [str(error).split(": run ")[0]]
    if not reasons and not overwrite:
        return False
    if reasons not in ([], ["not cached"]):
        print(f"{task.name} ({split}): {', '.join(reasons)}: caching it again", file=sys.stderr)
    batches = examples(task, split)
    first = next(batches, ([], [("",)]))
    languages = first[1][0]
    now["filter"] = cache.filter.settings(split, len(languages))
    total = num_examples(task, split)
    pace = 0.1 if sys.stderr.isatty() else 10.0  # seconds between lines; few of them in a log
    name, title = f"task {task.name!r}, split {split!r}", f"{title}{task.name} ({split})"
    with tqdm(total=total, desc=title, unit=" examples", mininterval=pace) as bar:

        def sides() -> Iterator[Sides]:
            for batch, found in itertools.chain([first], batches):
                check_languages(name, languages, batch, found)
                bar.update(len(batch))
                yield from batch

        write_split(
            *(cache, task.name, split, length, sides()),
            languages=languages,
            vocabulary=vocabulary,
            fingerprint=now,
            excluded=excluded.hashes if split == TRAIN else None,
        )
    return True


def resolve_mixture(
    name: str, split: str, length: int, cache: Cache, owners: dict[str, str]
) -> Mixture:
    """Tasks and rates of a mixture whose tasks have been cached.

    seqio's functions of rates ask a task how many examples it has; the cache knows.
    """
    provider = seqio.get_mixture_or_task(name)
    tasks = split_tasks(provider, split)
    manifests = {t.name: read_manifest(cache.folder(t.name, split, length)) for t in tasks}
    common_num_texts(manifests.values())
    examples = {task: manifest.offered for task, manifest in manifests.items()}
    with contextlib.ExitStack() as stack:
        for task in tasks:
            # get_rate compares tasks, so a stand-in would not do.
            task.num_input_examples = lambda split, count=examples[task.name]: count
            stack.callback(delattr, task, "num_input_examples")
        if isinstance(provider, seqio.Mixture):
            rates = {task.name: float(provider.get_rate(task)) for task in tasks}
        else:
            rates = {provider.name: 1.0}
    left_out = cache.filter.exclude_languages if split == TRAIN else ()
    kept = {t: m for t, m in manifests.items() if not set(m.languages) & set(left_out)}
    if not kept:
        raise UserError(
            f"{name!r} ({split}) has no task left: Filter.exclude_languages = {list(left_out)} "
            f"leaves out {', '.join(manifests)}"
        )
    modules = fingerprint.modules_sha256([owners[name]])
    return Mixture(
        name=name,
        modules=modules,
        rates={task: rates[task] for task in kept},
        examples={task: examples[task] for task in kept},
        excluded_languages=left_out,
    )


# --- The command -----------------------------------------------------------------------------


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    args = cli.parse(argv, __doc__, add_flags)
    logging.set_verbosity(logging.ERROR)
    cache, vocabulary = Cache(), run_vocabulary()
    modules = [*cache.task_modules, *args.module_import]
    owners = import_tasks(modules)
    splits = {name: seqio.TaskRegistry.get(name).splits for name in seqio.TaskRegistry.names()}
    needs = choose(args, modules, splits)
    providers = {need.mixture: find(need.mixture, modules) for need in needs}
    work = {
        (task.name, need.split, need.length): task
        for need in needs
        for task in split_tasks(providers[need.mixture], need.split)
    }
    excluded = Excluded(cache.filter.exclude, modules, owners, vocabulary)
    with locked(cache):
        for number, ((_, split, length), task) in enumerate(work.items(), 1):
            cache_split(
                *(task, split, length, cache, vocabulary, owners, excluded),
                overwrite=args.overwrite,
                title=f"{number}/{len(work)} ",
            )
        for need in needs:
            mixture = resolve_mixture(*need, cache, owners)
            write_mixture(cache, need.split, mixture)
            for task in mixture.rates:  # which may be read by itself, too
                alone = resolve_mixture(task, need.split, need.length, cache, owners)
                write_mixture(cache, need.split, alone)
    planned = planned_rows()
    for need in needs:
        print(report(need, cache, planned.get(need.mixture)))
        if args.show and need.split == TRAIN:
            print(show_rows(need, cache, vocabulary, args.show))


if __name__ == "__main__":
    cli.run(main)
