"""Packs examples into rows of one length: best-fit in windows, or in order.

A segment is what a row holds: one whole example, or one piece of an example that is longer than a
row, as token ids that begin with the classification token and end with the separator.
"""

import bisect
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

WINDOW_ROWS = 4096  # rows that are packed together: more fill them better and hold more in memory


class Piece(NamedTuple):
    """The place of a segment in an example that was cut."""

    example: int  # number of the example in its task and split
    index: int  # which piece this is, from 0
    count: int  # how many pieces the example has


class Segment(NamedTuple):
    """Token ids with their special tokens, int[n], and their place in a cut example."""

    ids: np.ndarray
    piece: Piece | None = None


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


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: each item goes where it leaves the least room.

    Args:
      lengths: sizes of the items, none above `capacity`.
      capacity: size of a row.

    Returns:
      For each row, the indices of its items.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows with that much room left
    rooms: list[int] = []  # the sizes for which there is such a row, ascending
    for item in np.argsort(-np.asarray(lengths), kind="stable").tolist():
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
        if left:
            if not by_room[left]:
                bisect.insort(rooms, left)
            by_room[left].append(row)
    return rows


def pack_windows(stream: Iterable[Segment], length: int) -> Iterator[list[Segment]]:
    """Packs windows of a stream by best fit; for training, where order does not matter."""

    def packed(window: list[Segment]) -> Iterator[list[Segment]]:
        for row in best_fit([len(s.ids) for s in window], length):
            yield [window[i] for i in row]

    window, tokens = [], 0
    for segment in stream:
        window.append(segment)
        tokens += len(segment.ids)
        if tokens >= WINDOW_ROWS * length:
            yield from packed(window)
            window, tokens = [], 0
    yield from packed(window)


def pack_in_order(stream: Iterable[Segment], length: int) -> Iterator[list[Segment]]:
    """Next fit: fills one row after the other, so that examples keep their order."""
    row, used = [], 0
    for segment in stream:
        if row and used + len(segment.ids) > length:
            yield row
            row, used = [], 0
        row.append(segment)
        used += len(segment.ids)
    if row:
        yield row
