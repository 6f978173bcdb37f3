"""Batches through a compiled function, several of them under way at once."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from xl_flax.parallel.distributed import may_stop_here
from xl_flax.parallel.rules import Partitioning

T = TypeVar("T")

# Of a small model's program many parts are too short for all cores: two cores do 1.2 to 1.3 times
# as many batches in the same time when three are under way.
AT_ONCE = 3
CPU_TOKENS = 2048  # in a batch on a CPU, which is fastest while a layer stays in its cache


def rows_per_batch(
    length: int, tokens: int, partitioning: Partitioning, rows: int | None = None
) -> int:
    """Rows of a batch, over all devices.

    Args:
      length: tokens of a row, padding included.
      tokens: in a batch, for each device that is no CPU.
      partitioning: rows are spread over its data axes.
      rows: that there are, if it is known: no more are needed.
    """
    tokens = CPU_TOKENS if partitioning.platform == "cpu" else tokens
    shards = partitioning.batch_shards
    most = shards * max(1, tokens // length)
    return most if rows is None else min(most, -(-rows // shards) * shards)


def run_ahead(
    function: Callable[..., Any],
    params: Any,
    batches: Iterable[tuple[T, tuple]],
    partitioning: Partitioning,
) -> Iterator[tuple[T, Any]]:
    """Yields each item with what the function says of its batch, as NumPy arrays, in order.

    The devices work on the next batches while the caller has this one.

    Args:
      function: jitted, of (params, *arrays); its output lies whole on each device.
      params: of the model.
      batches: items, each with its arrays (or trees of them), on the devices or not.
      partitioning: that `function` was made with.

    Raises:
      Stopped: all processes stop here.
    """
    # Several devices must be given programs in one order, which is that of one thread.
    alone = partitioning.platform == "cpu" and partitioning.mesh.size == 1
    depth = AT_ONCE if alone else 1
    compiled = set()
    waiting: collections.deque[tuple[T, Callable[[], Any]]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as threads:

        def start(arrays: tuple) -> Callable[[], Any]:
            shapes = tuple(array.shape for array in jax.tree.leaves(arrays))
            if alone and shapes in compiled:
                return threads.submit(lambda: _fetched(function(params, *arrays))).result
            compiled.add(shapes)  # here, so that no two threads compile it
            output = function(params, *arrays)
            return lambda: _fetched(output)

        for item, arrays in batches:
            may_stop_here()
            waiting.append((item, start(arrays)))
            if len(waiting) > depth:
                item, result = waiting.popleft()
                yield item, result()
        while waiting:
            item, result = waiting.popleft()
            yield item, result()


def _fetched(output: Any) -> Any:
    return jax.tree.map(np.asarray, output)
