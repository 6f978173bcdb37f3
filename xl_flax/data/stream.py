"""The stream of rows: shuffled, repeated and mixed, a pure function of the index.

Nothing here has a state: row i of a stream follows from the caches, the seed and i. The state of
training is the number of rows consumed.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import grain
import numpy as np

from xl_flax.data.manifest import Cache, Manifest, read_unigrams
from xl_flax.data.mixing import Mixing
from xl_flax.data.mixtures import common_num_texts, row_rates
from xl_flax.data.prepare import DatasetSpec, prepare
from xl_flax.data.records import RowSource, decode_rows, ids_dtype
from xl_flax.data.tables import split_table
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError

Batch = dict[str, np.ndarray]
Unigrams = dict[str, tuple[np.ndarray, np.ndarray]]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows that an objective reads."""

    mixture: str | Sequence[tuple[int, str]] = gin.REQUIRED
    """Name of a mixture or task, or phases [(first row, name), ...] at absolute row counts."""
    length: int = gin.REQUIRED
    """Tokens per row, special tokens included."""
    split: str = "train"
    max_epochs: float | None = None
    """Passes over a task after which it leaves the mixture; the others stay in proportion."""

    @property
    def phases(self) -> list[tuple[int, str]]:
        """The mixture as phases.

        Raises:
          UserError: they do not begin at row 0 or do not ascend.
        """
        if isinstance(self.mixture, str):
            return [(0, self.mixture)]
        phases = [(int(first), name) for first, name in self.mixture]
        firsts = [first for first, _ in phases]
        if not phases or firsts[0] != 0 or any(a >= b for a, b in itertools.pairwise(firsts)):
            raise UserError(
                f"Rows.mixture has phases at rows {firsts}: they must begin at 0 and ascend"
            )
        return phases

    def description(self) -> dict[str, Any]:
        """What a run may not change when it goes on, as JSON can hold it."""
        return {
            "mixture": [list(phase) for phase in self.phases],
            "split": self.split,
            "max_epochs": self.max_epochs,
            "length": self.length,
        }

    @property
    def datasets(self) -> list[DatasetSpec]:
        """What must be cached for these rows."""
        return [
            DatasetSpec(name, self.split, self.length) for name in {n: 0 for _, n in self.phases}
        ]


class Stream:
    """Random access to an endless stream of rows; made by `open_stream`.

    Attributes:
      tasks: names, sorted.
      languages: sorted; a row's languages are indices into them.
      length: tokens per row.
      num_texts: texts in an example: 1, or K for a sentence and its translations.
      examples_per_row: examples of several texts that a row holds at most; 0 if of one text.
    """

    def __init__(
        self,
        rows: Rows,
        cache: Cache,
        seed: int,
        vocabulary: Vocabulary,
        phases: Sequence[tuple[int, dict[str, float]]],
        manifests: dict[str, Manifest],
    ):
        self.tasks = tuple(sorted(manifests))
        self.languages = _languages(manifests)
        self.length = rows.length
        self.num_texts = common_num_texts(manifests.values())
        self.examples_per_row = max(manifest.examples_per_row for manifest in manifests.values())
        self._manifests = manifests
        self._folders = {t: cache.folder(t, rows.split, rows.length) for t in self.tasks}
        self._dtype, self._pad_id = ids_dtype(vocabulary.size), vocabulary.special.pad
        limits = None
        if rows.max_epochs is not None:
            sizes = np.array([manifests[task].rows for task in self.tasks])
            limits = np.maximum(1, np.floor(rows.max_epochs * sizes)).astype(np.int64)
        rates = [(first, [rate.get(t, 0.0) for t in self.tasks]) for first, rate in phases]
        self._mixing = Mixing(rates, seed, limits, self.tasks)
        self._rows = grain.MapDataset.select_from_datasets(
            [self._shuffled(task, seed) for task in self.tasks], self._mixing
        )

    def _shuffled(self, task: str, seed: int) -> grain.MapDataset:
        manifest = self._manifests[task]
        tag = _tag(manifest, self.languages)
        source = RowSource(self._folders[task], manifest.shards, tag)
        # With one seed for all, aligned corpora of equal length would come out in lockstep.
        digest = hashlib.sha256(f"{seed}/{task}".encode()).digest()
        task_seed = int.from_bytes(digest[:4], "little")
        return grain.MapDataset.source(source).shuffle(seed=task_seed).repeat()

    def rows(self, indices: Sequence[int]) -> Batch:
        """The rows at these indices of the stream, in that order.

        Returns:
          tokens, segment_ids (1, 2, ... by segment, 0 for padding) and positions (from 0 in each
          segment) int32[n, length]; languages int32[n, num_texts]; row_id (the index, its low 32
          bits) int32[n].

          Text k of a row's example e is segment e * num_texts + k + 1.

        Raises:
          UserError: a cache file is damaged, or the mixture has run out of rows (`max_epochs`).
        """
        found = [self._rows[int(index)] for index in indices]
        batch = decode_rows([r for _, r in found], self.length, self._dtype, self._pad_id)
        batch["languages"] = np.array([language for language, _ in found], np.int32)
        # Keys fold in 32 bits; long runs read more than 2^31 rows.
        batch["row_id"] = np.array(indices, np.int64).astype(np.uint32).view(np.int32)
        return batch

    def epochs(self, num_rows: int) -> dict[str, float]:
        """How often the first `num_rows` rows go through each task.

        Raises:
          UserError: the stream does not have so many rows, because of `max_epochs`.
        """
        used = self._mixing.used(num_rows)
        return {t: int(u) / self._manifests[t].rows for t, u in zip(self.tasks, used, strict=True)}

    def table(self, num_rows: int) -> str:
        """What the first `num_rows` rows read, one line per task."""
        epochs = self.epochs(num_rows)
        manifests = [self._manifests[task] for task in self.tasks]
        shares = [epochs[m.task] * m.rows / num_rows for m in manifests]
        return split_table(manifests, shares, list(epochs.values()))

    def unigrams(self) -> Unigrams:
        """Language -> (token ids int32[k], ascending, without specials; counts int64[k])."""
        return _unigrams(self._folders, self._manifests)


