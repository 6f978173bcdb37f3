"""Sentence embeddings, computed on packed rows.

Shapes: Layers, Batch, Length, S sentences, D = width.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from xl_flax import progress as progress_lib
from xl_flax.data.packing import best_fit
from xl_flax.data.vocabulary import SpecialIds
from xl_flax.evaluation.ahead import rows_per_batch, run_ahead
from xl_flax.ops.pooling import Pooling
from xl_flax.ops.pooling import pool as pool_sentences
from xl_flax.parallel.rules import Partitioning

TOKENS_PER_DEVICE = 16384  # in a batch, padding included
ROW = 64  # tokens of the shortest rows
TOKENS_PER_SENTENCE = 4  # a row has room for one vector per so many tokens


class Encoding(NamedTuple):
    """How a sentence becomes a vector, for every layer asked for."""

    layers: tuple[int, ...]  # 0 = embeddings, i = after layer i; no deeper layer is run
    pooling: Pooling
    head: str | None = None  # a sentence head of the model, which pooled states go through


def make_pool(
    graph: nnx.GraphDef, encoding: Encoding, partitioning: Partitioning
) -> Callable[..., jax.Array]:
    """Builds the jitted `pool(params, tokens, segment_ids, positions, languages)`, int32[B, L].

    It returns float32[Layers, B, S, D], S = sentences in a row of length L; zeros where a row has
    fewer, and for a sentence without tokens that is pooled by "mean".

    Args:
      graph: of the model; its parameters are an argument, so a sweep compiles once.
      encoding: how.
      partitioning: the batch is spread over its data axes.
    """

    def pool(params: Any, tokens_BxL, segment_ids_BxL, positions_BxL, languages_BxL) -> jax.Array:
        with partitioning.activate():
            model = nnx.merge(graph, params)
            states = model.encoder(
                tokens_BxL,
                segment_ids=segment_ids_BxL,
                positions=positions_BxL,
                languages=languages_BxL,
                layers=encoding.layers,
            )
            room = sentences_per_row(tokens_BxL.shape[1])
            pooled = [pool_sentences(h, segment_ids_BxL, room, encoding.pooling) for h in states]
            if encoding.head is not None:
                pooled = [model.heads[encoding.head](p) for p in pooled]
            return jax.numpy.stack(pooled)

    return jax.jit(pool, out_shardings=partitioning.sharding(()))


def embed(
    pool: Callable[..., jax.Array],
    params: Any,
    sentences: Sequence[np.ndarray],
    special: SpecialIds,
    length: int,
    partitioning: Partitioning,
    progress: str | None = None,
    languages: np.ndarray | None = None,
) -> np.ndarray:
    """Embeds sentences, several in a row, in batches of a few shapes.

    Args:
      pool: from `make_pool`.
      params: of the model.
      sentences: int[n] tokens of each, without special tokens.
      special: ids of the special tokens that are put around a sentence.
      length: longest input, special tokens included; a longer sentence is cut.
      partitioning: that `pool` was made with.
      progress: what is being done, for those who wait; None: nothing is shown.
      languages: int32[n], rows of the encoder's language table; None: none is added.

    Returns:
      float32[Layers, len(sentences), D].
    """
    output = None
    batches = packed_batches(sentences, languages, special, length, partitioning)
    with show_progress(len(sentences), progress) as done:
        for batch, pooled in run_batches(pool, params, batches, partitioning):
            if output is None:
                output = np.empty((len(pooled), len(sentences), pooled.shape[-1]), np.float32)
            output[:, batch.members] = pooled[:, batch.row, batch.slot]
            done(len(batch.members))
    return output


def show_progress(
    sentences: int, what: str | None
) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    """As `progress`, of sentences; `what` is None where nothing is to be shown."""
    if what is None:
        return contextlib.nullcontext(lambda _: None)
    return progress_lib.progress(sentences, what, "sentences")


def run_batches(
    function: Callable[..., Any],
    params: Any,
    batches: Iterable["Batch"],
    partitioning: Partitioning,
) -> Iterator[tuple["Batch", Any]]:
    """Yields each batch with the function's output as NumPy arrays.

    Args:
      function: jitted, of (params, tokens, segment_ids, positions, languages); its output lies
        whole on each device.
      params: of the model.
      batches: from `packed_batches`.
      partitioning: the batch is spread over its data axes.
    """
    sharding = partitioning.sharding(("batch", None))
    placed = ((batch, tuple(_put(x, sharding) for x in batch.arrays)) for batch in batches)
    return run_ahead(function, params, placed, partitioning)


def sentences_per_row(length: int) -> int:
    """Sentences that a row of this many tokens may hold."""
    return max(1, length // TOKENS_PER_SENTENCE)


def plan_rows(sizes: np.ndarray, longest: int) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yields (tokens per row, the sentences of each row): of 64, 128, … tokens up to `longest`.

    The shortest rows hold two sentences of mean size or more: in shorter ones too much is padding,
    in longer ones attention costs more. Sentences that they cannot hold get longer ones.

    Args:
      sizes: int[n] tokens of each sentence, special tokens included, at most `longest`.
      longest: tokens of the longest rows.
    """
    lengths = [ROW]
    while lengths[0] < 2 * sizes.mean():
        lengths[0] *= 2
    lengths[0] = min(lengths[0], longest)
    while lengths[-1] < longest:
        lengths.append(min(2 * lengths[-1], longest))
    for below, length in zip([0, *lengths], lengths, strict=False):
        members = np.flatnonzero((sizes > below) & (sizes <= length))
        most = sentences_per_row(length)
        rows = [
            members[row[first : first + most]]
            for row in best_fit(sizes[members].tolist(), length)
            for first in range(0, len(row), most)
        ]
        if rows:
            yield length, rows


