"""Softmax cross-entropy of a linear layer's outputs, without holding the logits of all slots.

The layer and its loss are one function: a chunk of slots meets the table, and its loss and its
share of the gradients are computed while its logits are there. This is the idea of Cut Your Losses
(Wijmans et al., 2024) and Liger (Hsu et al., 2024), with two savings of its own:

* Slots without a target are sorted behind the others, and chunks of nothing but them are not
  computed. A masked-LM head has a quarter more slots than targets.
* exp(logits - max) is the only array of the logits' size that outlives a fusion. The gradients are
  products with it; the normaliser and the weights go into the small factors, and the targets' share
  is a gather and a scatter of rows.

Shapes: Batch, K slots per row, D features, V vocabulary; Groups, N slots of a group, Chunk.
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
      expected: slots with a target that a group usually has.
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
    groups: int = 1,
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
      chunk: slots per group whose logits exist at once.
      groups: consecutive blocks of rows whose slots are sorted together; must divide B. With the
        number of devices that share the batch axis, no slot leaves its device.
    """
    return SlotLoss(
        *_cross_entropy(features_BxKxD, table_VxD, bias_V, targets_BxK, weights_BxK, chunk, groups)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _cross_entropy(features, table, bias, targets, weights, chunk, groups):
    return _forward(features, table, bias, targets, weights, chunk, groups)[0]


def _forward(features_BxKxD, table_VxD, bias_V, targets_BxK, weights_BxK, chunk, groups):
    batch, slots = targets_BxK.shape
    per_group = batch * slots // groups
    chunk = min(chunk, per_group)
    padded = -(-per_group // chunk) * chunk

    weights_GxN = weights_BxK.astype(jnp.float32).reshape(groups, per_group)
    filled_GxN = weights_GxN != 0
    # Stable: targets first, in the order of rows and slots.
    order_GxN = jnp.argsort(~filled_GxN, axis=1, stable=True)
    home_GxN = jnp.argsort(order_GxN, axis=1)

    def gather(x_BxKx):
        x = x_BxKx.reshape(groups, per_group, -1)
        x = jnp.take_along_axis(x, order_GxN[..., None], axis=1)
        return jnp.pad(x, ((0, 0), (0, padded - per_group), (0, 0)))

    def scatter(x_GxNx):
        x = x_GxNx.reshape(groups, padded, -1)[:, :per_group]
        return jnp.take_along_axis(x, home_GxN[..., None], axis=1).reshape(batch, slots, -1)

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
        place(jnp.zeros((groups, padded, *part.shape[2:]), part.dtype), part, 0) for part in parts
    )
    used = -(-jnp.max(jnp.sum(filled_GxN, axis=1)) // chunk)
    if padded > chunk:
        slotwise, summed = jax.lax.fori_loop(1, used, more, (slotwise, summed))
    loss, correct, d_features = slotwise
    d_table, d_bias = summed
    filled = filled_GxN.reshape(batch, slots)
    loss_BxK, correct_BxK = (jnp.where(filled, scatter(x)[..., 0], 0) for x in (loss, correct))
    total = jnp.sum(loss_BxK * weights_BxK)
    d_features = scatter(d_features).astype(features_BxKxD.dtype)
    gradients = d_features, d_table.astype(table_VxD.dtype), d_bias.astype(bias_V.dtype)
    return (total, loss_BxK, correct_BxK), gradients


def _chunk(features_GxCxD, table_VxD, bias_V, targets_GxC, weights_GxC):
    """Loss, correctness and d_features of a chunk's slots; its share of d_table and d_bias."""
    float32 = jnp.float32
    product = functools.partial(jnp.einsum, preferred_element_type=float32)
    logits = product("gcd,vd->gcv", features_GxCxD, table_VxD) + bias_V
    target = jnp.take_along_axis(logits, targets_GxC[..., None], axis=-1)[..., 0]
    largest = logits.max(axis=-1)
    e_GxCxV = jnp.exp(logits - largest[..., None])
    normaliser = e_GxCxV.sum(axis=-1)
    loss = largest + jnp.log(normaliser) - target
    correct = (target >= largest).astype(float32)

    # d logits = (e / normaliser - [v = target]) · weight, never formed.
    scale = (weights_GxC / normaliser)[..., None]
    e = e_GxCxV.astype(features_GxCxD.dtype)
    features = features_GxCxD.astype(float32)
    scaled = (features * scale).astype(e.dtype)
    weights = weights_GxC[..., None]
    d_features = product("gcv,vd->gcd", e, table_VxD) * scale - weights * table_VxD[targets_GxC]
    d_table = product("gcv,gcd->vd", e, scaled).at[targets_GxC].add(-weights * features)
    d_bias = jnp.einsum("gcv,gc->v", e_GxCxV, scale[..., 0]).at[targets_GxC].add(-weights_GxC)
    return (loss, correct, d_features), (d_table, d_bias)


def _backward(chunk, groups, gradients, cotangents):
    scale = cotangents[0]
    return *(x * scale.astype(x.dtype) for x in gradients), None, None


_cross_entropy.defvjp(_forward, _backward)
