"""A few examples of a task, for few-shot training."""

from typing import Any

import numpy as np

from xl_flax.data.records import RowSource


class Chosen:
    """Some rows of a source, as a source."""

    def __init__(self, source: RowSource, indices: np.ndarray):
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[Any, bytes]:
        return self._source[int(self._indices[index])]


def few(labels: np.ndarray | None, count: int, shots: int, seed: int) -> np.ndarray:
    """Which examples are drawn.

    Args:
      labels: int[count] of the examples, -1 where there is none; None: they have no labels of
        their own, as tagged sentences.
      count: of examples.
      shots: how many of each label are wanted, all of it where it has fewer; without labels, how
        many in all.
      seed: of the draw. With more shots the same examples are drawn, and more.

    Returns:
      Their numbers, in the order in which they are drawn.
    """
    order = np.random.default_rng(seed).permutation(count)
    if labels is None:
        return order[:shots]
    labels = labels[order]
    wanted = [np.flatnonzero(labels == label)[:shots] for label in np.unique(labels[labels >= 0])]
    return order[np.sort(np.concatenate([*wanted, np.zeros(0, np.int64)])).astype(np.int64)]
