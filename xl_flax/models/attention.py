"""Attention over packed rows, and rotary positions. Shapes: Batch, Heads, Length, Key size."""

import jax
import jax.numpy as jnp

from xl_flax.models.dropout import dropout

MASKED = -1e9  # finite: its softmax is exactly zero beside any real score, and never NaN


def attention(
    q_BxHxLxK: jax.Array,
    k_BxHxLxK: jax.Array,
    v_BxHxLxK: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    window: int | None = None,
    dropout_keys: jax.Array | None = None,
    dropout_rate: float = 0.0,
) -> jax.Array:
    """Softmax attention, softmax(q k^T / sqrt(K)) v, inside segments and windows.

    Args:
      q_BxHxLxK: queries, rotated already if positions are rotary; so are the keys.
      k_BxHxLxK: keys.
      v_BxHxLxK: values.
      segment_ids: int [B, L]; a token sees only tokens with its own id. Padding is a segment like
        any other (0), so that no row of the softmax is empty. None: one segment per row.
      window: a token sees only |i - j| <= window / 2; None: no limit.
      dropout_keys: key array [B] for dropout of the probabilities; None: no dropout.
      dropout_rate: probability of dropping.

    Returns:
      [B, H, L, K] in the queries' dtype; the softmax itself is float32.
    """
    q_BxHxLxK = q_BxHxLxK * q_BxHxLxK.shape[-1] ** -0.5
    scores_BxHxLxL = jnp.einsum(
        "bhik,bhjk->bhij", q_BxHxLxK, k_BxHxLxK, preferred_element_type=jnp.float32
    )
    visible = visible_keys(segment_ids, window, q_BxHxLxK.shape[2])
    if visible is not None:
        scores_BxHxLxL = jnp.where(visible, scores_BxHxLxL, MASKED)
    probs_BxHxLxL = jax.nn.softmax(scores_BxHxLxL, axis=-1).astype(v_BxHxLxK.dtype)
    probs_BxHxLxL = dropout(probs_BxHxLxL, dropout_keys, dropout_rate)
    return jnp.einsum("bhij,bhjk->bhik", probs_BxHxLxL, v_BxHxLxK)


def visible_keys(
    segment_ids: jax.Array | None, window: int | None, length: int
) -> jax.Array | None:
    """Bool, broadcastable to [B, H, L, L]: query i sees key j. None: everything is seen."""
    visible = None
    if segment_ids is not None:
        visible = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    if window is not None and window // 2 < length - 1:
        index = jnp.arange(length)
        near = jnp.abs(index[:, None] - index[None, :]) <= window // 2
        visible = near if visible is None else visible & near
    return visible


def rotary_table(positions_BxL: jax.Array, head_dim: int, base: float) -> jax.Array:
    """Cosines and sines of rotary positions (Su et al., 2021), float32 [2, B or 1, 1, L, K/2]."""
    frequency = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions_BxL[:, None, :, None].astype(jnp.float32) * frequency
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def rotate(x_BxHxLxK: jax.Array, table: jax.Array) -> jax.Array:
    """Turns each pair (x[i], x[i + K/2]) by its position's angle; float32 inside."""
    cos, sin = table
    x1, x2 = jnp.split(x_BxHxLxK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
    return rotated.astype(x_BxHxLxK.dtype)