def _languages(manifests: Mapping[str, Manifest]) -> tuple[str, ...]:
    return tuple(sorted({name for m in manifests.values() for name in m.languages}))


def _tag(manifest: Manifest, languages: Sequence[str]) -> tuple[int, ...]:
    """What a batch says of the languages of a row: an id for each text of an example."""
    return tuple(languages.index(name) for name in manifest.languages)


def _unigrams(folders: Mapping[str, Path], manifests: Mapping[str, Manifest]) -> Unigrams:
    by_language: dict[str, list] = {}
    for task, manifest in manifests.items():
        for side, language in enumerate(manifest.languages):
            by_language.setdefault(language, []).append(read_unigrams(folders[task], side))
    return {language: _sum(by_language[language]) for language in sorted(by_language)}


def _sum(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    ids, inverse = np.unique(np.concatenate([ids for ids, _ in parts]), return_inverse=True)
    counts = np.zeros(len(ids), np.int64)
    np.add.at(counts, inverse, np.concatenate([counts for _, counts in parts]))
    return ids, counts


def open_stream(
    rows: Rows,
    cache: Cache,
    seed: int,
    vocabulary: Vocabulary,
    gin_flags: Sequence[str] = (),
) -> Stream:
    """Opens a stream; builds its caches first if they are missing, as `cache.on_missing` says.

    Args:
      rows: which rows.
      cache: where they lie.
      seed: of the order of the rows.
      vocabulary: of the run.
      gin_flags: the Gin flags of this process, for the process that builds caches.

    Raises:
      UserError: a cache is damaged, or missing or stale and not built.
    """
    ready = prepare(rows.datasets, cache, vocabulary, gin_flags)
    by_name = {r.mixture.name: r for r in ready}
    phases = [
        (first, row_rates(by_name[name].mixture, by_name[name].manifests))
        for first, name in rows.phases
    ]
    manifests = {task: manifest for r in ready for task, manifest in r.manifests.items()}
    return Stream(rows, cache, seed, vocabulary, phases, manifests)


class HeldOutRows:
    """The rows of a held-out split, in order and each once; made by `open_eval_rows`.

    Attributes:
      tasks: names, sorted; their rows follow one another.
      languages: a row's languages are indices into them.
      length: tokens per row.
      num_texts: as of `Stream`.
      examples_per_row: as of `Stream`.
    """

    def __init__(
        self,
        manifests: Mapping[str, Manifest],
        folders: Mapping[str, Path],
        languages: Sequence[str],
        length: int,
        vocabulary: Vocabulary,
        rows_per_task: int | None,
    ):
        self.tasks, self.languages, self.length = tuple(manifests), tuple(languages), length
        self.num_texts = common_num_texts(manifests.values())
        self.examples_per_row = max(manifest.examples_per_row for manifest in manifests.values())
        self._manifests, self._folders = manifests, folders
        self._dtype, self._pad_id = ids_dtype(vocabulary.size), vocabulary.special.pad
        self._places = []
        for task, manifest in manifests.items():
            source = RowSource(folders[task], manifest.shards, _tag(manifest, self.languages))
            count = min(len(source), rows_per_task or len(source))
            self._places += [(source, i) for i in range(count)]

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, indices: Sequence[int]) -> Batch:
        """As `Stream.rows`; past the end come padding rows, with row_id = -1 and segment_ids 0."""
        places = [self._places[i] if i < len(self) else None for i in indices]
        padding = ((0,) * self.num_texts, b"\0\0\0\0")
        found = [place[0][place[1]] if place else padding for place in places]
        batch = decode_rows([r for _, r in found], self.length, self._dtype, self._pad_id)
        batch["languages"] = np.array([language for language, _ in found], np.int32)
        batch["row_id"] = np.array([i if i < len(self) else -1 for i in indices], np.int32)
        return batch

    def unigrams(self) -> Unigrams:
        """As `Stream.unigrams`, of whole splits."""
        return _unigrams(self._folders, self._manifests)


def open_eval_rows(
    mixture: str,
    split: str,
    length: int,
    cache: Cache,
    vocabulary: Vocabulary,
    *,
    languages: Sequence[str] | None = None,
    rows_per_task: int | None = None,
    gin_flags: Sequence[str] = (),
) -> HeldOutRows:
    """Opens the held-out rows of a mixture, finite and in order.

    Args:
      mixture: name of a mixture or task.
      split: as "validation".
      length: tokens per row.
      cache: where they lie.
      vocabulary: of the run.
      languages: that a row's language is an index into; by default those of the mixture, sorted.
      rows_per_task: at most so many rows of each task.
      gin_flags: the Gin flags of this process, for the process that builds caches.
    """
    (ready,) = prepare([DatasetSpec(mixture, split, length)], cache, vocabulary, gin_flags)
    manifests = dict(sorted(ready.manifests.items()))
    own = _languages(manifests)
    languages = tuple(own if languages is None else languages)
    if missing := set(own) - set(languages):
        raise UserError(f"mixture {mixture!r} has languages {sorted(missing)} beyond {languages}")
    folders = {task: cache.folder(task, split, length) for task in manifests}
    return HeldOutRows(manifests, folders, languages, length, vocabulary, rows_per_task)
