"""Which task gives the row at an index: an O(1) function of the index alone."""

import bisect
import dataclasses
import functools
import sys
import threading
from collections.abc import Sequence

import grain
import numpy as np

from xl_flax.errors import UserError

_PRECISION = 250  # rows per block of the rarest task: its rate is exact to half of one of them
_MAX_BLOCK = 2**20


@dataclasses.dataclass(frozen=True)
class _Segment:
    """Consecutive rows with the same rates."""

    first: int
    end: int
    counts: np.ndarray  # int64[tasks]: rows per block
    used: np.ndarray  # int64[tasks]: rows taken before this segment


def block_counts(rates: np.ndarray) -> np.ndarray:
    """Whole numbers in proportion to rates, by largest remainder; at least one where it is not 0.

    Args:
      rates: f64[tasks], not negative, not all 0.

    Returns:
      int64[tasks].
    """
    share = rates / rates.sum()
    rarest = share[share > 0].min()
    size = int(min(_MAX_BLOCK, np.ceil(_PRECISION / rarest)))
    counts = np.floor(share * size).astype(np.int64)
    rest = size - int(counts.sum())
    counts[np.argsort(counts - share * size, kind="stable")[:rest]] += 1
    return np.where(share > 0, np.maximum(counts, 1), 0)


def block_pattern(counts: np.ndarray, seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Spreads tasks over a block so that every stretch of it is close to the rates.

    The k-th of a task's n rows lies at a random point of the k-th n-th of the block.

    Returns:
      The task of each row int16[sum(counts)], and which of the task's rows it is int32[...].
    """
    rng = np.random.default_rng(seed)
    tasks = np.repeat(np.arange(len(counts), dtype=np.int16), counts)
    ranks = np.arange(len(tasks)) - np.repeat(np.cumsum(counts) - counts, counts)
    places = (ranks + rng.random(len(tasks))) / counts[tasks]
    # Sorting whole numbers that end in the index is faster than argsort, and knows no ties.
    keys = (places * 2**42).astype(np.int64) << 21 | np.arange(len(tasks))
    order = np.sort(keys) & (2**21 - 1)
    return tasks[order], ranks[order].astype(np.int32)


class Mixing(grain.transforms.DatasetSelectionMap):
    """Index of a row in the stream -> (task, index of the row within the task).

    Args:
      phases: (first row, rates per row f64[tasks]) in ascending order, the first at row 0.
      seed: of the order in which tasks take turns.
      limits: int64[tasks], rows after which a task leaves the mixture and the others share its
        part; None for no limit.
      tasks: names, for messages.
    """

    def __init__(
        self,
        phases: Sequence[tuple[int, np.ndarray]],
        seed: int,
        limits: np.ndarray | None,
        tasks: Sequence[str],
    ):
        self._phases = [(first, np.asarray(rates, np.float64)) for first, rates in phases]
        self._seed, self._limits, self._tasks = seed, limits, tuple(tasks)
        self._segments: list[_Segment] = []
        self._firsts: list[int] = []
        self._lock = threading.Lock()
        self._pattern = functools.lru_cache(maxsize=4)(self._make_pattern)
        self._extend(0, np.zeros(len(tasks), np.int64))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        number = self._find(index)
        segment = self._segments[number]
        tasks, ranks = self._pattern(number)
        block, offset = divmod(index - segment.first, len(tasks))
        task = int(tasks[offset])
        return task, int(segment.used[task] + block * segment.counts[task] + ranks[offset])

    def used(self, num_rows: int) -> np.ndarray:
        """How many of the first `num_rows` rows each task gives, int64[tasks]."""
        if not num_rows:
            return np.zeros(len(self._tasks), np.int64)
        number = self._find(num_rows - 1)
        return self._used_within(number, num_rows)

    def _used_within(self, number: int, end: int) -> np.ndarray:
        segment = self._segments[number]
        tasks, _ = self._pattern(number)
        blocks, rest = divmod(end - segment.first, len(tasks))
        partial = np.bincount(tasks[:rest], minlength=len(self._tasks))
        return segment.used + blocks * segment.counts + partial

    def _find(self, index: int) -> int:
        while index >= self._segments[-1].end:
            with self._lock:
                last = self._segments[-1]
                if index >= last.end:
                    self._extend(last.end, self._used_within(len(self._segments) - 1, last.end))
        return bisect.bisect_right(self._firsts, index) - 1

    def _make_pattern(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        return block_pattern(self._segments[number].counts, [self._seed, number])

    def _extend(self, first: int, used: np.ndarray) -> None:
        """Appends the segment that begins at row `first`."""
        phase = bisect.bisect_right([begin for begin, _ in self._phases], first) - 1
        rates = self._phases[phase][1]
        if self._limits is not None:
            rates = np.where(used < self._limits, rates, 0)
        if not rates.any():
            raise UserError(
                f"the mixture runs out of rows at row {first:,}: all of its tasks "
                f"({', '.join(self._names(phase))}) have reached max_epochs. Train for fewer rows "
                "or raise max_epochs"
            )
        end = self._phases[phase + 1][0] if phase + 1 < len(self._phases) else sys.maxsize
        counts = block_counts(rates)
        if self._limits is not None:
            tasks, _ = block_pattern(counts, [self._seed, len(self._segments)])
            for task in np.flatnonzero(counts):
                block, rank = divmod(int(self._limits[task] - used[task]) - 1, int(counts[task]))
                offset = int(np.flatnonzero(tasks == task)[rank])
                end = min(end, first + block * len(tasks) + offset + 1)
        # In this order: a thread that sees the new segment finds it among the firsts, too.
        self._firsts.append(first)
        self._segments.append(_Segment(first, end, counts, used))

    def _names(self, phase: int) -> list[str]:
        names = [self._tasks[i] for i in np.flatnonzero(self._phases[phase][1])]
        return names if len(names) <= 5 else [*names[:5], "..."]
