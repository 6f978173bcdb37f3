"""Packed rows taken apart: the language of each token, which examples are there, texts joined.

Text k of example e of a row is segment e · K + k + 1; 0 is padding.

Shapes: Batch, Length, E examples per row, K texts of an example.
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
    """Rows whose examples are one segment each: [CLS] a [SEP] b [SEP]. All int32[B, L]."""

    tokens: jax.Array
    segment_ids: jax.Array  # e + 1 for all texts of example e
    positions: jax.Array
    token_languages: jax.Array
    text_rank: jax.Array  # place of the token's text in its example: 0 for the first one
    source: jax.Array  # column in the row as it was, for features of tokens


def join_texts(
    batch: dict[str, jax.Array],
    rank_BxExK: jax.Array,
    *,
    sep_id: jax.Array,
    pad_id: jax.Array,
    reset_positions: bool,
    double_separator: bool,
) -> JoinedRows:
    """Puts the texts of each example side by side, so that each token sees all of them.

    Args:
      batch: tokens, segment_ids, positions int32[B, L]; languages int32[B, K].
      rank_BxExK: int32, the place of each text in its example, from 0.
      sep_id: the separator.
      pad_id: the padding token.
      reset_positions: count from 0 in each text (XLM), else through the example (BERT, LaBSE).
      double_separator: put </s></s> between texts, as XLM-R does, else one separator.
    """
    num_texts, length = batch["languages"].shape[1], batch["tokens"].shape[1]

    def join_row(rank_ExK, tokens_L, segments_L, positions_L, languages_K):
        example_L, text_L = jnp.divmod(jnp.maximum(segments_L - 1, 0), num_texts)
        rank_L = rank_ExK[example_L, text_L]
        later_L = (positions_L == 0) & (rank_L > 0)  # [CLS] of a text that is not the first
        kept_L = segments_L != 0
        if double_separator:
            tokens_L = jnp.where(later_L & kept_L, sep_id, tokens_L)
        else:
            kept_L &= ~later_L
        place_L = (example_L * num_texts + rank_L) * length + positions_L
        order_L = jnp.argsort(jnp.where(kept_L, place_L, jnp.iinfo(jnp.int32).max))
        kept_L = kept_L[order_L]
        segments_L = jnp.where(kept_L, example_L[order_L] + 1, 0)
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
    return jax.vmap(join_row)(rank_BxExK, *(batch[name] for name in names))
