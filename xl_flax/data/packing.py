"""Packs examples into rows of one length: best-fit in windows, or in order.

A segment is what a row holds: one whole text, or one piece of a text that is longer than a row, as
token ids that begin with the classification token and end with the separator. A group is what must
lie in one row: one segment, or the segments of a sentence and its translations.
"""

import bisect
import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

WINDOW_ROWS = 4096  # rows that are packed together: more fill them better and hold more in memory
# Groups that a row may hold beyond what it holds in the mean. Every objective on sentences pays for
# the places that stay empty; with this the rows of gamma-distributed lengths are 96 to 99 % full.
SPARE = 1.15


class Piece(NamedTuple):
    """The place of a segment in an example that was cut."""

    example: int  # number of the example in its task and split
    index: int  # which piece this is, from 0
    count: int  # how many pieces the example has


class Segment(NamedTuple):
    """Token ids with their special tokens, int[n], and their place in a cut example."""

    ids: np.ndarray
    piece: Piece | None = None


Group = Sequence[Segment]


def segments(
    example: int, tokens: np.ndarray, length: int, cls_id: int, sep_id: int
) -> list[Segment]:
    """Frames one example by special tokens; cuts it if it is longer than a row.

    Args:
      example: number of the example, which joins its pieces again.
      tokens: int[n], without special tokens.
      length: tokens per row, special tokens included.
      cls_id: token that begins each segment.
      sep_id: token that ends each segment.

    Returns:
      One segment, or as many as it takes; none is longer than `length`.
    """
    room = length - 2
    count = max(1, -(-len(tokens) // room))
    pieces = []
    for index in range(count):
        body = tokens[index * room : (index + 1) * room]
        ids = np.empty(len(body) + 2, np.int32)
        ids[0], ids[1:-1], ids[-1] = cls_id, body, sep_id
        pieces.append(Segment(ids, Piece(example, index, count) if count > 1 else None))
    return pieces


def join(stream: Iterable[Segment]) -> Iterator[np.ndarray]:
    """Undoes `segments`: yields whole examples, int[n], special tokens stripped.

    A cut example comes when its last piece has been seen, whatever the order of the pieces.
    """
    waiting: dict[int, dict[int, np.ndarray]] = {}
    for ids, piece in stream:
        if piece is None:
            yield ids[1:-1]
            continue
        pieces = waiting.setdefault(piece.example, {})
        pieces[piece.index] = ids[1:-1]
        if len(pieces) == piece.count:
            del waiting[piece.example]
            yield np.concatenate([pieces[i] for i in range(piece.count)])
    if waiting:
        raise ValueError(f"pieces of {len(waiting)} examples are missing")


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


def size(group: Group) -> int:
    """Tokens of a group, special tokens included."""
    return sum(len(segment.ids) for segment in group)


def measured(stream: Iterable[Group], length: int) -> tuple[int, Iterator[Group]]:
    """How many groups a row may hold, as the first window of a stream says.

    Returns:
      That number, and the stream as it was.
    """
    stream, window, tokens = iter(stream), [], 0
    for group in stream:
        window.append(group)
        tokens += size(group)
        if tokens >= WINDOW_ROWS * length:
            break
    most = math.ceil(SPARE * length * len(window) / max(tokens, 1))
    return max(most, 1), itertools.chain(window, stream)


def pack_windows(
    stream: Iterable[Group], length: int, most: int | None = None
) -> Iterator[list[Segment]]:
    """Packs windows of a stream by best fit; for training, where order does not matter.

    Args:
      stream: groups of at most `length` tokens.
      length: tokens per row.
      most: groups per row, at most; None for any number.
    """

    def packed(window: list[Group]) -> Iterator[list[Segment]]:
        for row in best_fit([size(group) for group in window], length, most):
            yield [segment for i in row for segment in window[i]]

    window, tokens = [], 0
    for group in stream:
        window.append(group)
        tokens += size(group)
        if tokens >= WINDOW_ROWS * length:
            yield from packed(window)
            window, tokens = [], 0
    yield from packed(window)


def pack_in_order(
    stream: Iterable[Group], length: int, most: int | None = None
) -> Iterator[list[Segment]]:
    """Next fit: fills one row after the other, so that groups keep their order."""
    row, used, groups = [], 0, 0
    for group in stream:
        if row and (used + size(group) > length or groups == most):
            yield row
            row, used, groups = [], 0, 0
        row += group
        used += size(group)
        groups += 1
    if row:
        yield row
