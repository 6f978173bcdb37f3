"""python -m xl_flax.cache: tokenises and packs what a run reads; the one process with TensorFlow.

Without --tasks it caches all that the run's Gin file names: the mixtures of its phases and of its
evaluations. What is there and fresh is left alone, so an interrupted run of this command goes on
with the first split that is not complete.
"""

import argparse
import contextlib
import difflib
import importlib
import itertools
import os
import re
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
from xl_flax.data.manifest import Cache, read_manifest
from xl_flax.data.mixtures import Mixture, write_mixture
from xl_flax.data.prepare import Need, locked
from xl_flax.data.report import report, show_rows
from xl_flax.data.required import planned_rows, required
from xl_flax.data.text_files import broken_lines, count_lines
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
    """What the rows of a task and split are made from."""
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
        raise UserError(_explain(error, task, split)) from error


def examples(task: seqio.Task, split: str) -> Iterator[tuple[list[np.ndarray], list[str]]]:
    """Reads a task in a reproducible order.

    Yields:
      Batches of tokens int32[n] and languages.

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
                "must make 'tokens' (int[n], no special tokens) and 'language' (a string)"
            )
        dataset = dataset.map(
            lambda e: {"tokens": tf.cast(e["tokens"], tf.int32), "language": e["language"]}
        )
        options = tf.data.Options()
        options.deterministic = True
        dataset = dataset.ragged_batch(READ_BATCH).prefetch(2).with_options(options)
        for batch in dataset:
            tokens = batch["tokens"]
            yield (
                np.split(tokens.flat_values.numpy(), tokens.row_starts().numpy()[1:]),
                [language.decode() for language in batch["language"].numpy()],
            )


def _check_utf8(example: Any) -> Any:
    def check(value: Any) -> Any:
        if isinstance(value, tf.Tensor) and value.dtype == tf.string:
            return tf.strings.unicode_transcode(value, "UTF-8", "UTF-8", errors="strict")
        return value

    # The tokeniser would put U+FFFD where the text is broken and say nothing.
    return tf.nest.map_structure(check, example)


def _explain(error: Exception, task: seqio.Task, split: str) -> str:
    name = f"task {task.name!r}, split {split!r}"
    text = str(error)
    user_error = re.search(r"UserError: (.*)", text)
    if user_error:  # raised by Python code that TensorFlow called
        return f"{name}: {user_error[1]}"
    if isinstance(error, UnicodeDecodeError) or "Invalid formatting on input string" in text:
        place = next((p for file in shards(task, split) for p in broken_lines(file)), None)
        return (
            f"{name}: the text is not valid UTF-8{f', {place}' if place else ''}: "
            "convert it (iconv -f ... -t UTF-8) or remove the line"
        )
    if isinstance(error, tf.errors.NotFoundError) or "No file is found" in text:
        return f"{name}: a data file is missing: {_first_line(text)}"
    if isinstance(error, tf.errors.DataLossError):
        return f"{name}: a data file is truncated or damaged: {_first_line(text)}"
    return f"{name}: {_first_line(text)}"


def _first_line(text: str) -> str:
    text = re.sub(r"\{\{.*?\}\}|\[Op:\w+\]( name:)?", "", text)
    return next((line.strip() for line in text.splitlines() if line.strip()), "unknown error")


def num_examples(task: seqio.Task, split: str) -> int | None:
    """How many examples a source has, where that is cheap to know; for the progress bar."""
    declared = task.source.num_input_examples(split)
    if declared is None and isinstance(task.source, seqio.TextLineDataSource):
        return sum(count_lines(file) for file in shards(task, split))
    return declared


# --- Caching ---------------------------------------------------------------------------------


def cache_split(
    task: seqio.Task,
    split: str,
    length: int,
    cache: Cache,
    vocabulary: Vocabulary,
    owners: dict[str, str],
    *,
    overwrite: bool = False,
    title: str = "",
) -> bool:
    """Caches one split unless its rows are there and fresh.

    Returns:
      Whether anything was written.
    """
    now = task_fingerprint(task, split, owners, vocabulary)
    try:
        manifest = read_manifest(cache.folder(task.name, split, length))
        reasons = fingerprint.changes(manifest.fingerprint, now) if manifest else ["not cached"]
    except UserError as error:
        reasons = [str(error).split(": run ")[0]]
    if not reasons and not overwrite:
        return False
    if reasons not in ([], ["not cached"]):
        print(f"{task.name} ({split}): {', '.join(reasons)}: caching it again", file=sys.stderr)
    batches = examples(task, split)
    first = next(batches, ([], [""]))
    language = first[1][0]
    total = num_examples(task, split)
    pace = 0.1 if sys.stderr.isatty() else 10.0  # seconds between lines; few of them in a log
    title = f"{title}{task.name} ({split})"
    with tqdm(total=total, desc=title, unit=" examples", mininterval=pace) as bar:

        def tokens() -> Iterator[np.ndarray]:
            for batch, found in itertools.chain([first], batches):
                other = set(found) - {language}
                if other:
                    raise UserError(
                        f"task {task.name!r}, split {split!r} has examples in {language!r} and in "
                        f"{other.pop()!r}: make one task for each and name them in a mixture"
                    )
                bar.update(len(batch))
                yield from batch

        write_split(
            *(cache, task.name, split, length, tokens()),
            language=language,
            vocabulary=vocabulary,
            fingerprint=now,
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
    examples = {t.name: read_manifest(cache.folder(t.name, split, length)).examples for t in tasks}
    with contextlib.ExitStack() as stack:
        for task in tasks:
            # get_rate compares tasks, so a stand-in would not do.
            task.num_input_examples = lambda split, count=examples[task.name]: count
            stack.callback(delattr, task, "num_input_examples")
        if isinstance(provider, seqio.Mixture):
            rates = {task.name: float(provider.get_rate(task)) for task in tasks}
        else:
            rates = {provider.name: 1.0}
    modules = fingerprint.modules_sha256([owners[name]])
    return Mixture(name=name, modules=modules, rates=rates, examples=examples)


# --- The command -----------------------------------------------------------------------------


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The command's own flags."""
    parser.add_argument("--tasks", metavar="REGEX", help="cache the tasks whose names match")
    parser.add_argument("--split", nargs="+", help="only these splits")
    parser.add_argument("--overwrite", action="store_true", help="also what is there and fresh")
    parser.add_argument(
        "--module_import", action="append", default=[], help="another task module; repeatable"
    )
    parser.add_argument(
        "--show",
        type=int,
        default=0,
        metavar="N",
        help="print N decoded rows of each train mixture",
    )
    parser.add_argument(
        "--need",
        action="append",
        default=[],
        metavar="MIXTURE:SPLIT:LENGTH",
        help="cache this instead of what the Gin file names; repeatable",
    )


