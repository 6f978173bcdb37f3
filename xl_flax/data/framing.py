"""Examples framed by special tokens, cut to the length of a row, and joined again."""

import bisect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from xl_flax.data.features import NO_FEATURES, Example, Features, Texts
from xl_flax.data.layout import Layout
from xl_flax.data.vocabulary import SpecialIds
from xl_flax.errors import UserError


class Piece(NamedTuple):
    """The place of a part in an example that was cut."""

    example: int  # number of the example in its task and split
    index: int  # which piece this is, from 0
    count: int  # how many pieces the example has


class Part(NamedTuple):
    """An example, or a piece of one, as it lies in a row: a segment for each of its texts."""

    segments: Texts
    """int[n] token ids of each text with its special tokens. A piece has a part of the example's
    last text; the other texts are whole."""
    size: int
    """Tokens, special tokens included."""
    piece: Piece | None = None
    """Which piece of an example this is; None if it is a whole one."""
    number: int = -1
    """Number of the example in its split; -1 where the cache does not hold it."""
    features: Mapping[str, Any] = NO_FEATURES
    """As of an example, but "token" is one array [n] over all segments with their special tokens,
    and "span" counts tokens from the part's first one."""


class Framer:
    """Makes parts of rows from examples.

    Attributes:
      policy: what happens to examples that are too long, one of `layout.Policy`.
      truncated: examples that have been truncated so far.
    """

    def __init__(
        self, name: str, layout: Layout, num_texts: int, specs: Features, special: SpecialIds
    ):
        if layout.length < 3 * num_texts:
            raise UserError(
                f"{name}: rows of {layout.length} tokens have no room for {num_texts} texts: raise "
                f"Rows.length to {3 * num_texts} at least"
            )
        self._layout, self._specs = layout, specs
        self._cls, self._sep = special.cls, special.sep
        self._room = layout.length - 2 * num_texts  # for the tokens of an example's texts
        self.policy = layout.resolve(num_texts == 1 and not specs)
        self.truncated = 0

    def parts(self, example: Example) -> list[Part]:
        """One part, or several if the example is cut; none if it is too long and to be dropped."""
        size = sum(map(len, example.texts))
        if size <= self._room:
            return [self._part(example)]
        if self.policy == "drop":
            return []
        if self.policy == "truncate":
            self.truncated += 1
            sizes = truncated_sizes([len(text) for text in example.texts], self._room)
            return [self._part(self._sliced(example, [slice(size) for size in sizes]))]
        last = len(example.texts[-1])
        room, stride = self._room - (size - last), self._layout.stride
        if room <= stride:  # its other texts leave no room for pieces of the last one
            return []
        step = room - stride
        count = 1 - (-(last - room) // step)
        whole = [slice(None)] * (len(example.texts) - 1)
        return [
            self._part(
                self._sliced(example, [*whole, slice(i * step, i * step + room)]),
                Piece(example.number, i, count),
            )
            for i in range(count)
        ]

    def _sliced(self, example: Example, slices: list[slice]) -> Example:
        """The example with a slice of each text; features follow their tokens."""

        def cut(arrays: Texts) -> Texts:
            return tuple(array[part] for array, part in zip(arrays, slices, strict=True))

        texts, features = cut(example.texts), dict(example.features)
        first = slices[-1].start or 0
        for key, spec in self._specs.items():
            if spec.kind == "token":
                features[key] = cut(features[key])
            elif spec.kind == "span":
                span = features[key] - first
                inside = span[0] >= 0 and span[1] < len(texts[-1])
                features[key] = span if inside else np.full_like(span, -1)
        return Example(example.number, texts, features)

    def _part(self, example: Example, piece: Piece | None = None) -> Part:
        segments, size = tuple(map(self._framed, example.texts)), 0
        for ids in segments:
            size += len(ids)
        if not self._specs:
            return Part(segments, size, piece, example.number)
        features = dict(example.features)
        for key, spec in self._specs.items():
            if spec.kind == "token":
                framed = [np.pad(x, 1, constant_values=spec.nothing) for x in features[key]]
                features[key] = np.concatenate(framed)
            elif spec.kind == "span" and features[key][0] >= 0:
                features[key] = features[key] + (size - len(segments[-1]) + 1)
        return Part(segments, size, piece, example.number, features)

    def _framed(self, text: np.ndarray) -> np.ndarray:
        ids = np.empty(len(text) + 2, np.int32)
        ids[0], ids[1:-1], ids[-1] = self._cls, text, self._sep
        return ids


def truncated_sizes(sizes: list[int], room: int) -> list[int]:
    """Sizes after the longest has lost a token, again and again, until their sum is `room`.

    Of equally long ones, the last loses first.
    """

    def total(level: int) -> int:
        return sum(min(size, level) for size in sizes)

    level = bisect.bisect_right(range(max(sizes) + 1), room, key=total) - 1
    spare, kept = room - total(level), []
    for size in sizes:
        longer = size > level and spare > 0
        kept.append(min(size, level) + longer)
        spare -= longer
    return kept


def join(parts: Iterable[Part], stride: int, specs: Features) -> Iterator[Example]:
    """Undoes `Framer.parts`: yields whole examples, special tokens stripped.

    A cut example comes when its last piece has been seen, whatever the order of the pieces. A span
    that lies whole in no piece is lost.

    Args:
      parts: of rows, in any order.
      stride: tokens that pieces share.
      specs: of the features.
    """
    waiting: dict[int, dict[int, Example]] = {}
    for part in parts:
        example = _unframed(part, specs) if specs else _texts(part)
        piece = part.piece
        if piece is None:
            yield example
            continue
        pieces = waiting.setdefault(piece.example, {})
        pieces[piece.index] = example
        if len(pieces) == piece.count:
            del waiting[piece.example]
            yield _joined([pieces[i] for i in range(piece.count)], stride, specs)
    if waiting:
        raise ValueError(f"pieces of {len(waiting)} examples are missing")


def _texts(part: Part) -> Example:
    return Example(part.number, tuple(ids[1:-1] for ids in part.segments))


def _unframed(part: Part, specs: Features) -> Example:
    features = dict(part.features)
    ends = np.cumsum([len(ids) for ids in part.segments])
    for key, spec in specs.items():
        if spec.kind == "token":
            split = np.split(features[key], ends[:-1])
            features[key] = tuple(array[1:-1] for array in split)
        elif spec.kind == "span" and features[key][0] >= 0:
            features[key] = features[key] - (part.size - len(part.segments[-1]) + 1)
    return _texts(part)._replace(features=features)


def _joined(pieces: list[Example], stride: int, specs: Features) -> Example:
    def whole(lasts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([lasts[0], *(array[stride:] for array in lasts[1:])])

    first, features = pieces[0], dict(pieces[0].features)
    step = len(first.texts[-1]) - stride
    for key, spec in specs.items():
        if spec.kind == "token":
            lasts = [piece.features[key][-1] for piece in pieces]
            features[key] = (*features[key][:-1], whole(lasts))
        elif spec.kind == "span":
            spans = [(i, piece.features[key]) for i, piece in enumerate(pieces)]
            seen = [span + i * step for i, span in spans if span[0] >= 0]
            features[key] = seen[0] if seen else features[key]
    texts = (*first.texts[:-1], whole([piece.texts[-1] for piece in pieces]))
    return Example(first.number, texts, features)
