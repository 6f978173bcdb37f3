"""Dynamic masking on the device (Liu et al. 2019, RoBERTa, §4.1): which tokens to predict.

One row at a time, from that row's key alone; `jax.vmap` gives the batch. What is masked is
therefore the same on every mesh, in every microbatch, and whatever rows stand beside it.

A row has `rate` of its tokens masked, rounded up or down by chance, as in RoBERTa's and XLM-R's
code (fairseq, mask_tokens_dataset.py), and a fixed number of slots for them (`slot_count`). Whole
words are chosen so that this stays true to within a word of at most `LONGEST_WORD` pieces. A longer
one, as a sentence in a script without spaces may be, counts as several words, of which only the
last may be shorter: as a whole it would fill the slots, or never find enough. Where there are too
few slots all the same, nothing is masked that is not predicted; those tokens count as overflow.

Shapes: L tokens of a row, K slots, V vocabulary.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

LONGEST_WORD = 8  # pieces


class Slots(NamedTuple):
    """Where a row is masked."""

    positions_K: jax.Array  # int32, ascending; L where a slot is empty
    filled_K: jax.Array  # bool
    overflow: jax.Array  # int32[]: tokens selected beyond the slots


def slot_count(rate: float, length: int, whole_words: bool = False) -> int:
    """Slots of a row: rate · length, and `LONGEST_WORD` more for whole words; a multiple of 8.

    That is enough for every row.
    """
    needed = math.ceil(round(rate * length, 6)) + (LONGEST_WORD if whole_words else 0)
    return min(length, -(-needed // 8) * 8)


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

    The words are laid on a circle in random order, each as long as it has pieces, and an arc of
    `rate` of the circle begins at a random place. Selected are the words whose middle lies in it.
    So each word has the same chance, however long it is, while the number of tokens hardly varies
    (systematic sampling: Madow 1949, Annals of Mathematical Statistics 20, 333-354).

    Args:
      key: the row's key.
      tokens_L: int32 token ids.
      segment_ids_L: int32; 0 is padding, which is never selected.
      special_V: bool; ids that are never selected.
      rate: probability.
      slots: K.
      word_starts_V: bool; ids that begin a word. With it, the pieces of a word are selected
        together, and a word for which not all slots are left is left out as a whole. A word ends at
        the latest after `LONGEST_WORD` pieces, with its segment or before a special token. None:
        each token is its own word.
    """
    length = tokens_L.shape[0]
    index_L = jnp.arange(length)
    special_L = special_V[tokens_L]
    ordinary_L = (segment_ids_L != 0) & ~special_L
    order_key, arc_key = jax.random.split(key)
    lot_L = jax.random.uniform(order_key, (length,))
    if word_starts_V is not None:
        inside_L = ~(word_starts_V[tokens_L] | special_L | jnp.roll(special_L, 1))
        inside_L &= (segment_ids_L == jnp.roll(segment_ids_L, 1)) & (index_L > 0)
        word_L = jax.lax.cummax(jnp.where(inside_L, 0, index_L))  # where each token's word begins
        word_L = index_L - (index_L - word_L) % LONGEST_WORD
        lot_L = lot_L[word_L]

    # The circle: ordinary tokens by lot. Pieces of a word have the same lot and stay together.
    circle_L = jnp.argsort(jnp.where(ordinary_L, lot_L, jnp.inf), stable=True)
    begin_L, end_L = index_L, index_L + 1  # of each token's word, on the circle
    if word_starts_V is not None:
        word_L = word_L[circle_L]
        first_L = (word_L != jnp.roll(word_L, 1)) | (index_L == 0)
        begin_L = jax.lax.cummax(jnp.where(first_L, index_L, 0))
        last_L = jnp.roll(first_L, -1)
        end_L = jax.lax.cummin(jnp.where(last_L, index_L + 1, length), reverse=True)
    count = ordinary_L.sum()
    around = jnp.maximum(count, 1).astype(jnp.float32)
    arc = around * jax.random.uniform(arc_key)
    middle_L = jnp.mod((begin_L + end_L) / 2 - arc, around)  # from the beginning of the arc
    selected_L = (index_L < count) & (middle_L < rate * around)

    # Words are selected from the beginning of the arc to its end, without a gap.
    half_L = (end_L - begin_L) / 2
    first = jnp.min(jnp.where(selected_L, middle_L - half_L, jnp.inf))
    fits_L = selected_L & (middle_L + half_L - first < slots + 0.5)
    positions_K = jnp.sort(jnp.where(fits_L, circle_L, length))[:slots].astype(jnp.int32)
    return Slots(
        positions_K,
        positions_K < length,
        selected_L.sum(dtype=jnp.int32) - fits_L.sum(dtype=jnp.int32),
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