def choose(args: argparse.Namespace, modules: Sequence[str]) -> list[Need]:
    """The rows that the flags ask for."""
    needs = [Need(*need.rsplit(":", 2)) for need in args.need]
    needs = [need._replace(length=int(need.length)) for need in needs] or required()
    if args.tasks:
        lengths = sorted({need.length for need in needs})
        names = [n for n in seqio.TaskRegistry.names() if re.fullmatch(args.tasks, n)]
        if not names:
            raise UserError(f"--tasks={args.tasks} matches none of the tasks of {list(modules)}")
        needs = [
            Need(name, split, length)
            for name in sorted(names)
            for split in sorted(seqio.TaskRegistry.get(name).splits)
            for length in lengths
        ]
    needs = [need for need in needs if not args.split or need.split in args.split]
    if not needs:
        raise UserError(
            "nothing to cache: the Gin file names no mixture (Rows.mixture, Rows.length), or no "
            "split that --split allows"
        )
    return needs


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    args = cli.parse(argv, __doc__, add_flags)
    logging.set_verbosity(logging.ERROR)
    cache, vocabulary = Cache(), run_vocabulary()
    modules = [*cache.task_modules, *args.module_import]
    owners = import_tasks(modules)
    needs = choose(args, modules)
    providers = {need.mixture: find(need.mixture, modules) for need in needs}
    work = {
        (task.name, need.split, need.length): task
        for need in needs
        for task in split_tasks(providers[need.mixture], need.split)
    }
    with locked(cache):
        for number, ((_, split, length), task) in enumerate(work.items(), 1):
            cache_split(
                *(task, split, length, cache, vocabulary, owners),
                overwrite=args.overwrite,
                title=f"{number}/{len(work)} ",
            )
        alone = [Need(task, split, length) for task, split, length in work]
        for need in (*needs, *alone):  # a task may be read by itself, too
            write_mixture(cache, need.split, resolve_mixture(*need, cache, owners))
    for need in needs:
        print(report(need, cache, planned_rows()))
        if args.show and need.split == TRAIN:
            print(show_rows(need, cache, vocabulary, args.show))


if __name__ == "__main__":
    cli.run(main)
