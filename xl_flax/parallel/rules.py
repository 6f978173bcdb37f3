"""Logical axis names → mesh axes: how parameters and activations are laid out.

Models name the axes of their arrays ("batch", "embed", "mlp", …) and know no mesh. A
`Partitioning` holds the mesh and the rules that translate; a step activates it while it is traced.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Rules = Sequence[tuple[str, str | Sequence[str] | None]]

_active: contextvars.ContextVar["Partitioning | None"] = contextvars.ContextVar(
    "partitioning", default=None
)


@dataclasses.dataclass(frozen=True)
class Partitioning:
    """A device mesh and the rules from logical axis names to its axes."""

    mesh: Mesh
    rules: Rules
    optimizer_axes: tuple[str, ...] = ()  # divide the optimizer's state, too
    parts_of: "Partitioning | None" = None  # the whole one, of which this is one device alone

    @property
    def platform(self) -> str:
        """Of the mesh's devices: "cpu", "gpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform

    @property
    def batch_shards(self) -> int:
        """Groups of devices that have rows of their own."""
        return math.prod(self.mesh.shape[axis] for axis in axes_of(self.spec(("batch",))))

    def spec(
        self, names: Sequence[str | None], shape: Sequence[int] | None = None
    ) -> PartitionSpec:
        """The PartitionSpec of an array whose axes have these logical names.

        A mesh axis is used at most once, by the first name that claims it. With `shape`, an axis
        whose size the mesh axes do not divide stays whole (a 250,002-piece vocabulary on four
        devices), which the parameter table then shows.
        """
        rules = {name: (axes,) if isinstance(axes, str) else axes for name, axes in self.rules}
        used: set[str] = set()
        spec = []
        for i, name in enumerate(names):
            axes = tuple(a for a in (rules.get(name) or ()) if a not in used) if name else ()
            if shape is not None:
                size = int(np.prod([self.mesh.shape[a] for a in axes]))
                if shape[i] % size:
                    axes = ()
            used.update(axes)
            spec.append(axes if len(axes) > 1 else axes[0] if axes else None)
        return PartitionSpec(*spec)

    def sharding(
        self, names: Sequence[str | None], shape: Sequence[int] | None = None
    ) -> NamedSharding:
        """`spec` as a NamedSharding on this mesh."""
        return NamedSharding(self.mesh, self.spec(names, shape))

    def optimizer_sharding(
        self, names: Sequence[str | None], shape: Sequence[int]
    ) -> NamedSharding:
        """The sharding of a parameter's moments, and of the gradient that they read.

        As `sharding`, but the first axis that is whole and can be is divided over `optimizer_axes`;
        the last axis, whose neighbours lie beside each other in memory, if no other.
        """
        count = lambda axes: math.prod(self.mesh.shape[a] for a in axes)  # noqa: E731
        spec = list(divided(self.spec(names, shape), self.mesh))
        axes = tuple(a for a in self.optimizer_axes if a not in axes_of(spec))
        whole = (i for i, own in enumerate(spec) if own is None and shape[i] % count(axes) == 0)
        if count(axes) > 1 and (first := next(whole, None)) is not None:
            spec[first] = axes if len(axes) > 1 else axes[0]
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    @contextlib.contextmanager
    def activate(self) -> Iterator[None]:
        """While active (at trace time), `constrain` applies this partitioning."""
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)


def current() -> Partitioning | None:
    """The one that is active."""
    return _active.get()


def constrain(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """Asks the compiler to lay out `x` as its logical axis names say; without a mesh, nothing."""
    partitioning = _active.get()
    if partitioning is None or partitioning.mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partitioning.sharding(names, x.shape))


def constrain_as(tree: Any, shardings: Any) -> Any:
    """As `constrain`, of a pytree of arrays, as these NamedShardings say."""
    partitioning = _active.get()
    if partitioning is None or partitioning.mesh.size == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings)


def platform() -> str:
    """Where the program that is traced will run ("cpu", "gpu", "tpu"): the platform of the mesh.

    The mesh may be of devices that are not here, as when a step is compiled for a TPU beforehand.
    Without one, JAX's default.
    """
    partitioning = _active.get()
    if partitioning is None:
        return jax.default_backend()
    return partitioning.platform


def local_shape(names: Sequence[str | None], shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one device's part of an array with these logical axis names."""
    partitioning = _active.get()
    if partitioning is None:
        return tuple(shape)
    return partitioning.sharding(names, shape).shard_shape(tuple(shape))


def batch_axes() -> tuple[str, ...]:
    """The mesh axes over which the batch is spread, for collectives inside `per_device`."""
    partitioning = _active.get()
    if partitioning is None or partitioning.mesh.size == 1:
        return ()
    (axes,) = partitioning.spec(("batch",))
    return (axes,) if isinstance(axes, str) else axes or ()


def per_device(
    function: Callable, in_names: Sequence[Sequence[str | None]], out_names: Sequence
) -> Callable:
    """`function` on each device's parts of its arguments, with collectives written by hand.

    Args:
      function: of arrays, returning a tuple of arrays; not differentiated through.
      in_names: logical axis names of each argument.
      out_names: logical axis names of each result; without "batch", it must be the same everywhere.
    """
    if not batch_axes():
        return function
    partitioning = _active.get()
    return jax.shard_map(
        function,
        mesh=partitioning.mesh,
        in_specs=tuple(map(partitioning.spec, in_names)),
        out_specs=tuple(map(partitioning.spec, out_names)),
        check_vma=False,
    )


def on_parts(
    function: Callable, names: Sequence[Sequence[str | None]], *arrays: jax.Array
) -> jax.Array:
    """`function(*arrays)` by each device on its own parts, which need nothing of one another.

    What the compiler cannot divide by itself, such as a kernel, is divided so. An axis that the
    mesh does not divide stays whole, as with `constrain`.

    Args:
      function: of arrays, returning one array; it may be differentiated through.
      names: logical axis names of each array; those of the first are the result's, too.
      *arrays: whole.
    """
    partitioning = _active.get()
    if partitioning is None or partitioning.mesh.size == 1:
        return function(*arrays)
    specs = tuple(partitioning.spec(own, x.shape) for own, x in zip(names, arrays, strict=True))
    divided = jax.shard_map(
        function, mesh=partitioning.mesh, in_specs=specs, out_specs=specs[0], check_vma=False
    )
    return divided(*arrays)


def divided(spec: PartitionSpec, mesh: Mesh) -> PartitionSpec:
    """The spec without the axes that divide nothing, of which each has but one device."""
    own = [tuple(a for a in axes_of([axes]) if mesh.shape[a] > 1) for axes in spec]
    return PartitionSpec(*(axes if len(axes) > 1 else axes[0] if axes else None for axes in own))


def axes_of(spec: Sequence[str | Sequence[str] | None]) -> Iterator[str]:
    """The mesh axes that a PartitionSpec names."""
    for axes in spec:
        yield from (axes,) if isinstance(axes, str) else axes or ()
