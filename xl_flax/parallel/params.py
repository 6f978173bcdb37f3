"""A module's parameters as a plain pytree: created sharded, laid out by logical axis names."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from xl_flax import text_table
from xl_flax.parallel.rules import Partitioning
from xl_flax.parallel.sums import Layouts

# Variables carry logical names, not mesh axes: they are laid out here, not when they are made.
nnx.use_eager_sharding(False)


@dataclasses.dataclass(frozen=True)
class Abstract:
    """A module without its values: everything that is known before any memory is used."""

    graph: nnx.GraphDef  # `nnx.merge(graph, params)` gives the module back
    shapes: dict[str, Any]  # nested dict of jax.ShapeDtypeStruct
    axes: dict[str, Any]  # the same tree with a tuple of logical axis names at each leaf

    def shardings(self, partitioning: Partitioning) -> dict[str, Any]:
        """The NamedSharding of each parameter."""
        return jax.tree.map(lambda s, a: partitioning.sharding(a, s.shape), self.shapes, self.axes)

    def optimizer_shardings(self, partitioning: Partitioning) -> dict[str, Any]:
        """The NamedSharding of each parameter's gradient and moments."""
        return jax.tree.map(
            lambda s, a: partitioning.optimizer_sharding(a, s.shape), self.shapes, self.axes
        )

    def layouts(self, partitioning: Partitioning) -> Layouts:
        """How the parameters, and with them their gradients, are laid out for a training step."""
        by_layer = partitioning.spec(("layers",))[0] is None  # each device has a part of each layer
        stacked = jax.tree.map(
            lambda _, axes: by_layer and axes[:1] == ("layers",), self.shapes, self.axes
        )
        gradients = self.optimizer_shardings(partitioning)
        return Layouts(self.shardings(partitioning), gradients, stacked)

    def layout(self, partitioning: Partitioning) -> dict[str, Any]:
        """Shapes with shardings: what restoring a checkpoint needs."""
        return jax.tree.map(
            lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p),
            self.shapes,
            self.shardings(partitioning),
        )


def abstract(build: Callable[[], nnx.Module]) -> Abstract:
    """Traces a constructor without running it."""
    graph, state = nnx.split(nnx.eval_shape(build))
    specs = nnx.to_pure_dict(nnx.get_partition_spec(state))
    shapes = nnx.to_pure_dict(state)
    axes = jax.tree.map(
        lambda s, spec: tuple(spec) + (None,) * (len(s.shape) - len(spec)), shapes, specs
    )
    return Abstract(graph, shapes, axes)


def create(build: Callable[[], nnx.Module], partitioning: Partitioning) -> dict[str, Any]:
    """Runs a constructor under jit, so that each device makes only its own share."""
    return creator(lambda _: build(), partitioning)(0)


def creator(
    build: Callable[[int], nnx.Module], partitioning: Partitioning
) -> Callable[[int], dict[str, Any]]:
    """The same as a function of a constructor's seed, which is compiled once for all seeds."""
    shardings = abstract(lambda: build(0)).shardings(partitioning)
    return jax.jit(
        lambda seed: nnx.to_pure_dict(nnx.split(build(seed))[1]), out_shardings=shardings
    )


def flat(tree: dict[str, Any], is_leaf: Callable[[Any], bool] | None = None) -> Iterator:
    """Pairs of a leaf's path, as in `encoder/layers/mlp/kernel`, and the leaf."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]:
        yield "/".join(map(_key, path)), leaf


def table(shapes: dict[str, Any], axes: dict[str, Any], partitioning: Partitioning) -> str:
    """All parameters with shape, dtype, logical axes and sharding, and their totals, as text."""
    rows = [("parameter", "shape", "dtype", "axes", "sharding")]
    names = dict(flat(axes, is_leaf=lambda x: isinstance(x, tuple)))
    for path, leaf in flat(shapes):
        sharding = partitioning.sharding(names[path], leaf.shape)
        rows.append(
            (
                path,
                "×".join(map(str, leaf.shape)) or "scalar",
                str(np.dtype(leaf.dtype)),
                ", ".join(str(a or "·") for a in names[path]),
                ", ".join(map(_axis, sharding.spec)),
            )
        )
    listed = text_table.table(rows, left=range(len(rows[0])))
    return f"{listed}\n{_totals(shapes, axes, partitioning)}"


def summary(shapes: dict[str, Any], axes: dict[str, Any], partitioning: Partitioning) -> str:
    """How many parameters each part of a model has, and their totals, as text of 80 columns.

    A part is what the first two steps of a path name, as in `encoder/layers`.
    """
    parts: dict[str, list[int]] = {}
    for path, size, share in _sizes(shapes, axes, partitioning):
        part = parts.setdefault("/".join(path.split("/")[:2]), [0, 0, 0])
        for i, number in enumerate((1, size, share)):
            part[i] += number
    rows = [("part", "arrays", "parameters", "on each device")]
    rows += [(part, *(f"{n:,}" for n in numbers)) for part, numbers in parts.items()]
    return f"{text_table.table(rows)}\n{_totals(shapes, axes, partitioning)}"


def _sizes(shapes: Any, axes: Any, partitioning: Partitioning) -> Iterator[tuple[str, int, int]]:
    """Of each parameter its path, its size and the size of a device's share."""
    names = dict(flat(axes, is_leaf=lambda x: isinstance(x, tuple)))
    for path, leaf in flat(shapes):
        sharding = partitioning.sharding(names[path], leaf.shape)
        yield path, leaf.size, math.prod(sharding.shard_shape(leaf.shape))


def _totals(shapes: Any, axes: Any, partitioning: Partitioning) -> str:
    _, sizes, shares = zip(*_sizes(shapes, axes, partitioning), strict=True)
    mesh = " × ".join(f"{name} {size}" for name, size in partitioning.mesh.shape.items())
    return f"{sum(sizes):,} parameters; {sum(shares):,} on each device; mesh {mesh}"


def _key(key: Any) -> str:
    """A step of a path: a dict's key, a sequence's index or an attribute's name."""
    return str(next(getattr(key, a) for a in ("key", "idx", "name") if hasattr(key, a)))


def _axis(axis: str | tuple[str, ...] | None) -> str:
    """One entry of a PartitionSpec as text."""
    return "+".join((axis,) if isinstance(axis, str) else axis or ("·",))
