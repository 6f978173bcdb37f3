"""Gradients by devices: each sums over its own rows as if it were alone, and all add up once."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from xl_flax.parallel.parts import gather, scatter_sum
from xl_flax.parallel.rules import Partitioning, axes_of, batch_axes, current, divided


class Layouts(NamedTuple):
    """How parameters and their gradients are laid out, as pytrees like the parameters."""

    params: Any  # NamedSharding of each
    gradients: Any  # NamedSharding of each, which may divide it further
    stacked: Any  # a bool of each: parameters of stacked layers, gathered layer by layer


def sum_over_devices(
    function: Callable, layouts: Layouts, constant: Any = None, weigh: Callable | None = None
) -> Callable:
    """`function(params, batch, *others)`, two sums over the rows of a batch, by devices.

    The compiler by itself adds up each contribution to a gradient where it arises, and what arises
    in a loop at every turn; and it gathers a divided parameter at each of its uses. Here a device
    gathers what it has parts of once, but for the layers of a stack, which the model gathers when
    it comes to them (`whole`, in both passes; its gradient is scattered there); it sums its own
    rows, as if it were alone; and the results of all devices are added up once, at the end. Meshes
    that divide more than rows, and parameters by the same axes, are left to the compiler.

    Args:
      function: of arrays, returning two pytrees of sums over rows, the first like the parameters.
      layouts: of parameters and of the first result.
      constant: a bool per array of the first result, is it 0 everywhere; None: none is.
      weigh: makes the first result, linearly, of what `function` returns in its place and of the
        second one, summed over devices; None: it is the first result.
    """
    weigh = weigh or (lambda first, second: first)
    axes, partitioning = batch_axes(), current()
    if not axes or not _only_rows_are_divided(partitioning, axes, layouts.params):
        return lambda *args: _weighed(weigh, *function(*args))
    mesh = partitioning.mesh
    one = Mesh(mesh.devices[(slice(1),) * mesh.devices.ndim], mesh.axis_names)
    constant = jax.tree.map(lambda _: False, layouts.stacked) if constant is None else constant
    own = jax.tree.map(lambda s: divided(s.spec, mesh), layouts.params)
    parts = any(jax.tree.leaves(jax.tree.map(lambda s, own: s and any(own), layouts.stacked, own)))
    # Alone it divides nothing, and knows the platform, and what it has parts of.
    alone = dataclasses.replace(partitioning, mesh=one, parts_of=partitioning if parts else None)
    specs = jax.tree.map(
        lambda s, own, zero: own if zero else s.spec, layouts.gradients, own, constant
    )

    def prepare(part: jax.Array, spec: PartitionSpec, stacked: bool) -> jax.Array:
        return part if stacked else gather(part, spec, part.dtype)

    def add_up(
        x: jax.Array,
        part: jax.Array,
        spec: PartitionSpec,
        own: PartitionSpec,
        stacked: bool,
        zero: bool,
    ) -> jax.Array:
        if zero:
            return jnp.zeros_like(part)
        done = tuple(axes_of(own)) if stacked else ()
        left = (None if set(axes_of([names])) <= set(done) else names for names in spec)
        x = scatter_sum(x, PartitionSpec(*left))
        others = tuple(a for a in axes if a not in axes_of(spec) and mesh.shape[a] > 1)
        if not others:
            return x
        if all(mesh.shape[a] == 1 for a in axes_of(spec)):  # it is sent whole
            return jax.lax.psum(x, others)
        # Flat: a TPU pads the last axis to 128, of which few are left, and sends it so to slices.
        apart = jax.lax.optimization_barrier  # else the compiler undoes it
        return apart(jax.lax.psum(apart(x.reshape(-1)), others)).reshape(x.shape)

    def on_device(params: Any, *args: Any) -> Any:
        given = jax.tree.map(prepare, params, own, layouts.stacked)
        with alone.activate():
            first, second = function(given, *args)
        first, second = _weighed(weigh, first, jax.lax.psum(second, axes))
        return jax.tree.map(add_up, first, params, specs, own, layouts.stacked, constant), second

    def run(params: Any, batch: Any, *others: Any) -> Any:
        everywhere, rows = PartitionSpec(), PartitionSpec(axes)
        summed = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(own, rows, *(everywhere for _ in others)),
            out_specs=(specs, everywhere),
            check_vma=False,
        )
        return summed(params, batch, *others)

    return run


def _weighed(weigh: Callable, first: Any, second: Any) -> tuple[Any, Any]:
    return weigh(first, second), second


def _only_rows_are_divided(partitioning: Partitioning, axes: tuple[str, ...], params: Any) -> bool:
    """Are the batch's axes all of the mesh, and is no parameter divided by any other?"""
    mesh = partitioning.mesh
    used = {a for s in jax.tree.leaves(params) for a in axes_of(divided(s.spec, mesh))}
    return math.prod(mesh.shape[a] for a in axes) == mesh.size and used <= set(axes)
