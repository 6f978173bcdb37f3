"""Softmax cross-entropy of a linear layer's outputs, without holding the logits of all slots.

The layer and its loss are one function: a chunk of slots meets the table, and its loss and its
share of the gradients are computed while its logits are there. This is the idea of Cut Your Losses
(Wijmans et al., 2024) and Liger (Hsu et al., 2024), with two savings of its own:

* Slots without a target are sorted behind the others, and chunks of nothing but them are not
  computed. Rows of a masked LM leave slots empty: those with padding, or with whole words masked.
* exp(logits - max) is the only array of the logits' size that outlives a fusion. The gradients are
  products with it; the normaliser and the weights go into the small factors, and the targets' share
  is a gather and a scatter of rows.

Shapes: Batch, K slots per row, D features, V vocabulary; Shards, N slots of a shard, Chunk.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp


class SlotLoss(NamedTuple):
    """Cross-entropy of slots."""

    total: jax.Array  # float32[]: Σ weight · loss; the only one with a gradient
    loss_BxK: jax.Array  # float32: of each slot, unweighted; 0 where the weight is 0
    correct_BxK: jax.Array  # float32: 1 where no token scores higher than the target


def chunk_size(expected: float, bytes_per_slot: int, budget_mib: float) -> int:
    """Slots per chunk, so that `expected` slots fill few chunks and fill them well.

    Args:
      expected: slots with a target that a shard usually has.
      bytes_per_slot: memory of one slot's logits on one device.
      budget_mib: memory for the logits of a chunk on one device.
    """
    largest = max(8, int(budget_mib * 2**20 / bytes_per_slot) // 8 * 8)
    chunks = -(-expected // largest)
    return min(largest, int(-(-expected // (8 * chunks)) * 8))


def linear_cross_entropy(
    features_BxKxD: jax.Array,
    table_VxD: jax.Array,
    bias_V: jax.Array,
    targets_BxK: jax.Array,
    weights_BxK: jax.Array,
    *,
    chunk: int,
    shards: int = 1,
) -> SlotLoss:
    """Cross-entropy of softmax(features · tableᵀ + bias), summed over slots.

    Gradients flow from `total` into features, table and bias. They are computed with the loss, so
    it costs the same whether or not they are wanted. Logits, normaliser and accumulated gradients
    are float32; products with the table are in the features' dtype.

    Args:
      features_BxKxD: the head's outputs, float32 or bfloat16.
      table_VxD: the vocabulary projection, float32.
      bias_V: float32.
      targets_BxK: int, in [0, V).
      weights_BxK: float; slots of weight 0 count for nothing and cost little.
      chunk: slots per shard whose logits exist at once.
      shards: consecutive blocks of rows whose slots are sorted together; must divide B. With the
        number of devices that share the batch axis, no slot leaves its device.
    """
    return SlotLoss(
        *_cross_entropy(features_BxKxD, table_VxD, bias_V, targets_BxK, weights_BxK, chunk, shards)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _cross_entropy(features, table, bias, targets, weights, chunk, shards):
    return _forward(features, table, bias, targets, weights, chunk, shards)[0]


def _forward(features_BxKxD, table_VxD, bias_V, targets_BxK, weights_BxK, chunk, shards):
    batch, slots = targets_BxK.shape
    per_shard = batch * slots // shards
    chunk = min(chunk, per_shard)
    padded = -(-per_shard // chunk) * chunk

    weights_SxN = weights_BxK.astype(jnp.float32).reshape(shards, per_shard)
    filled_SxN = weights_SxN != 0
    # Stable: targets first, in the order of rows and slots.
    order_SxN = jnp.argsort(~filled_SxN, axis=1, stable=True)
    home_SxN = jnp.argsort(order_SxN, axis=1)

    def gather(x_BxKx):
        x = x_BxKx.reshape(shards, per_shard, -1)
        x = jnp.take_along_axis(x, order_SxN[..., None], axis=1)
        return jnp.pad(x, ((0, 0), (0, padded - per_shard), (0, 0)))

    def scatter(x_SxNx):
        x = x_SxNx.reshape(shards, padded, -1)[:, :per_shard]
        return jnp.take_along_axis(x, home_SxN[..., None], axis=1).reshape(batch, slots, -1)

    features = gather(features_BxKxD)
    targets = gather(targets_BxK)[..., 0]
    weights = gather(weights_BxK.astype(jnp.float32))[..., 0]
    table = table_VxD.astype(features.dtype)

    def chunk_at(i):
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=i * chunk, axis=1)
        part = [cut(x, slice_size=chunk) for x in (features, targets, weights)]
        return _chunk(part[0], table, bias_V, part[1], part[2])

    def place(x, part, i):
        return jax.lax.dynamic_update_slice_in_dim(x, part, i * chunk, axis=1)

    def more(i, carry):
        slotwise, summed = carry
        parts, shares = chunk_at(i)
        return (
            tuple(place(x, part, i) for x, part in zip(slotwise, parts, strict=True)),
            tuple(x + share for x, share in zip(summed, shares, strict=True)),
        )

    # The first chunk starts the sums: the table's gradient is not filled with zeros beforehand.
    parts, summed = chunk_at(0)
    slotwise = tuple(
        place(jnp.zeros((shards, padded, *part.shape[2:]), part.dtype), part, 0) for part in parts
    )
    used = -(-jnp.max(jnp.sum(filled_SxN, axis=1)) // chunk)
    if padded > chunk:
        slotwise, summed = jax.lax.fori_loop(1, used, more, (slotwise, summed))
    loss, correct, d_features = slotwise
    d_table, d_bias = summed
    filled = filled_SxN.reshape(batch, slots)
    loss_BxK, correct_BxK = (jnp.where(filled, scatter(x)[..., 0], 0) for x in (loss, correct))
    total = jnp.sum(loss_BxK * weights_BxK)
    d_features = scatter(d_features).astype(features_BxKxD.dtype)
    gradients = d_features, d_table.astype(table_VxD.dtype), d_bias.astype(bias_V.dtype)
    return (total, loss_BxK, correct_BxK), gradients


def _chunk(features_SxCxD, table_VxD, bias_V, targets_SxC, weights_SxC):
    """Loss, correctness and d_features of a chunk's slots; its share of d_table and d_bias."""
    float32 = jnp.float32
    product = functools.partial(jnp.einsum, preferred_element_type=float32)
    logits = product("scd,vd->scv", features_SxCxD, table_VxD) + bias_V
    target = jnp.take_along_axis(logits, targets_SxC[..., None], axis=-1)[..., 0]
    largest = logits.max(axis=-1)
    e_SxCxV = jnp.exp(logits - largest[..., None])
    normaliser = e_SxCxV.sum(axis=-1)
    loss = largest + jnp.log(normaliser) - target
    correct = (target >= largest).astype(float32)

    # d logits = (e / normaliser - [v = target]) · weight, never formed.
    scale = (weights_SxC / normaliser)[..., None]
    e = e_SxCxV.astype(features_SxCxD.dtype)
    features = features_SxCxD.astype(float32)
    scaled = (features * scale).astype(e.dtype)
    weights = weights_SxC[..., None]
    d_features = product("scv,vd->scd", e, table_VxD) * scale - weights * table_VxD[targets_SxC]
    d_table = product("scv,scd->vd", e, scaled).at[targets_SxC].add(-weights * features)
    d_bias = jnp.einsum("scv,sc->v", e_SxCxV, scale[..., 0]).at[targets_SxC].add(-weights_SxC)
    return (loss, correct, d_features), (d_table, d_bias)


def _backward(chunk, shards, gradients, cotangents):
    scale = cotangents[0]
    return *(x * scale.astype(x.dtype) for x in gradients), None, None


_cross_entropy.defvjp(_forward, _backward)
