"""Sentence vectors from token states, of packed rows too. Shapes: Batch, Length, S sentences, D."""

from typing import Literal

import jax
import jax.numpy as jnp

Pooling = Literal["cls", "mean", "mean_all"]


def pool(
    hidden_BxLxD: jax.Array, segment_ids_BxL: jax.Array, sentences: int, pooling: Pooling
) -> jax.Array:
    """One vector for each of a row's first `sentences` segments.

    Args:
      hidden_BxLxD: token states.
      segment_ids_BxL: int; sentence s is where they equal s + 1, from [CLS] to [SEP]; 0 is padding.
      sentences: S.
      pooling: "cls" takes a sentence's first token (Devlin et al. 2019), "mean" averages all but
        its first and last, the special tokens (Reimers and Gurevych 2019, but for these),
        "mean_all" averages all of them, as sentence-transformers does.

    Returns:
      float32[B, S, D]; zeros where there is no such segment, or by "mean" no token between its
      specials.
    """
    before, after = (
        jnp.pad(segment_ids_BxL, ((0, 0), pad))[:, cut]
        for pad, cut in (((1, 0), slice(None, -1)), ((0, 1), slice(1, None)))
    )
    first_BxL = segment_ids_BxL != before
    if pooling == "cls":
        taken_BxL = first_BxL
    elif pooling == "mean":
        taken_BxL = ~first_BxL & (segment_ids_BxL == after)
    else:
        taken_BxL = segment_ids_BxL != 0
    number_S = jnp.arange(1, sentences + 1)
    mine_BxSxL = taken_BxL[:, None] & (segment_ids_BxL[:, None] == number_S[:, None])
    weight_BxSxL = mine_BxSxL / jnp.maximum(mine_BxSxL.sum(axis=2, keepdims=True), 1)
    # A select, not a product: NaN · 0 at a padded position would be NaN.
    states_BxLxD = jnp.where((segment_ids_BxL != 0)[..., None], hidden_BxLxD, 0)
    return jnp.einsum(
        "bsl,bld->bsd",
        weight_BxSxL.astype(states_BxLxD.dtype),
        states_BxLxD,
        preferred_element_type=jnp.float32,
    )
