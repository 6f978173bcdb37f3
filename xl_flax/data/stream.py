"""The stream of rows: shuffled, repeated and mixed, a pure function of the index.

Nothing here has a state: row i of a stream follows from the caches, the seed and i. The state of
training is the number of rows consumed.
"""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import gin
import grain
import numpy as np

from xl_flax.data.batch_packing import MOST, pack_batch
from xl_flax.data.features import FeatureSpec
from xl_flax.data.layout import Layout, Length, Packing, Policy
from xl_flax.data.manifest import read_unigrams
from xl_flax.data.mixing import Mixing
from xl_flax.data.mixtures import check_alike, mixture_names, row_rates
from xl_flax.data.prepare import CachedMixture, Caches, DatasetSpec
from xl_flax.data.records import RowSource, decode_rows, ids_dtype
from xl_flax.data.shots import Chosen, few_rows
from xl_flax.data.tables import split_table
from xl_flax.data.unknown import unknown_shares
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.settings import Count, MixtureName, Name, Natural, Positive, Settings

Batch = dict[str, np.ndarray]
Unigrams = dict[str, tuple[np.ndarray, np.ndarray]]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Rows(Settings):
    """The rows that an objective reads."""

    mixture: MixtureName = gin.REQUIRED
    """Name of a mixture or task, or phases [(first row, name), ...] at absolute row counts."""
    length: Length = gin.REQUIRED
    """Tokens per row, special tokens included."""
    split: Name = "train"
    max_epochs: Positive | None = None
    """Passes over a task after which it leaves the mixture; the others stay in proportion."""
    packing: Packing | Literal["batch"] = "packed"
    """"packed": as many examples in a row as fit; "single": one example a row; "batch": batch sizes
    count examples, and those of a batch are laid out together in as few rows as hold them."""
    too_long: Policy | None = None
    """What happens to examples longer than a row: "cut", "truncate", "window" or "drop" (see
    `Layout`). None: "cut" for text of one language without features, "drop" for other examples."""
    stride: Natural = 0
    """Tokens that two windows which follow each other share."""
    shots: Count | None = None
    """So many examples of each label, of each task, or so many in all where examples have no label
    of their own, drawn by the run's seed: few-shot training. None: all. Not of packed rows."""

    def __post_init__(self):
        super().__post_init__()
        _ = self.layout  # is checked
        if self.shots and self.packing == "packed":
            self.fail("shots are examples, and rows hold several: set Rows.packing = 'batch'")

    @property
    def layout(self) -> Layout:
        """How examples lie in the rows."""
        packing = "single" if self.packing == "batch" else self.packing
        return Layout(self.length, packing, self.too_long, self.stride)

    @property
    def phases(self) -> list[tuple[int, str]]:
        """The mixture as phases."""
        if isinstance(self.mixture, str):
            return [(0, self.mixture)]
        return [(first, name) for first, name in self.mixture]

    def description(self) -> dict[str, Any]:
        """What a run may not change when it goes on, as JSON can hold it."""
        description = {
            "mixture": [list(phase) for phase in self.phases],
            "split": self.split,
            "max_epochs": self.max_epochs,
            "length": self.length,
        }
        if self.layout != Layout(self.length):
            description["layout"] = str(self.layout)
        if self.packing == "batch":
            description["packing"] = self.packing
        if self.shots:
            description["shots"] = self.shots
        return description

    @property
    def datasets(self) -> list[DatasetSpec]:
        """What must be cached for these rows."""
        return [DatasetSpec(name, self.split, self.layout) for name in mixture_names(self.phases)]


