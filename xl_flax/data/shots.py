"""A few examples of a task, for few-shot training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xl_flax.data.features import Features
from xl_flax.data.records import RowSource
from xl_flax.errors import UserError


class Chosen:
    """Some rows of a source, as a source."""

    def __init__(self, source: RowSource, indices: np.ndarray):
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[Any, bytes]:
        return self._source[int(self._indices[index])]


def few_rows(
    task: str, batches: Sequence[Mapping[str, np.ndarray]], specs: Features, shots: int, seed: int
) -> np.ndarray:
    """Which rows of a task are drawn, int[n], ascending.

    Args:
      task: its name.
      batches: all its rows, one example or a piece of one in each.
      specs: features of the examples.
      shots: as for `few`.
      seed: of the draw.

    Raises:
      UserError: the examples have no features, or several labels.
    """
    names = [key for key, spec in specs.items() if spec.kind == "example" and spec.labels]
    if not specs or len(names) > 1:
        raise UserError(
            f"Rows.shots = {shots}: the examples of {task} have "
            + (f"several labels ({', '.join(names)})" if names else "no labels, only text")
        )
    numbers = np.concatenate([batch["example"][:, 0] for batch in batches])
    # An example that was cut or is read through windows has several rows: all or none are drawn.
    examples, first = np.unique(numbers, return_index=True)
    labels = None
    if names:
        labels = np.concatenate([batch[names[0]][:, 0] for batch in batches])[first]
    chosen = examples[few(labels, len(examples), shots, seed)]
    return np.flatnonzero(np.isin(numbers, chosen))


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
