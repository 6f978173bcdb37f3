"""Which of their tensors are which part of our parameters: a table of names, read both ways.

Their linear maps are [outputs, inputs], one per layer and often one each for queries, keys and
values. Ours are [inputs, outputs], stacked over layers, and hold the parts in one array.
"""

import concurrent.futures
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from xl_flax.models.config import EncoderConfig

LAYER = "layer/"  # begins the path of what every layer has
STRIP = 16  # rows that are transposed at once
_THREADS = os.cpu_count() or 1
_POOL = concurrent.futures.ThreadPoolExecutor(_THREADS)


class Weight(NamedTuple):
    """One line of a family's table."""

    ours: str  # path of a parameter, as in "heads/pooler/dense" or "layer/qkv"
    theirs: tuple[str, ...]  # its tensor, or one for each part; {} is the layer
    inputs: int | None  # leading axes that a linear map contracts; 0: a bias; None: the same shape


class Place(NamedTuple):
    """Where one of their tensors belongs."""

    theirs: str
    ours: str  # path
    index: tuple[int | slice, ...]  # which part of our array
    inputs: int | None
    piece: tuple[int, ...]  # its shape here
    shape: tuple[int, ...]  # its shape there

    def to_ours(self, value: np.ndarray, array: np.ndarray) -> None:
        """Puts their tensor where it belongs in our whole array."""
        if not self.inputs:
            array[self.index] = value.reshape(self.piece)
        else:
            transpose(value, array[self.index].reshape(self.shape[::-1], copy=False))

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Their tensor, from our whole array."""
        if not self.inputs:
            return array[self.index].reshape(self.shape)
        value = np.empty(self.shape, array.dtype)
        transpose(array[self.index].reshape(self.shape[::-1]), value)
        return value


def transpose(source: np.ndarray, target: np.ndarray) -> None:
    """Copies `source.T` into `target`, on all cores.

    In strips so narrow that the lines they touch stay in the cache: two to five times as fast as
    NumPy's own copy of a matrix of a model's size, before there are cores to share the work.
    """
    rows = len(source)
    share = -(-rows // _THREADS)

    def copy(start: int) -> None:
        for first in range(start, min(start + share, rows), STRIP):
            last = min(first + STRIP, start + share)
            target[:, first:last] = source[first:last].T

    list(_POOL.map(copy, range(0, rows, share)))


def linear(ours: str, *theirs: str, inputs: int = 1) -> list[Weight]:
    """A linear map, and the bias that belongs to it."""
    return [
        Weight(ours, tuple(f"{name}.weight" for name in theirs), inputs),
        Weight(f"{ours}_bias", tuple(f"{name}.bias" for name in theirs), 0),
    ]


def norm(ours: str, theirs: str) -> list[Weight]:
    """A layer norm."""
    return [same(f"{ours}/scale", f"{theirs}.weight"), same(f"{ours}/bias", f"{theirs}.bias")]


def same(ours: str, theirs: str) -> Weight:
    """A table or vector that has the same shape on both sides."""
    return Weight(ours, (theirs,), None)


def attention(q: str, k: str, v: str, out: str) -> list[Weight]:
    """A layer's attention, whether or not queries share keys."""
    return [
        *linear(LAYER + "qkv", q, k, v),
        *linear(LAYER + "q", q),
        *linear(LAYER + "kv", k, v),
        *linear(LAYER + "out", out, inputs=2),
    ]


def places(
    weights: Iterable[Weight], shapes: Mapping[str, tuple[int, ...]], config: EncoderConfig
) -> list[Place]:
    """All places of a model; lines about parameters that it does not have are skipped.

    Args:
      weights: a family's table.
      shapes: of the model's parameters, by path.
      config: of its encoder.
    """
    return [
        place
        for weight in weights
        for path, index, layer in _where(weight.ours, config)
        if path in shapes
        for place in _parts(weight, path, index, layer, shapes[path])
    ]


def _where(ours: str, config: EncoderConfig) -> list[tuple[str, tuple[int, ...], int]]:
    """(path, index on the axis of layers, number of the layer)."""
    if not ours.startswith(LAYER):
        return [(ours, (), 0)]
    name = ours.removeprefix(LAYER)
    outside = 0 if config.first_attention_norm else 1
    first = [(f"encoder/first/{name}", (), 0)] if outside else []
    stack = range(outside, config.num_layers)
    return first + [(f"encoder/layers/{name}", (i - outside,), i) for i in stack]


def _parts(
    weight: Weight, path: str, index: tuple[int, ...], layer: int, shape: tuple[int, ...]
) -> Sequence[Place]:
    shape, inputs = shape[len(index) :], weight.inputs
    placed = []
    for part, name in enumerate(weight.theirs):
        piece = shape
        if len(weight.theirs) > 1:  # parts lie on the axis after the inputs
            index_here = (*index, *[slice(None)] * inputs, part)
            piece = shape[:inputs] + shape[inputs + 1 :]
        else:
            index_here = (*index, ...)
        there = piece
        if inputs is not None:
            there = (math.prod(piece[inputs:]),) + ((math.prod(piece[:inputs]),) if inputs else ())
        placed.append(Place(name.format(layer), path, index_here, inputs, piece, there))
    return placed
