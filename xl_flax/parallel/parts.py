"""Parameters of which each device has a part (fsdp), gathered by hand where they are used."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from xl_flax.parallel.rules import current, divided


def whole(
    part: jax.Array, names: Sequence[str | None], shape: Sequence[int], dtype: jnp.dtype
) -> jax.Array:
    """A parameter as it is used: where a device computes alone and has a part of it, gathered.

    What is sent has the dtype of use; its gradient is summed over those devices in the parameter's.

    Args:
      part: what the device has.
      names: the logical names of its axes.
      shape: of the whole parameter.
      dtype: in which it is used.

    Returns:
      The whole parameter, in its own dtype.
    """
    if not has_parts() or part.shape == tuple(shape):
        return part
    partitioning = current().parts_of
    return _gather(part, divided(partitioning.spec(names, shape), partitioning.mesh), dtype)


def has_parts() -> bool:
    """Does a device that computes alone have parts of parameters (see `whole`)?"""
    partitioning = current()
    return partitioning is not None and partitioning.parts_of is not None


def gather(part: jax.Array, spec: PartitionSpec, dtype: jnp.dtype) -> jax.Array:
    """The whole array of which each device of a `shard_map` has the part that `spec` says.

    It is sent in `dtype`, and returned in its own.
    """
    x = part.astype(dtype)
    for i, axes in enumerate(spec):
        if axes is not None:
            x = jax.lax.all_gather(x, axes, axis=i, tiled=True)
    return x.astype(part.dtype)


def scatter_sum(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """Of the sum of `x` over the devices of a `shard_map` the part that `spec` says."""
    for i, axes in enumerate(spec):
        if axes is not None:
            x = jax.lax.psum_scatter(x, axes, scatter_dimension=i, tiled=True)
    return x


_gather = jax.custom_vjp(gather, nondiff_argnums=(1, 2))
_gather.defvjp(
    lambda part, spec, dtype: (gather(part, spec, dtype), None),
    lambda spec, dtype, _, gradient: (scatter_sum(gradient, spec),),
)
