"""Dropout whose random bits follow from one key per row of the batch.

A row then drops the same values on every mesh, in every microbatch and whatever stands beside it.
The bits are a hash of the row's key and the place in the row, computed where they are needed: on
CPU Threefry costs 40 times as much, a third of a small model's step, and its bits must be stored.
"""

import functools
import math

import jax
import jax.numpy as jnp


def row_keys(keys: jax.Array | None, site: int | jax.Array) -> jax.Array | None:
    """Keys [B] of one place in the network, from the rows' keys [B]; None stays None."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, site)


def row_bits(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random uint32 [B, *shape], elementwise in the place: no mesh changes or communicates them.

    The mixer is lowbias32, searched for least bias (Wellons, "Hash Function Prospector", 2018),
    applied once with each half of the key. Good for dropout, not for statistics that rest on it.
    """
    data = jax.random.key_data(keys).reshape(len(keys), -1, *(1 for _ in shape))
    place = jnp.zeros((1, *shape), jnp.uint32)
    for axis, size in enumerate(shape, 1):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, place.shape, axis)
    return _mix(_mix(place ^ data[:, 0]) ^ data[:, -1])


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)
    return x ^ (x >> 15)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropout(x_Bx, keys, rate):
    keep = row_bits(keys, x_Bx.shape[1:]) >= jnp.uint32(math.floor(rate * 2**32))
    # In float32: bfloat16 would round the factor, 1/0.9 to 1.1094, and all values with it.
    scaled_Bx = (x_Bx.astype(jnp.float32) * (1 / (1 - rate))).astype(x_Bx.dtype)
    return jnp.where(keep, scaled_Bx, 0)


# Backward makes the same bits again instead of keeping a mask.
_dropout.defvjp(
    lambda x, keys, rate: (_dropout(x, keys, rate), keys),
    lambda rate, keys, gradient: (_dropout(gradient, keys, rate), None),
)


def dropout(x_Bx: jax.Array, keys: jax.Array | None, rate: float) -> jax.Array:
    """Zeroes values at `rate` and scales up the rest (Srivastava et al., 2014).

    Args:
      x_Bx: [B, ...].
      keys: key array [B]; None switches dropout off.
      rate: probability of a zero, in [0, 1).
    """
    return x_Bx if keys is None or rate == 0 else _dropout(x_Bx, keys, rate)
