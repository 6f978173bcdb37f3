"""Reductions over all similarities of two sets of vectors, none of which is ever held as a matrix.

Vectors x stay on their devices; vectors y are gathered, and their similarities to x are computed
and reduced block by block, forward and again backward. Memory therefore grows with the number of
vectors and not with its square; one gather, small reductions and, backward, one reduce-scatter
cross the mesh, and none of them lies inside the loop.

Which pairs count: both vectors are valid, and their sets of keys have nothing in common. Vectors
that must not be told apart (a sentence and its translation, or a copy of one of them) share a key,
in whatever place.

Shapes: N vectors x, M vectors y, D features, G keys of an x, H of a y; on one device n, m of them;
block of C.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import all_gather, axis_index, pmax, psum, psum_scatter

from xl_flax.parallel.rules import batch_axes, per_device

LOGITS = 2**24  # similarities that exist at once on a device: 64 MiB

VECTORS, KEYS, EACH = ("batch", None), ("batch", None), ("batch",)
INPUTS = (VECTORS, VECTORS, (), KEYS, KEYS, EACH, EACH)


class LogSumExps(NamedTuple):
    """Reductions over a matrix of similarities, along both of its axes."""

    rows: jax.Array  # float32[N]: log Σ_j exp(scale · x_i·y_j); -inf where no pair counts
    columns: jax.Array  # float32[M]
    row_max: jax.Array  # float32[N]: largest scale · x_i·y_j; it has no gradient
    column_max: jax.Array  # float32[M]


def log_sum_exps(
    x_NxD: jax.Array,
    y_MxD: jax.Array,
    scale: jax.Array | float,
    x_keys_NxG: jax.Array,
    y_keys_MxH: jax.Array,
    x_valid_N: jax.Array,
    y_valid_M: jax.Array,
    block: int | None = None,
) -> LogSumExps:
    """Log-sum-exps of scaled similarities over the pairs that count, for each x and each y.

    Args:
      x_NxD: float32 vectors, sharded along the batch.
      y_MxD: float32 vectors, sharded along the batch.
      scale: factor of all similarities; has a gradient, as x and y have.
      x_keys_NxG: int32; a pair of which any two keys are equal does not count.
      y_keys_MxH: int32.
      x_valid_N: bool.
      y_valid_M: bool.
      block: vectors y per block; None: as many as bound the block to 64 MiB.
    """
    scale = jnp.asarray(scale, jnp.float32)
    return LogSumExps(
        *_log_sum_exps(x_NxD, y_MxD, scale, x_keys_NxG, y_keys_MxH, x_valid_N, y_valid_M, block)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def _log_sum_exps(x, y, scale, x_keys, y_keys, x_valid, y_valid, block):
    def device(x, y, scale, x_keys, y_keys, x_valid, y_valid):
        blocks = _blocks(len(x), block, y, y_keys, y_valid)

        def reduce(carry, part):
            largest, total = carry
            y, keys, valid = part
            s = jnp.where(_counts(x_keys, keys, x_valid, valid), scale * _dot(x, y), -jnp.inf)
            new = jnp.maximum(largest, s.max(axis=1))
            total = total * _exp(largest, new) + _exp(s, new[:, None]).sum(axis=1)
            below = s.max(axis=0)
            return (new, total), (below, _exp(s, below).sum(axis=0))

        start = jnp.full(len(x), -jnp.inf), jnp.zeros(len(x))
        (row_max, total), columns = jax.lax.scan(reduce, start, blocks)
        size = len(y) * _devices()
        mine, column_total = (c.reshape(-1)[:size] for c in columns)
        column_max = _over_devices(pmax, mine)
        column_total = _scatter(column_total * _exp(mine, column_max))
        column_max = _own(column_max, len(y))
        return (
            row_max + jnp.log(total),
            column_max + jnp.log(column_total),
            row_max,
            column_max,
        )

    return per_device(device, INPUTS, (EACH,) * 4)(x, y, scale, x_keys, y_keys, x_valid, y_valid)


def _forward(x, y, scale, x_keys, y_keys, x_valid, y_valid, block):
    out = _log_sum_exps(x, y, scale, x_keys, y_keys, x_valid, y_valid, block)
    return out, (x, y, scale, x_keys, y_keys, x_valid, y_valid, *out[:2])


def _backward(block, residuals, cotangents):
    def device(x, y, scale, x_keys, y_keys, x_valid, y_valid, rows, columns, d_rows, d_columns):
        blocks = _blocks(len(x), block, y, y_keys, y_valid, columns, d_columns)

        def reduce(carry, part):
            d_x, d_scale = carry
            y, keys, valid, columns, d_columns = part
            dot = _dot(x, y)
            s = jnp.where(_counts(x_keys, keys, x_valid, valid), scale * dot, -jnp.inf)
            d_s = d_rows[:, None] * _exp(s, rows[:, None]) + d_columns * _exp(s, columns)
            d_x += scale * _dot(d_s, y.T)
            return (d_x, d_scale + (d_s * dot).sum()), scale * _dot(d_s.T, x.T)

        (d_x, d_scale), d_y = jax.lax.scan(reduce, (jnp.zeros_like(x), 0.0), blocks)
        d_y = _scatter(d_y.reshape(-1, y.shape[1])[: len(y) * _devices()])
        return d_x, d_y, _over_devices(psum, d_scale)

    run = per_device(device, (*INPUTS, *(EACH,) * 4), (VECTORS, VECTORS, ()))
    return *run(*residuals, *cotangents[:2]), None, None, None, None


_log_sum_exps.defvjp(_forward, _backward)


def softplus_sums(
    x_NxD: jax.Array,
    y_MxD: jax.Array,
    scale: jax.Array | float,
    bias: jax.Array | float,
    x_keys_NxG: jax.Array,
    y_keys_MxH: jax.Array,
    x_valid_N: jax.Array,
    y_valid_M: jax.Array,
    block: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Σ_j log(1 + exp(scale · x_i·y_j + bias)) over the pairs that count, and their largest term.

    Arguments as those of `log_sum_exps`; `bias` has a gradient, too.

    Returns:
      float32[N] sums and float32[N] largest scale · x_i·y_j + bias, which has no gradient.
    """
    scale, bias = jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)
    return _softplus_sums(
        x_NxD, y_MxD, scale, bias, x_keys_NxG, y_keys_MxH, x_valid_N, y_valid_M, block
    )


