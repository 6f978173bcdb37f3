"""Attention over packed rows, and rotary positions. Shapes: Batch, Heads, Length, Key size."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from xl_flax.errors import UserError
from xl_flax.models import fused_attention
from xl_flax.models.dropout import dropout
from xl_flax.parallel.rules import platform

MASKED = -1e9  # finite: its softmax is exactly zero beside any real score, and never NaN

# Products of any dtype are summed and returned in float32.
_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def attention(
    q_BxHxLxK: jax.Array,
    k_BxHxLxK: jax.Array,
    v_BxHxLxK: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    window: int | None = None,
    dropout_keys: jax.Array | None = None,
    dropout_rate: float = 0.0,
    kernel: Literal["auto", "plain", "cudnn"] = "auto",
) -> jax.Array:
    """Softmax attention, softmax(q k^T / sqrt(K)) v, inside segments and windows.

    Backward computes the probabilities again from each query's log-sum-exp, as FlashAttention does
    (Dao et al., 2022, algorithm 4): nothing of size L x L is kept between the two. On TPUs each of
    the two is a kernel (`fused_attention`), where the length of rows is a multiple of 128; on GPUs,
    if asked for.

    Args:
      q_BxHxLxK: queries, rotated already if positions are rotary; so are the keys.
      k_BxHxLxK: keys.
      v_BxHxLxK: values.
      segment_ids: int [B, L]; a token sees only tokens with its own id. Padding is a segment like
        any other (0), so that no row of the softmax is empty. None: one segment per row.
      window: a token sees only |i - j| <= window / 2; None: no limit.
      dropout_keys: key array [B] for dropout of the probabilities; None: no dropout.
      dropout_rate: probability of dropping.
      kernel: see `EncoderConfig.attention`.

    Returns:
      [B, H, L, K] in the queries' dtype; the softmax itself is float32.

    Raises:
      UserError: probabilities are to be dropped, which no kernel can do, or cuDNN is to compute in
        another dtype than bfloat16.
    """
    rate = 0.0 if dropout_keys is None else dropout_rate
    if kernel == "auto" and platform() == "tpu" and fused_attention.fits(q_BxHxLxK.shape[2]):
        refuse_dropout(rate)
        return fused_attention.fused_attention(q_BxHxLxK, k_BxHxLxK, v_BxHxLxK, segment_ids, window)
    if kernel == "cudnn" and platform() == "gpu":
        check_cudnn(rate, q_BxHxLxK.dtype.name, platform())
        visible = visible_keys(segment_ids, window, q_BxHxLxK.shape[2])
        return fused_attention.cudnn_attention(q_BxHxLxK, k_BxHxLxK, v_BxHxLxK, visible)
    inputs = q_BxHxLxK, k_BxHxLxK, v_BxHxLxK, segment_ids, dropout_keys
    return _attention(*inputs, window, dropout_rate)


def refuse_dropout(rate: float) -> None:
    """Raises UserError if probabilities are to be dropped at this rate, by a kernel."""
    if rate:
        raise UserError(
            f"EncoderConfig.attention_dropout = {rate}: the fused attention of TPUs and GPUs drops "
            "no probabilities. Set attention_dropout = 0, or EncoderConfig.attention = 'plain', "
            "which is slower and needs more memory (pretrained_encoder has both, too)"
        )


def check_cudnn(rate: float, dtype: str, where: str) -> None:
    """Raises UserError unless cuDNN's attention goes with dropout, dtype and platform."""
    refuse_dropout(rate)
    if (where, dtype) != ("gpu", "bfloat16"):
        raise UserError(
            f"EncoderConfig.attention = 'cudnn', on a {where.upper()} in {dtype}: cuDNN is for "
            "GPUs and EncoderConfig.dtype = 'bfloat16'; 'plain' is for all"
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attention(q, k, v, segment_ids, dropout_keys, window, dropout_rate):
    return _forward(q, k, v, segment_ids, dropout_keys, window, dropout_rate)[0]


def _forward(q, k, v, segment_ids, dropout_keys, window, dropout_rate):
    scores_BxHxLxL = _scores(q, k, segment_ids, window)
    largest = scores_BxHxLxL.max(axis=-1, keepdims=True)
    probs_BxHxLxL = jnp.exp(scores_BxHxLxL - largest)
    total = probs_BxHxLxL.sum(axis=-1, keepdims=True)
    probs_BxHxLxL = dropout(probs_BxHxLxL / total, dropout_keys, dropout_rate).astype(v.dtype)
    out = _einsum("bhij,bhjk->bhik", probs_BxHxLxL, v).astype(q.dtype)
    return out, (q, k, v, segment_ids, dropout_keys, out, largest + jnp.log(total))


def _backward(window, dropout_rate, residuals, gradient):
    q, k, v, segment_ids, dropout_keys, out, log_sum_exp = residuals
    probs_BxHxLxL = jnp.exp(_scores(q, k, segment_ids, window) - log_sum_exp)
    dropped_BxHxLxL = dropout(probs_BxHxLxL, dropout_keys, dropout_rate).astype(v.dtype)
    dv = _einsum("bhij,bhik->bhjk", dropped_BxHxLxL, gradient)
    d_probs = dropout(_einsum("bhik,bhjk->bhij", gradient, v), dropout_keys, dropout_rate)
    # sum_j p_ij dp_ij, what softmax's gradient subtracts, is also the product of out and gradient.
    shift = (gradient.astype(jnp.float32) * out).sum(axis=-1, keepdims=True)
    d_scores = (probs_BxHxLxL * (d_probs - shift) * q.shape[-1] ** -0.5).astype(q.dtype)
    dq = _einsum("bhij,bhjk->bhik", d_scores, k)
    dk = _einsum("bhij,bhik->bhjk", d_scores, q)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attention.defvjp(_forward, _backward)


def _scores(q, k, segment_ids, window):
    scores_BxHxLxL = _einsum("bhik,bhjk->bhij", q * q.shape[-1] ** -0.5, k)
    visible = visible_keys(segment_ids, window, q.shape[2])
    return scores_BxHxLxL if visible is None else jnp.where(visible, scores_BxHxLxL, MASKED)


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