class Batch(NamedTuple):
    """Packed rows, and where each of their sentences is, int[sentences of the batch]."""

    arrays: tuple[np.ndarray, ...]  # tokens, segment ids, positions, languages: int32[B, L]
    members: np.ndarray  # which sentences these are
    row: np.ndarray
    slot: np.ndarray  # number in the row, from 0: the segment id is one more
    column: np.ndarray  # of a sentence's first token, which is [CLS]


def packed_batches(
    sentences: Sequence[np.ndarray],
    languages: np.ndarray | None,
    special: SpecialIds,
    length: int,
    partitioning: Partitioning,
) -> Iterator[Batch]:
    """Yields all sentences, each once, several in a row; for the arguments see `embed`."""
    if languages is None:
        languages = np.full(len(sentences), np.iinfo(np.int32).max, np.int32)
    sizes = np.array([min(len(s), length - 2) + 2 for s in sentences])
    starts = np.cumsum(sizes) - sizes
    framed = np.full(sizes.sum(), special.sep, np.int32)
    framed[starts] = special.cls
    ends = starts + sizes - 1
    inside = np.ones(len(framed), bool)
    inside[starts] = inside[ends] = False
    framed[inside] = np.concatenate([s[: length - 2] for s in sentences])

    for row_length, rows in plan_rows(sizes, length):
        count = rows_per_batch(row_length, TOKENS_PER_DEVICE, partitioning)
        for first in range(0, len(rows), count):
            chosen = rows[first : first + count]
            members = np.concatenate(chosen)
            held = np.array([len(r) for r in chosen])  # sentences of each row
            row = np.repeat(np.arange(len(chosen)), held)
            slot = np.concatenate([np.arange(n) for n in held])
            own = sizes[members]
            before = np.cumsum(own) - own  # tokens of the batch in front of a sentence
            column = before - before[np.cumsum(held) - held][row]
            position = np.arange(own.sum()) - np.repeat(before, own)
            at = np.repeat(row * row_length + column, own) + position
            tokens = np.full((count, row_length), special.pad, np.int32)
            segment_ids, positions, language_rows = (np.zeros_like(tokens) for _ in range(3))
            tokens.flat[at] = framed[np.repeat(starts[members], own) + position]
            segment_ids.flat[at] = np.repeat(slot + 1, own)
            positions.flat[at] = position
            language_rows.flat[at] = np.repeat(languages[members], own)
            arrays = tokens, segment_ids, positions, language_rows
            yield Batch(arrays, members, row, slot, column)


def _put(array: np.ndarray, sharding: jax.sharding.NamedSharding) -> jax.Array:
    """Every process holds the whole array and gives its devices their parts."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