SIGMOID_INPUTS = (VECTORS, VECTORS, (), (), KEYS, KEYS, EACH, EACH)


@functools.partial(jax.custom_vjp, nondiff_argnums=(8,))
def _softplus_sums(x, y, scale, bias, x_keys, y_keys, x_valid, y_valid, block):
    def device(x, y, scale, bias, x_keys, y_keys, x_valid, y_valid):
        def reduce(carry, part):
            total, largest = carry
            y, keys, valid = part
            s = scale * _dot(x, y) + bias
            s = jnp.where(_counts(x_keys, keys, x_valid, valid), s, -jnp.inf)
            total += jnp.logaddexp(s, 0).sum(axis=1)
            return (total, jnp.maximum(largest, s.max(axis=1))), None

        start = jnp.zeros(len(x)), jnp.full(len(x), -jnp.inf)
        return jax.lax.scan(reduce, start, _blocks(len(x), block, y, y_keys, y_valid))[0]

    run = per_device(device, SIGMOID_INPUTS, (EACH, EACH))
    return run(x, y, scale, bias, x_keys, y_keys, x_valid, y_valid)


def _sigmoid_forward(*arguments):
    return _softplus_sums(*arguments), arguments[:-1]


def _sigmoid_backward(block, residuals, cotangents):
    def device(x, y, scale, bias, x_keys, y_keys, x_valid, y_valid, d_sums):
        def reduce(carry, part):
            d_x, d_scale, d_bias = carry
            y, keys, valid = part
            dot = _dot(x, y)
            counts = _counts(x_keys, keys, x_valid, valid)
            d_s = jnp.where(counts, d_sums[:, None] * jax.nn.sigmoid(scale * dot + bias), 0)
            carry = d_x + scale * _dot(d_s, y.T), d_scale + (d_s * dot).sum(), d_bias + d_s.sum()
            return carry, scale * _dot(d_s.T, x.T)

        blocks = _blocks(len(x), block, y, y_keys, y_valid)
        (d_x, *scalars), d_y = jax.lax.scan(reduce, (jnp.zeros_like(x), 0.0, 0.0), blocks)
        d_y = _scatter(d_y.reshape(-1, y.shape[1])[: len(y) * _devices()])
        return d_x, d_y, *(_over_devices(psum, s) for s in scalars)

    run = per_device(device, (*SIGMOID_INPUTS, EACH), (VECTORS, VECTORS, (), ()))
    return *run(*residuals, cotangents[0]), None, None, None, None


_softplus_sums.defvjp(_sigmoid_forward, _sigmoid_backward)


def _blocks(rows, block, y, keys, valid, *more):
    """All devices' y and what belongs to them, in blocks, the last one filled up with invalid."""
    size = len(y) * _devices()
    block = min(size, block or max(128, LOGITS // rows))
    count = -(-size // block)

    def cut(z):
        if batch_axes():
            z = all_gather(z, batch_axes(), tiled=True)
        z = jnp.pad(z, ((0, count * block - size), *((0, 0),) * (z.ndim - 1)))
        return z.reshape(count, block, *z.shape[1:])

    return tuple(map(cut, (y, keys, valid, *more)))


def _counts(x_keys, y_keys, x_valid, y_valid):
    counts = x_valid[:, None] & y_valid[None]
    for mine, theirs in itertools.product(x_keys.T, y_keys.T):  # which compilers vectorise
        counts &= mine[:, None] != theirs
    return counts


def _dot(x, y):
    return jnp.matmul(x, y.T, precision="highest", preferred_element_type=jnp.float32)


def _exp(a, b):
    """exp(a - b); 0 where a is -inf, also where b is."""
    return jnp.exp(a - jnp.where(jnp.isneginf(b), 0, b))


def _devices() -> int:
    size = 1
    for axis in batch_axes():
        size *= jax.lax.axis_size(axis)
    return size


def _over_devices(reduction, z):
    return reduction(z, batch_axes()) if batch_axes() else z


def _scatter(z):
    """Sums over devices, of which each keeps its own part."""
    return psum_scatter(z, batch_axes(), tiled=True) if batch_axes() else z


def _own(z, size):
    """A device's part of what all of them hold."""
    if not batch_axes():
        return z
    return jax.lax.dynamic_slice_in_dim(z, axis_index(batch_axes()) * size, size)