class _Reader:
    """What streams and held-out rows share: the tasks' rows, and their decoding."""

    tasks: tuple[str, ...]
    """Names, sorted."""
    languages: tuple[str, ...]
    """A row's languages are indices into them."""
    length: int
    """Tokens per row."""
    num_texts: int
    """Texts in an example: 1, or K for pairs or a sentence and its translations."""
    examples_per_row: int
    """Examples that a row holds at most; 0 for packed text of one language without features, where
    the number is not bounded."""
    features: dict[str, FeatureSpec]
    """Declared by the tasks, by name; those of numbers stand in a batch."""

    def __init__(
        self,
        datasets: Iterable[CachedMixture],
        length: int,
        vocabulary: Vocabulary,
        languages: Sequence[str] | None = None,
    ):
        self._manifests, self._folders = {}, {}
        for dataset in datasets:
            self._manifests |= dataset.manifests
            self._folders |= dataset.folders
        manifests = [self._manifests[task] for task in sorted(self._manifests)]
        self.tasks, self.length = tuple(manifest.task for manifest in manifests), length
        first = check_alike(manifests)
        self.num_texts, self.features = first.num_texts, first.features
        self.examples_per_row = max(manifest.examples_per_row for manifest in manifests)
        own = {name for manifest in manifests for name in manifest.languages}
        self.languages = tuple(sorted(own) if languages is None else languages)
        if missing := own - set(self.languages):
            raise UserError(
                f"{', '.join(self.tasks)}: languages {sorted(missing)} beyond {self.languages}"
            )
        self._dtype, self._pad_id = ids_dtype(vocabulary.size), vocabulary.special.pad

    def _source(self, task: str) -> RowSource:
        manifest = self._manifests[task]
        tag = tuple(self.languages.index(name) for name in manifest.languages)
        return RowSource(self._folders[task], manifest.shards, manifest.mark, tag)

    def _batch(self, rows: Sequence[tuple[tuple[int, ...], bytes]]) -> Batch:
        batch = decode_rows(
            [record for _, record in rows],
            self.length,
            self._dtype,
            self._pad_id,
            num_texts=self.num_texts,
            examples_per_row=self.examples_per_row,
            specs=self.features,
        )
        batch["languages"] = np.array([languages for languages, _ in rows], np.int32)
        return batch

    def unigrams(self) -> Unigrams:
        """Language -> (token ids int32[k], ascending, without specials; counts int64[k])."""
        by_language: dict[str, list] = {}
        for task in self.tasks:
            manifest = self._manifests[task]
            for text, language in enumerate(manifest.languages):
                counts = read_unigrams(self._folders[task], manifest, text)
                by_language.setdefault(language, []).append(counts)
        return {language: _sum(by_language[language]) for language in sorted(by_language)}

    def task_names(self) -> list[str]:
        """What each task is called in results: by its language, if it is the only one of it."""
        languages = ["-".join(dict.fromkeys(self._manifests[t].languages)) for t in self.tasks]
        return [
            name if languages.count(name) == 1 else task
            for name, task in zip(languages, self.tasks, strict=True)
        ]

    def languages_by_name(self) -> dict[str, tuple[str, ...]]:
        """The languages of each of the `task_names`."""
        languages = (self._manifests[task].languages for task in self.tasks)
        return dict(zip(self.task_names(), languages, strict=True))

    def unknown(self) -> dict[str, float]:
        """Language -> share of the pieces of its text that the vocabulary does not know."""
        return unknown_shares(self._manifests[task] for task in self.tasks)


