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
