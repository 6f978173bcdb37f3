"""From seqio to the cache: writes the splits of tasks, and resolves the rates of mixtures."""

import contextlib
import functools
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from xl_flax.data import fingerprint
from xl_flax.data.build import TRAIN, write_split
from xl_flax.data.features import Example
from xl_flax.data.filtering import Hashes, are_translations, hash_each_text
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache, read_manifest
from xl_flax.data.mixtures import TOKENS_EXPONENT, Mixture, check_alike
from xl_flax.data.prepare import room_for
from xl_flax.data.records import ids_dtype
from xl_flax.data.seqio_tasks import (
    examples,
    find,
    missing_files,
    num_examples,
    seqio,
    shards,
    split_tasks,
    task_features,
    task_fingerprint,
)
from xl_flax.data.shuffling import HELD_TOKENS
from xl_flax.data.task_errors import check_languages
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.progress import progress

TOKEN_BYTES = 4  # of text to a token, about


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
            provider = find(name, modules)
            tasks = seqio.get_subtasks(provider)
            splits = []
            for split in sorted({split for task in tasks for split in task.splits} - {TRAIN}):
                missing = missing_files(provider, split)
                splits += [(t, split) for t in tasks if split in t.splits and t.name not in missing]
            if not splits:
                raise UserError(
                    f"Filter.exclude: {name!r} has no split but {TRAIN!r} to exclude, or no files "
                    "of any other"
                )
            self._splits += splits

    @functools.cached_property
    def sources(self) -> dict[str, dict[str, Any]]:
        """The modules and files that the text comes from."""
        prints = [task_fingerprint(*s, self._owners, self._vocabulary) for s in self._splits]
        keys = ("modules", "files")
        return {key: {k: v for each in prints for k, v in each[key].items()} for key in keys}

    @functools.cached_property
    def hashes(self) -> Hashes:
        """Of the tokens of each text, read when they are first needed."""
        hashes = Hashes()
        for task, split in self._splits:
            batches = (batch for batch, _ in examples(task, split))
            hash_each_text(itertools.chain.from_iterable(batches), hashes)
        return hashes


def cache_split(
    task: seqio.Task,
    split: str,
    layout: Layout,
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
    features = task_features(task)
    now = task_fingerprint(task, split, owners, vocabulary)
    if split == TRAIN:
        now |= {key: now[key] | more for key, more in excluded.sources.items()}
    try:
        manifest = read_manifest(cache.folder(task.name, split, layout))
        if manifest:
            now["filter"] = cache.filter.settings(split, manifest.translations)
        reasons = fingerprint.changes(manifest.fingerprint, now) if manifest else ["not cached"]
        if manifest and manifest.features != features:
            reasons.append("its features changed")
    except UserError as error:
        reasons = [str(error).split(": run ")[0]]
    if not reasons and not overwrite:
        return False
    if reasons not in ([], ["not cached"]):
        print(f"{task.name} ({split}): {', '.join(reasons)}: caching it again", file=sys.stderr)
    batches = examples(task, split)
    first = next(batches, ([], [("",)]))
    languages = first[1][0]
    now["filter"] = cache.filter.settings(split, are_translations(languages, features))
    total, needed = num_examples(task, split), _bytes_needed(task, split, vocabulary)
    name, title = f"task {task.name!r}, split {split!r}", f"{title}{task.name} ({split})"
    with (
        room_for(cache, f"the cache of {task.name} ({split})", needed),
        progress(total, title, "examples") as advance,
    ):

        def checked() -> Iterator[Example]:
            for batch, given in itertools.chain([first], batches):
                check_languages(name, languages, batch, given)
                advance(len(batch))
                yield from batch

        write_split(
            *(cache, task.name, split, layout, checked()),
            languages=languages,
            vocabulary=vocabulary,
            fingerprint=now,
            features=features,
            excluded=excluded.hashes if split == TRAIN else None,
        )
    return True


def _bytes_needed(task: seqio.Task, split: str, vocabulary: Vocabulary) -> int:
    """About how many bytes a train split takes; the files of others may hold much else."""
    if split != TRAIN:
        return 0
    tokens = sum(map(os.path.getsize, shards(task, split))) // TOKEN_BYTES
    return tokens * (ids_dtype(vocabulary.size).itemsize + 4 * (tokens > HELD_TOKENS))


def resolve_mixture(
    name: str, split: str, layout: Layout, cache: Cache, owners: dict[str, str]
) -> Mixture:
    """Tasks and rates of a mixture whose tasks have been cached.

    seqio's functions of rates ask a task how many examples it has; the cache knows. How many tokens
    it has depends on the layout, so rates over tokens are left to `row_rates`.

    Raises:
      UserError: no task is left, or a mixture with rates over tokens is part of another one.
    """
    provider = seqio.get_mixture_or_task(name)
    tasks = split_tasks(provider, split)
    manifests = {t.name: read_manifest(cache.folder(t.name, split, layout)) for t in tasks}
    check_alike(manifests.values())
    examples = {task: manifest.offered for task, manifest in manifests.items()}
    with contextlib.ExitStack() as stack:
        for task in tasks:
            # get_rate compares tasks, so a stand-in would not do.
            task.num_input_examples = lambda split, count=examples[task.name]: count
            stack.callback(delattr, task, "num_input_examples")
        if isinstance(provider, seqio.Mixture):
            _check_parts(provider)
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
        exponent=getattr(provider, TOKENS_EXPONENT, None),
        missing=missing_files(provider, split),
    )


def _check_parts(mixture: seqio.Mixture) -> None:
    """Raises UserError if rates of a mixture inside, however deep, would be lost.

    They count tokens, of which seqio knows nothing.
    """
    for name in mixture.rate_per_task_name:
        part = seqio.get_mixture_or_task(name)
        if hasattr(part, TOKENS_EXPONENT):
            raise UserError(
                f"mixture {mixture.name!r} holds {name!r}, whose rates count tokens, which seqio "
                "cannot combine: name the tasks themselves"
            )
        if isinstance(part, seqio.Mixture):
            _check_parts(part)