class Stream(_Reader):
    """Random access to an endless stream of rows; made by `open_stream`.

    Attributes:
      by_example: whether rows hold one example each, of which a batch is laid out by `packed`.
    """

    def __init__(self, rows: Rows, caches: Caches, seed: int, vocabulary: Vocabulary):
        datasets = {spec.mixture: caches[spec] for spec in rows.datasets}
        super().__init__(datasets.values(), rows.length, vocabulary)
        self.by_example = rows.packing == "batch"
        if self.by_example:
            self.examples_per_row = MOST
        sources = {task: self._source(task) for task in self.tasks}
        if rows.shots:
            sources = {task: self._few(task, sources[task], rows.shots, seed) for task in sources}
        self._sizes = {task: len(source) for task, source in sources.items()}
        limits = None
        if rows.max_epochs is not None:
            sizes = np.array([self._sizes[task] for task in self.tasks])
            limits = np.maximum(1, np.floor(rows.max_epochs * sizes)).astype(np.int64)
        phases, self._rates = [], {}
        for first, name in rows.phases:
            rates = row_rates(datasets[name].mixture, datasets[name].manifests)
            phases.append((first, [rates.get(task, 0.0) for task in self.tasks]))
            self._rates[name] = {task: float(rate) for task, rate in rates.items()}
        self._mixing = Mixing(phases, seed, limits, self.tasks)
        self._rows = grain.MapDataset.select_from_datasets(
            [
                grain.MapDataset.source(sources[task]).shuffle(seed=_seed(task, seed)).repeat()
                for task in self.tasks
            ],
            self._mixing,
        )

    def _few(self, task: str, source: RowSource, shots: int, seed: int) -> Chosen:
        parts = np.array_split(np.arange(len(source)), len(source) // 1000 + 1)
        rows = [self._batch([source[int(i)] for i in part]) for part in parts if len(part)]
        chosen = few_rows(task, rows, self.features, shots, _seed(f"{task}/shots", seed))
        return Chosen(source, chosen)

    def rows(self, indices: Sequence[int]) -> Batch:
        """The rows at these indices of the stream, in that order.

        Returns:
          tokens, segment_ids (1, 2, ... by segment, 0 for padding) and positions (from 0 in each
          segment) int32[n, length]; languages int32[n, num_texts]; row_id (the index, its low 32
          bits) int32[n].

          Where tasks declare features, also example and piece int32[n, examples_per_row], the
          number of each example in its split and which piece of it this is, and each feature by
          its name, int32 or float32: of kind "example" [n, examples_per_row], "token" [n, length],
          "span" [n, examples_per_row, 2] positions of the first and the last token in the row.
          Where there is nothing, they are -1, and features of float32 are 0.

          Text k of a row's example e is segment e * num_texts + k + 1.

        Raises:
          UserError: a cache file is damaged, or the mixture has run out of rows (`max_epochs`).
        """
        batch = self._batch([self._rows[int(index)] for index in indices])
        # Keys fold in 32 bits; long runs read more than 2^31 rows.
        batch["row_id"] = np.array(indices, np.int64).astype(np.uint32).view(np.int32)
        return batch

    def packed(self, first_row: int, count: int, multiple: int) -> Batch:
        """So many examples from `first_row` on, together in as few rows as hold them.

        Args:
          first_row: index in the stream of the first one.
          count: examples.
          multiple: of which the number of rows is one.

        Returns:
          As `rows`, with `MOST` places for examples in a row; see `pack_batch`.
        """
        single = self.rows(range(first_row, first_row + count))
        return pack_batch(single, self.num_texts, self.features, self._pad_id, multiple)

    def description(self) -> dict[str, Any]:
        """What the rows follow from, beside `Rows` and the seed, as JSON can hold it.

        Returns:
          "cached", by task how many rows and from what; "rates of MIXTURE", the share of the rows
          by task.
        """
        cached = {}
        for task, manifest in self._manifests.items():
            source = json.dumps(manifest.fingerprint, sort_keys=True)
            cached[task] = f"{manifest.rows:,} rows made of {zlib.crc32(source.encode()):08x}"
        rates = {f"rates of {name}": rates for name, rates in self._rates.items()}
        return {"cached": cached, **rates}

    def epochs(self, num_rows: int) -> dict[str, float]:
        """How often the first `num_rows` rows go through each task.

        Raises:
          UserError: the stream does not have so many rows, because of `max_epochs`.
        """
        used = self._mixing.used(num_rows)
        return {t: int(u) / self._sizes[t] for t, u in zip(self.tasks, used, strict=True)}

    def table(self, num_rows: int) -> str:
        """What the first `num_rows` rows read, one line per task."""
        epochs = self.epochs(num_rows)
        manifests = [self._manifests[task] for task in self.tasks]
        shares = [epochs[m.task] * self._sizes[m.task] / num_rows for m in manifests]
        return split_table(manifests, shares, list(epochs.values()))


def _seed(what: str, seed: int) -> int:
    # With one seed for all, aligned corpora of equal length would come out in lockstep.
    return int.from_bytes(hashlib.sha256(f"{seed}/{what}".encode()).digest()[:4], "little")


def _sum(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    ids, inverse = np.unique(np.concatenate([ids for ids, _ in parts]), return_inverse=True)
    counts = np.zeros(len(ids), np.int64)
    np.add.at(counts, inverse, np.concatenate([counts for _, counts in parts]))
    return ids, counts


def open_stream(rows: Rows, caches: Caches, seed: int, vocabulary: Vocabulary) -> Stream:
    """Opens a stream.

    Args:
      rows: which rows.
      caches: with the datasets of these rows.
      seed: of the order of the rows.
      vocabulary: of the run.

    Raises:
      UserError: the tasks' examples do not look alike.
      KeyError: a dataset was not prepared.
    """
    return Stream(rows, caches, seed, vocabulary)


class HeldOutRows(_Reader):
    """The rows of held-out splits, in order and each once; made by `open_held_out`.

    The rows of tasks follow one another.

    Attributes:
      row_tasks: int[rows], of each row the place of its task among `tasks`.
    """

    def __init__(
        self,
        specs: Sequence[DatasetSpec],
        caches: Caches,
        vocabulary: Vocabulary,
        languages: Sequence[str] | None,
        rows_per_task: int | None,
    ):
        length = specs[0].layout.length
        super().__init__([caches[spec] for spec in specs], length, vocabulary, languages)
        self._places, counts = [], []
        for task in self.tasks:
            source = self._source(task)
            counts.append(min(len(source), rows_per_task or len(source)))
            self._places += [(source, i) for i in range(counts[-1])]
        self.row_tasks = np.repeat(np.arange(len(counts)), counts)

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, indices: Sequence[int]) -> Batch:
        """As `Stream.rows`; past the end come padding rows, with row_id = -1 and segment_ids 0."""
        places = [self._places[i] if i < len(self) else None for i in indices]
        padding = ((0,) * self.num_texts, b"\0\0\0\0")
        batch = self._batch([place[0][place[1]] if place else padding for place in places])
        batch["row_id"] = np.array([i if i < len(self) else -1 for i in indices], np.int32)
        return batch


def open_held_out(
    specs: Sequence[DatasetSpec],
    caches: Caches,
    vocabulary: Vocabulary,
    *,
    languages: Sequence[str] | None = None,
    rows_per_task: int | None = None,
) -> HeldOutRows:
    """Opens the held-out rows of one or more datasets of one split and layout.

    Args:
      specs: the datasets; a task of several of them is read once.
      caches: with these datasets.
      vocabulary: of the run.
      languages: that a row's languages are indices into; by default those of the tasks, sorted.
      rows_per_task: at most so many rows of each task.

    Raises:
      UserError: the tasks' examples do not look alike, or a language is not among `languages`.
      KeyError: a dataset was not prepared.
    """
    if len({spec[1:] for spec in specs}) != 1:
        raise ValueError(f"one split and layout are needed, not {', '.join(map(str, specs))}")
    return HeldOutRows(specs, caches, vocabulary, languages, rows_per_task)
