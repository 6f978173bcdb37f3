"""Sentence embeddings of chosen layers, mean-pooled. Shapes: Layers, Batch, Length, D = width."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from xl_flax.data.vocabulary import SpecialIds
from xl_flax.parallel.rules import Partitioning

TOKENS_PER_DEVICE = 8192  # in a batch, padding included
SHAPES = 4  # at most so many padded lengths, each of which is compiled


def make_pool(
    graph: nnx.GraphDef, layers: Sequence[int], partitioning: Partitioning
) -> Callable[..., jax.Array]:
    """Builds the jitted `pool(params, tokens_BxL, sizes_B) -> float32[Layers, B, D]`.

    The mean runs over the `sizes_B` tokens of a sentence, which stand behind [CLS]; [CLS], [SEP]
    and padding are left out. A sentence without tokens gets zeros.

    Args:
      graph: of the model; its parameters are an argument, so a sweep compiles once.
      layers: 0 = embeddings, i = output of layer i.
      partitioning: the batch is spread over its data axes.
    """

    def pool(params: Any, tokens_BxL: jax.Array, sizes_B: jax.Array) -> jax.Array:
        with partitioning.activate():
            encoder = nnx.merge(graph, params).encoder
            index = jnp.arange(tokens_BxL.shape[1])
            segment_ids_BxL = (index < sizes_B[:, None] + 2).astype(jnp.int32)
            if tuple(layers) == (encoder.config.num_layers,):
                hidden = encoder(tokens_BxL, segment_ids=segment_ids_BxL)[None]
            else:
                hidden = encoder(tokens_BxL, segment_ids=segment_ids_BxL, all_layers=True)
                hidden = hidden[jnp.array(layers)]
            inside_BxL = (index >= 1) & (index <= sizes_B[:, None])
            # A select, not a product: NaN · 0 at a padded position would be NaN.
            kept = jnp.where(inside_BxL[None, :, :, None], hidden.astype(jnp.float32), 0.0)
            return kept.sum(axis=2) / jnp.maximum(sizes_B, 1)[None, :, None]

    return jax.jit(pool, out_shardings=partitioning.sharding(()))


def embed(
    pool: Callable[..., jax.Array],
    params: Any,
    sentences: Sequence[np.ndarray],
    special: SpecialIds,
    length: int,
    partitioning: Partitioning,
    progress: str | None = None,
) -> np.ndarray:
    """Embeds sentences, sorted by length into batches of a few shapes.

    Args:
      pool: from `make_pool`.
      params: of the model.
      sentences: int[n] tokens of each, without special tokens.
      special: ids of the special tokens that are put around a sentence.
      length: longest input, special tokens included; a longer sentence is cut.
      partitioning: that `pool` was made with.
      progress: what a progress bar says; None: there is none.

    Returns:
      float32[Layers, len(sentences), D].
    """
    sizes = np.minimum([len(s) for s in sentences], length - 2)
    shards = math.prod(partitioning.mesh.shape[a] for a in ("data", "fsdp"))
    rows_sharding = partitioning.sharding(("batch",))
    table_sharding = partitioning.sharding(("batch", None))
    output = None
    bar = tqdm(total=len(sentences), desc=progress, unit=" sentences", disable=progress is None)
    done = 0
    order = np.argsort(sizes, kind="stable")
    for padded in padded_lengths(sizes + 2, SHAPES, length):
        members = order[done : np.searchsorted(sizes[order], padded - 2, "right")]
        done += len(members)
        most = shards * max(1, TOKENS_PER_DEVICE // padded)
        batches = -(-len(members) // most)
        batch_size = -(-len(members) // (batches * shards)) * shards
        for first in range(0, len(members), batch_size):
            chosen = members[first : first + batch_size]
            tokens = np.full((batch_size, padded), special.pad, np.int32)
            batch_sizes = np.zeros(batch_size, np.int32)
            batch_sizes[: len(chosen)] = sizes[chosen]
            tokens[:, 0], tokens[:, 1] = special.cls, special.sep  # also the rows that fill up
            for row, i in enumerate(chosen):
                n = sizes[i]
                tokens[row, 1 : n + 1] = sentences[i][:n]
                tokens[row, n + 1] = special.sep
            pooled = np.asarray(
                pool(params, _put(tokens, table_sharding), _put(batch_sizes, rows_sharding))
            )
            if output is None:
                output = np.empty((pooled.shape[0], len(sentences), pooled.shape[2]), np.float32)
            output[:, chosen] = pooled[:, : len(chosen)]
            bar.update(len(chosen))
    bar.close()
    return output


def padded_lengths(lengths: np.ndarray, limit: int, longest: int) -> list[int]:
    """The lengths, at most `limit`, ascending, to which padding adds the fewest tokens.

    Args:
      lengths: int[n] of what is padded; none is above `longest`.
      limit: number of different lengths.
      longest: results are multiples of 8, or this.
    """
    sizes, counts = np.unique(np.minimum(-(-lengths // 8) * 8, longest), return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    # best[j]: fewest tokens to hold what is at most sizes[j - 1], and the lengths that do it.
    best = [(0.0, [])] + [(math.inf, [])] * len(sizes)
    for _ in range(limit):
        best = [best[0]] + [
            min(
                best[j],
                *(
                    (best[i][0] + sizes[j - 1] * (below[j] - below[i]), [*best[i][1], sizes[j - 1]])
                    for i in range(j)
                ),
            )
            for j in range(1, len(sizes) + 1)
        ]
    return [int(size) for size in best[-1][1]]


def _put(array: np.ndarray, sharding: jax.sharding.NamedSharding) -> jax.Array:
    """Every process holds the whole array and gives its devices their parts."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
