"""The text of seqio tasks as it is before it is tokenised: what a vocabulary is trained on."""

import functools
import inspect
import os
from collections.abc import Iterator, Sequence

import numpy as np

from xl_flax.data.long_texts import parts
from xl_flax.data.seqio_tasks import (
    READ_BATCH,
    find,
    import_tasks,
    say_missing,
    seqio,
    source_errors,
    split_tasks,
    task_features,
    tf,
)
from xl_flax.errors import UserError

TOKENIZERS = (seqio.preprocessors.tokenize, seqio.preprocessors.tokenize_and_append_eos)
LINE_CHARACTERS = 4000  # longer lines are cut: SentencePiece would drop them

Tasks = dict[str, list[tuple[seqio.Task, int]]]  # language -> its tasks and their examples


def text_dataset(task: seqio.Task, split: str, every: int = 1) -> tf.data.Dataset:
    """Every k-th example of a task as it is before it is tokenised.

    Raises:
      UserError: the task does not tokenise with seqio's preprocessor.
    """
    dataset = task.source.get_dataset(split=split, shuffle=False).shard(every, 0)
    for step in task.preprocessors:
        function = step.func if isinstance(step, functools.partial) else step
        if function in TOKENIZERS:
            return dataset
        if isinstance(step, seqio.CacheDatasetPlaceholder):
            break
        known = {"output_features": task.output_features, "sequence_length": None}
        wanted = inspect.signature(step).parameters
        dataset = step(dataset, **{k: v for k, v in known.items() if k in wanted})
    raise UserError(
        f"task {task.name!r} has no text to train a vocabulary on: its preprocessors must include "
        "seqio.preprocessors.tokenize, as those of tasks.text.add_text_task do"
    )


def text_features(task: seqio.Task, dataset: tf.data.Dataset) -> list[str]:
    """The names of the features that will be tokenised: strings."""
    kept, spec = task_features(task), dataset.element_spec
    return [
        name
        for name in task.output_features
        if name not in kept and name in spec and spec[name].dtype == tf.string
    ]


def read_lines(task: seqio.Task, split: str, every: int = 1) -> Iterator[str]:
    """Yields lines of at most LINE_CHARACTERS characters, without tabs and blank lines."""
    with source_errors(task, split):
        dataset = text_dataset(task, split, every)
        names = text_features(task, dataset)
        dataset = dataset.map(
            lambda example: tf.concat([tf.reshape(example[name], [-1]) for name in names], 0)
        )
        for batch in dataset.ragged_batch(READ_BATCH).prefetch(2):
            # Not ragged where every example has the same number of texts.
            texts = batch.flat_values if isinstance(batch, tf.RaggedTensor) else batch
            for text in texts.numpy().flat:
                for line in text.decode().splitlines():
                    line = line.replace("\t", " ").replace("\0", " ")
                    yield from filter(None, map(str.strip, parts(line, LINE_CHARACTERS)))


def by_language(names: Sequence[str], split: str, modules: Sequence[str]) -> Tasks:
    """Tasks by the language of their first example, and their numbers of examples.

    Args:
      names: of mixtures or tasks; a task of several of them counts once.
      split: of the tasks.
      modules: that define them.

    Raises:
      UserError: there is no such mixture, or a task has no examples.
    """
    import_tasks(modules)
    providers = [find(name, modules) for name in names]
    chosen = {task.name: task for each in providers for task in split_tasks(each, split)}
    for provider in providers:
        say_missing(provider, split)
    tasks: Tasks = {}
    for task in chosen.values():
        with source_errors(task, split):
            dataset = text_dataset(task, split)
            first = next(dataset.take(1).as_numpy_iterator(), None)
        if first is None:
            raise UserError(f"task {task.name!r} has no examples in the split {split!r}")
        languages = np.atleast_1d(first.get("language", task.name.encode()))
        language = "-".join(dict.fromkeys(map(bytes.decode, languages)))
        examples = task.num_input_examples(split)
        if examples is None:
            source = task.source.get_dataset(split=split, shuffle=False)
            examples = int(source.reduce(0, lambda count, _: count + 1))
        tasks.setdefault(language, []).append((task, int(examples)))
    return dict(sorted(tasks.items()))


def file_sizes(tasks: Tasks, split: str) -> dict[str, list[int]]:
    """The sizes in bytes of each task's files, by which a changed text is noticed."""
    return {
        task.name: [os.path.getsize(f) for f in task.source.list_shards(split) if os.path.isfile(f)]
        for each in tasks.values()
        for task, _ in each
    }
