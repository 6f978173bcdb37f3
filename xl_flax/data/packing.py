"""Packs parts of examples into rows of one length: best-fit in windows, or in order."""

import bisect
import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from xl_flax.data.framing import Part

WINDOW_ROWS = 4096  # rows that are packed together: more fill them better and hold more in memory
# Times the examples of a mean row, a row may hold. Every objective on sentences pays for the places
# that stay empty; with this, rows of examples of gamma-distributed lengths are 96 to 99 % full.
SPARE = 1.15


def best_fit(lengths: Sequence[int], capacity: int, most: int | None = None) -> list[list[int]]:
    """Best fit: each item goes where it leaves the least room.

    Longest items first; but where a row may hold only `most` items, in the order given, which
    should be a random one: small items that came last would fill many rows by number alone.

    Args:
      lengths: sizes of the items, none above `capacity`.
      capacity: size of a row.
      most: items in a row, at most; None for any number.

    Returns:
      For each row, the indices of its items.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows with that much room left
    rooms: list[int] = []  # the sizes for which there is such a row, ascending
    order = (
        range(len(lengths)) if most else np.argsort(-np.asarray(lengths), kind="stable").tolist()
    )
    most = most or sys.maxsize
    for item in order:
        size = lengths[item]
        at = bisect.bisect_left(rooms, size)
        if at == len(rooms):
            row, room = len(rows), capacity
            rows.append([])
        else:
            room = rooms[at]
            row = by_room[room].pop()
            if not by_room[room]:
                del rooms[at]
        rows[row].append(item)
        left = room - size
        if left and len(rows[row]) < most:
            if not by_room[left]:
                bisect.insort(rooms, left)
            by_room[left].append(row)
    return rows


def measured(stream: Iterable[Part], length: int) -> tuple[int, Iterator[Part]]:
    """How many parts a row may hold, as the first window of a stream says.

    Returns:
      That number, and the stream as it was.
    """
    stream, window, tokens = iter(stream), [], 0
    for part in stream:
        window.append(part)
        tokens += part.size
        if tokens >= WINDOW_ROWS * length:
            break
    most = math.ceil(SPARE * length * len(window) / max(tokens, 1))
    return max(most, 1), itertools.chain(window, stream)


def pack_windows(
    stream: Iterable[Part], length: int, most: int | None = None
) -> Iterator[list[Part]]:
    """Packs windows of a stream by best fit; for training, where order does not matter.

    Args:
      stream: parts of at most `length` tokens.
      length: tokens per row.
      most: parts per row, at most; None for any number.
    """

    def packed(window: list[Part], sizes: list[int]) -> Iterator[list[Part]]:
        return ([window[i] for i in row] for row in best_fit(sizes, length, most))

    window, sizes, tokens = [], [], 0
    for part in stream:
        window.append(part)
        sizes.append(part.size)
        tokens += sizes[-1]
        if tokens >= WINDOW_ROWS * length:
            yield from packed(window, sizes)
            window, sizes, tokens = [], [], 0
    yield from packed(window, sizes)


def pack_in_order(
    stream: Iterable[Part], length: int, most: int | None = None
) -> Iterator[list[Part]]:
    """Next fit: fills one row after the other, so that parts keep their order."""
    row, used = [], 0
    for part in stream:
        size = part.size
        if row and (used + size > length or len(row) == most):
            yield row
            row, used = [], 0
        row.append(part)
        used += size
    if row:
        yield row
