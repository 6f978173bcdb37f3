"""A module's parameters as a plain pytree: created sharded, laid out by logical axis names."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from xl_flax import text_table
from xl_flax.parallel.rules import Partitioning

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
    shardings = abstract(build).shardings(partitioning)
    return jax.jit(lambda: nnx.to_pure_dict(nnx.split(build())[1]), out_shardings=shardings)()


def flat(tree: dict[str, Any], is_leaf: Callable[[Any], bool] | None = None) -> Iterator:
    """Pairs of a leaf's path, as in `encoder/layers/mlp/kernel`, and the leaf."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]:
        yield "/".join(map(_key, path)), leaf


def table(shapes: dict[str, Any], axes: dict[str, Any], partitioning: Partitioning) -> str:
    """All parameters with shape, dtype, logical axes and sharding, and their totals, as text."""
    rows = [("parameter", "shape", "dtype", "axes", "sharding")]
    total = per_device = 0
    names = dict(flat(axes, is_leaf=lambda x: isinstance(x, tuple)))
    for path, leaf in flat(shapes):
        sharding = partitioning.sharding(names[path], leaf.shape)
        total += leaf.size
        per_device += int(np.prod(sharding.shard_shape(leaf.shape)))
        rows.append(
            (
                path,
                "×".join(map(str, leaf.shape)) or "scalar",
                str(np.dtype(leaf.dtype)),
                ", ".join(str(a or "·") for a in names[path]),
                ", ".join(map(_axis, sharding.spec)),
            )
        )
    mesh = " × ".join(f"{name} {size}" for name, size in partitioning.mesh.shape.items())
    total_line = f"{total:,} parameters; {per_device:,} on each device; mesh {mesh}"
    return f"{text_table.table(rows, left=range(len(rows[0])))}\n{total_line}"


def _key(key: Any) -> str:
    """A step of a path: a dict's key, a sequence's index or an attribute's name."""
    return str(next(getattr(key, a) for a in ("key", "idx", "name") if hasattr(key, a)))


def _axis(axis: str | tuple[str, ...] | None) -> str:
    """One entry of a PartitionSpec as text."""
    return "+".join((axis,) if isinstance(axis, str) else axis or ("·",))
