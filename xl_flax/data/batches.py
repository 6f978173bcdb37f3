"""Batches on the devices: each process reads the rows that its own devices need."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from xl_flax.errors import UserError

Batch = dict[str, jax.Array]


class RowReader(Protocol):
    """`Stream` and `HeldOutRows`."""

    def rows(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        """The rows at these indices."""


def needed_rows(indices: Mapping[Any, tuple[slice, ...]], batch_size: int) -> np.ndarray:
    """The rows of a batch that some devices need, int[n], ascending, each once.

    Args:
      indices: device -> its part of the batch, from `Sharding.addressable_devices_indices_map`.
      batch_size: rows of the whole batch.
    """
    spans = {part[0].indices(batch_size)[:2] for part in indices.values()}
    return np.unique(np.concatenate([np.arange(*span) for span in sorted(spans)]))


def global_batch(
    stream: RowReader, first_row: int, batch_size: int, sharding: NamedSharding
) -> Batch:
    """Reads a batch of consecutive rows, axis 0 sharded as `sharding` shards its own axis 0.

    Which rows a process reads follows from the devices it holds and not from its number, so any
    mesh works: where two processes hold parts of the same rows, both read them.

    Args:
      stream: where the rows come from.
      first_row: index in the stream of the batch's first row.
      batch_size: rows over all processes.
      sharding: only what it says of axis 0 is used.

    Raises:
      UserError: the mesh does not divide the batch.
    """
    axis = sharding.spec[0] if len(sharding.spec) else None
    sharding = NamedSharding(sharding.mesh, PartitionSpec(axis))
    names = (axis,) if isinstance(axis, str) else tuple(axis or ())
    ways = int(np.prod([sharding.mesh.shape[name] for name in names]))
    if batch_size % ways:
        raise UserError(
            f"a batch of {batch_size} rows cannot be divided over {ways} groups of devices (mesh "
            f"axes {' x '.join(names)}): choose a batch size that is a multiple of {ways}"
        )
    numbers = needed_rows(sharding.addressable_devices_indices_map((batch_size,)), batch_size)
    local = stream.rows([first_row + int(number) for number in numbers])

    def place(array: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            begin = int(np.searchsorted(numbers, start))
            return array[begin : begin + stop - start]

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, part)

    return {name: place(array) for name, array in local.items()}


class Whole:
    """A batch that is there as a whole, read as if it were a stream that begins with it."""

    def __init__(self, batch: Mapping[str, np.ndarray]):
        self._batch = batch

    def rows(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        """Some of its rows."""
        return {name: array[list(indices)] for name, array in self._batch.items()}


class Prefetcher:
    """Reads batches ahead in one background thread.

    Args:
      read: first row -> batch, as `lambda row: global_batch(stream, row, size, sharding)`.
      first_row: of the first batch; where a restored run goes on.
      batch_size: first row -> rows of the batch.
      depth: batches to hold ready.

    Attributes:
      rows: rows consumed, `first_row` included: what a checkpoint must remember.
    """

    def __init__(
        self,
        read: Callable[[int], Any],
        first_row: int,
        batch_size: Callable[[int], int],
        depth: int = 2,
    ):
        self.rows = first_row
        self._read, self._batch_size = read, batch_size
        self._ready: queue.Queue = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetcher", daemon=True)
        self._thread.start()

    def next(self) -> tuple[Any, float]:
        """The next batch, and the seconds spent waiting for it.

        Raises:
          Whatever reading the batch raised.
        """
        if self._stop.is_set():
            raise RuntimeError("the prefetcher is closed")
        begin = time.perf_counter()
        batch, error = self._ready.get()
        if error is not None:
            self.close()
            raise error
        self.rows += self._batch_size(self.rows)
        return batch, time.perf_counter() - begin

    def close(self) -> None:
        """Stops the thread and drops what it has read ahead; may be called twice."""
        self._stop.set()
        while self._thread.is_alive():
            # The thread may be waiting for room.
            while not self._ready.empty():
                self._ready.get()
            self._thread.join(timeout=0.01)

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _work(self) -> None:
        row, error = self.rows, None
        while not self._stop.is_set() and error is None:
            batch = None
            try:
                batch = self._read(row)
            except BaseException as caught:
                error = caught
            self._ready.put((batch, error))
            row += self._batch_size(row)
