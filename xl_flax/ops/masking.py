"""Dynamic masking on the device (Liu et al. 2019, RoBERTa, §4.1): which tokens to predict.

One row at a time, from that row's key alone; `jax.vmap` gives the batch. What is masked is
therefore the same on every mesh, in every microbatch, and whatever rows stand beside it.

A row has a fixed number of slots for its masked tokens, a quarter more than it needs on average
(`slot_count`). Where chance selects more, some selected words, drawn at random wherever they
stand, are not masked after all: nothing is masked that is not predicted, and every position
remains equally likely. They are counted as overflow.

Shapes: L tokens of a row, K slots, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Slots(NamedTuple):
    """Where a row is masked."""

    positions_K: jax.Array  # int32, ascending; L where a slot is empty
    filled_K: jax.Array  # bool
    overflow: jax.Array  # int32[]: tokens selected beyond the slots


def slot_count(rate: float, length: int) -> int:
    """Slots of a row: 1.25 · rate · length, rounded up to a multiple of 8, at most `length`."""
    return min(length, int(-(-round(1.25 * rate * length, 6) // 8) * 8))


def select_slots(
    key: jax.Array,
    tokens_L: jax.Array,
    segment_ids_L: jax.Array,
    special_V: jax.Array,
    rate: float,
    slots: int,
    word_starts_V: jax.Array | None = None,
) -> Slots:
    """Selects each token, or each word, with probability `rate`.

    Args:
      key: the row's key.
      tokens_L: int32 token ids.
      segment_ids_L: int32; 0 is padding, which is never selected.
      special_V: bool; ids that are never selected.
      rate: probability.
      slots: K.
      word_starts_V: bool; ids that begin a word. With it, the pieces of a word are selected
        together, and a word for which not all slots are left is left out as a whole. A word ends at
        the latest with its segment or before a special token. None: each token is its own word.
    """
    length = tokens_L.shape[0]
    index_L = jnp.arange(length)
    special_L = special_V[tokens_L]
    lot_L = jax.random.uniform(key, (length,))
    if word_starts_V is not None:
        inside_L = ~(word_starts_V[tokens_L] | special_L | jnp.roll(special_L, 1))
        inside_L &= (segment_ids_L == jnp.roll(segment_ids_L, 1)) & (index_L > 0)
        start_L = jax.lax.cummax(jnp.where(inside_L, 0, index_L))
        lot_L = lot_L[start_L]
    selected_L = (segment_ids_L != 0) & ~special_L & (lot_L < rate)

    # The K selected tokens with the smallest lots; equal lots, those of one word, stay together.
    lot_L = jnp.where(selected_L, lot_L, jnp.inf)
    by_lot_L = jnp.argsort(lot_L, stable=True)
    ranked_L = lot_L[by_lot_L]
    fits = ranked_L < jnp.inf
    if slots < length:
        # The first token without a slot takes the rest of its word with it.
        fits &= (index_L < slots) & (ranked_L < ranked_L[slots])
    positions_K = jnp.sort(jnp.where(fits, by_lot_L, length)[:slots]).astype(jnp.int32)
    return Slots(
        positions_K,
        positions_K < length,
        selected_L.sum(dtype=jnp.int32) - fits.sum(dtype=jnp.int32),
    )


def corrupt(
    key: jax.Array,
    tokens_L: jax.Array,
    positions_K: jax.Array,
    mask_id: int | jax.Array,
    mask: float,
    random: float,
    random_ids: jax.Array,
    random_ranges_Kx2: jax.Array,
) -> jax.Array:
    """Replaces the tokens at `positions_K` (Devlin et al. 2019, BERT, §3.1).

    Each becomes the mask token with probability `mask`, with probability `random` a token drawn
    uniformly from its part of `random_ids`, and otherwise stays as it is.

    Args:
      key: the row's key, another than that of `select_slots`.
      tokens_L: int32 token ids.
      positions_K: int32; positions outside the row are ignored.
      mask_id: the mask token.
      mask: share replaced by it.
      random: share replaced by random tokens.
      random_ids: int32, ids to draw from, all languages' behind each other.
      random_ranges_Kx2: int32, where each token's language begins and ends in them.

    Returns:
      int32[L].
    """
    what_key, which_key = jax.random.split(key)
    what_K = jax.random.uniform(what_key, positions_K.shape)
    drawn_K = random_ids[jax.random.randint(which_key, positions_K.shape, *random_ranges_Kx2.T)]
    old_K = tokens_L.at[positions_K].get(mode="clip")
    new_K = jnp.where(what_K < mask, mask_id, jnp.where(what_K < mask + random, drawn_K, old_K))
    return tokens_L.at[positions_K].set(new_K.astype(tokens_L.dtype), mode="drop")
