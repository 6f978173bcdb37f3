"""Packed rows taken apart: the language of each token, which examples are there, texts joined.

Text k of example e of a row is segment e · K + k + 1; 0 is padding.

Shapes: Batch, Length, E examples per row, K texts of an example, H = E / 2 rounded up.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


def token_languages(segment_ids_BxL: jax.Array, languages_BxK: jax.Array) -> jax.Array:
    """Each token's language, int32[B, L]: segments take turns among the texts of an example."""
    text_BxL = (segment_ids_BxL - 1) % languages_BxK.shape[1]
    return jnp.take_along_axis(languages_BxK, text_BxL, axis=1)


def present_examples(segment_ids_BxL: jax.Array, examples: int, num_texts: int) -> jax.Array:
    """Which of a row's E places hold an example, bool[B, E]."""
    count_B = segment_ids_BxL.max(axis=1) // num_texts
    return jnp.arange(examples) < count_B[:, None]


def text_hashes(batch: dict[str, jax.Array], examples: int, num_texts: int) -> jax.Array:
    """A hash of each text's tokens, int32[B, E, K]: equal texts have equal hashes."""
    segments_BxL = batch["segment_ids"]
    mixed_BxL = batch["tokens"].astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
    mixed_BxL ^= (batch["positions"].astype(jnp.uint32) + 1) * jnp.uint32(0x85EBCA77)
    mixed_BxL = (mixed_BxL ^ (mixed_BxL >> 15)) * jnp.uint32(0x2C1B3C6D)
    mixed_BxL ^= mixed_BxL >> 13
    number_S = jnp.arange(1, examples * num_texts + 1)
    mine_BxSxL = segments_BxL[:, None] == number_S[:, None]
    hashes_BxS = jnp.where(mine_BxSxL, mixed_BxL[:, None], 0).sum(axis=2, dtype=jnp.uint32)
    return hashes_BxS.astype(jnp.int32).reshape(-1, examples, num_texts)


class JoinedRows(NamedTuple):
    """Rows of which each segment is several texts: [CLS] a [SEP] b [SEP]. All int32[B, L]."""

    tokens: jax.Array
    segment_ids: jax.Array
    positions: jax.Array
    token_languages: jax.Array
    text_rank: jax.Array  # place of the token's text in its segment: 0 for the first one
    source: jax.Array  # column in the row as it was, for features of tokens


def join_texts(
    batch: dict[str, jax.Array],
    rank_BxExK: jax.Array,
    segment_BxExK: jax.Array | None = None,
    *,
    sep_id: jax.Array,
    pad_id: jax.Array,
    reset_positions: bool,
    double_separator: bool,
) -> JoinedRows:
    """Puts texts side by side, so that each token sees all of its segment's.

    Args:
      batch: tokens, segment_ids, positions int32[B, L]; languages int32[B, K].
      rank_BxExK: int32, the place of each text in its segment, from 0 on, without a gap.
      segment_BxExK: int32, which segment it becomes part of, from 0; None: its example's.
      sep_id: the separator.
      pad_id: the padding token.
      reset_positions: count from 0 in each text (XLM), else through the segment (BERT, LaBSE).
      double_separator: put </s></s> between texts, as XLM-R does, else one separator.
    """
    num_texts, length = batch["languages"].shape[1], batch["tokens"].shape[1]
    if segment_BxExK is None:
        examples = jnp.arange(rank_BxExK.shape[1], dtype=jnp.int32)
        segment_BxExK = jnp.broadcast_to(examples[:, None], rank_BxExK.shape)

    def join_row(rank_ExK, segment_ExK, tokens_L, segments_L, positions_L, languages_K):
        example_L, text_L = jnp.divmod(jnp.maximum(segments_L - 1, 0), num_texts)
        rank_L, segment_L = rank_ExK[example_L, text_L], segment_ExK[example_L, text_L]
        later_L = (positions_L == 0) & (rank_L > 0)  # [CLS] of a text that is not the first
        kept_L = segments_L != 0
        if double_separator:
            tokens_L = jnp.where(later_L & kept_L, sep_id, tokens_L)
        else:
            kept_L &= ~later_L
        place_L = (segment_L * num_texts + rank_L) * length + positions_L
        order_L = jnp.argsort(jnp.where(kept_L, place_L, jnp.iinfo(jnp.int32).max))
        kept_L = kept_L[order_L]
        segments_L = jnp.where(kept_L, segment_L[order_L] + 1, 0)
        if reset_positions:
            dropped_L = 0 if double_separator else rank_L[order_L] > 0
            positions_L = positions_L[order_L] - dropped_L
        else:
            index_L = jnp.arange(length)
            begins_L = segments_L != jnp.pad(segments_L, (1, 0))[:-1]
            positions_L = index_L - jax.lax.cummax(jnp.where(begins_L, index_L, 0))
        return JoinedRows(
            tokens=jnp.where(kept_L, tokens_L[order_L], pad_id),
            segment_ids=segments_L,
            positions=jnp.where(kept_L, positions_L, 0),
            token_languages=languages_K[text_L[order_L]],
            text_rank=jnp.where(kept_L, rank_L[order_L], 0),
            source=order_L,
        )

    names = ("tokens", "segment_ids", "positions", "languages")
    return jax.vmap(join_row)(rank_BxExK, segment_BxExK, *(batch[name] for name in names))


def mix_examples(
    keys_B: jax.Array,
    batch: dict[str, jax.Array],
    examples: int,
    *,
    sep_id: jax.Array,
    pad_id: jax.Array,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Makes one example of two, drawn from the same row: [CLS] a [SEP] c [SEP] in each language.

    Whether a stands before c is drawn for each text by itself, so that translations have one order
    or two (Chi et al. 2021, InfoXLM, mixup contrast). The last of an odd number stays as it is.

    Args:
      keys_B: the rows' keys.
      batch: what rows hold, of at least two texts per example.
      examples: E.
      sep_id: the separator.
      pad_id: the padding token.

    Returns:
      The batch with up to H examples in a row, and int32[B, H, 2], the two that each is made of.
    """
    num_texts, half = batch["languages"].shape[1], -(-examples // 2)
    present_BxE = present_examples(batch["segment_ids"], examples, num_texts)

    def draw(key, present_E):
        order_key, swap_key = jax.random.split(key)
        lots_E = jax.random.uniform(order_key, (examples,)) + ~present_E  # the absent come last
        order_E = jnp.argsort(lots_E)
        place_E = jnp.argsort(order_E)
        swap_HxK = jax.random.bernoulli(swap_key, shape=(half, num_texts)).astype(jnp.int32)
        alone_E = (place_E ^ 1) >= present_E.sum()
        rank_ExK = jnp.where(alone_E[:, None], 0, (place_E % 2)[:, None] ^ swap_HxK[place_E // 2])
        segment_ExK = place_E[:, None] // 2 * num_texts + jnp.arange(num_texts)
        first_H, second_H = jnp.pad(order_E, (0, examples % 2)).reshape(half, 2).T
        second_H = jnp.where(alone_E[first_H], first_H, second_H)
        return rank_ExK, segment_ExK, jnp.stack([first_H, second_H], axis=1)

    rank_BxExK, segment_BxExK, members_BxHx2 = jax.vmap(draw)(keys_B, present_BxE)
    joined = join_texts(
        *(batch, rank_BxExK, segment_BxExK),
        sep_id=sep_id,
        pad_id=pad_id,
        reset_positions=False,
        double_separator=False,
    )
    names = ("tokens", "segment_ids", "positions")
    return batch | {name: getattr(joined, name) for name in names}, members_BxHx2
