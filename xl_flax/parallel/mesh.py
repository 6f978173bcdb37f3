"""The device mesh: three axes, `data`, `fsdp` and `tensor`, inside a slice and across slices.

Where slices divide the data, a fourth one, `slice`, comes before them.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Annotated, Literal

import gin
import jax
from annotated_types import Interval, Len, Predicate, doc
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from xl_flax.errors import UserError
from xl_flax.parallel.rules import Partitioning, Rules
from xl_flax.settings import LIMIT, Settings

AXES = ("data", "fsdp", "tensor")
SLICE = "slice"

Sizes = Annotated[
    Sequence[Annotated[int, Interval(ge=-1, lt=LIMIT), Predicate(bool)]],
    Len(len(AXES), len(AXES)),
    Predicate(lambda sizes: sizes.count(-1) <= 1),
    doc(f"three sizes ({', '.join(AXES)}), each at least 1, at most one of them -1"),
]

DEFAULT_RULES: Rules = (
    ("batch", ("data", "fsdp")),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", "fsdp"),
)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class MeshConfig(Settings):
    """Sizes of the mesh axes `(data, fsdp, tensor)`; one −1 per group takes what is left."""

    ici: Sizes = (-1, 1, 1)  # devices within a slice, joined by the fast interconnect
    dcn: Sizes = (1, 1, 1)  # slices, joined by the data-centre network
    # Logical axis → mesh axis or axes.
    rules: Annotated[Rules, doc("pairs as in [('batch', ('data', 'fsdp')), ('mlp', 'tensor')]")] = (
        DEFAULT_RULES
    )

    optimizer: Sequence[Literal["data", "fsdp", "tensor"]] = ()
    """Axes that divide the optimizer's state, and the gradient that it reads, beside those that
    divide the parameters; ('data',) is stage 1 of ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054):
    less memory, and hardly more traffic, but for Muon, which multiplies whole matrices."""

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.optimizer)) < len(self.optimizer):
            self.fail(f"optimizer = {tuple(self.optimizer)} names an axis twice")
        for name, axes in self.rules:
            for axis in (axes,) if isinstance(axes, str) else axes or ():
                if axis not in AXES:
                    self.fail(
                        f"rules maps {name!r} to {axis!r}, which is no mesh axis; the axes are "
                        + ", ".join(AXES)
                    )


def make_partitioning(
    config: MeshConfig, devices: Sequence[jax.Device] | None = None
) -> Partitioning:
    """Lays the devices (all of them by default) out as `config` says.

    The data axis between slices is one by itself: rows are divided over it as over `data`, but what
    else is divided over `data`, the optimizer's state, is so in each slice, as what goes between
    slices takes long.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or these are not those that
        JAX_PLATFORMS names first.
    """
    devices = list(_found() if devices is None else devices)
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    dcn = _fill(config.dcn, slices if slices > 1 else math.prod(_known(config.dcn)))
    ici = _fill(config.ici, len(devices) // math.prod(dcn))
    if math.prod(ici) * math.prod(dcn) != len(devices):
        raise UserError(
            f"the mesh ici={tuple(config.ici)} × dcn={tuple(config.dcn)} needs "
            f"{math.prod(ici) * math.prod(dcn)} devices, but there are {len(devices)} "
            f"({devices[0].device_kind}); set MeshConfig.ici so that data × fsdp × tensor fits, "
            "or one of them to -1"
        )
    if slices > 1:
        if math.prod(dcn) != slices:
            raise UserError(
                f"the devices are in {slices} slices, but MeshConfig.dcn={tuple(config.dcn)}; "
                "--gin_file=gin/meshes/multislice.gin divides the data axis among them"
            )
        grid = mesh_utils.create_hybrid_device_mesh(ici, dcn, devices)
    else:
        shape = [i * d for i, d in zip(ici, dcn, strict=True)]
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    axes, rules = AXES, config.rules
    if dcn[0] > 1:
        axes, grid = (SLICE, *AXES), grid.reshape(dcn[0], -1, *grid.shape[1:])
        rules = tuple((name, _over_slices(own)) for name, own in rules)
    mesh = Mesh(grid, axes, axis_types=(AxisType.Auto,) * len(axes))
    return Partitioning(mesh, rules, tuple(config.optimizer))


def _found() -> list[jax.Device]:
    """All devices. Where no driver finds a GPU, JAX goes on without a word, on the processors."""
    devices, names = jax.devices(), os.environ.get("JAX_PLATFORMS", "")
    wanted = names.partition(",")[0]
    if wanted not in ("", "cpu") and devices[0].platform == "cpu":
        raise UserError(
            f"JAX_PLATFORMS={names}, but no {wanted} is found here: is there one, "
            "and a driver that works? JAX_PLATFORMS=cpu computes without"
        )
    return devices


def _over_slices(axes: str | Sequence[str] | None) -> tuple[str, ...]:
    """Mesh axes of a rule, with that between slices before `data`."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return tuple(own for name in names for own in ((SLICE, name) if name == "data" else (name,)))


def check_batch(name: str, batch_size: int, accumulate: int, partitioning: Partitioning) -> None:
    """Raises UserError unless every device gets an equal share of every microbatch."""
    shards = partitioning.batch_shards
    if batch_size % (shards * accumulate):
        raise UserError(
            f"objective {name!r}: batch_size={batch_size} cannot be divided into {accumulate} "
            f"microbatch(es) over {shards} device(s) of the data and fsdp axes; use a multiple "
            f"of {shards * accumulate}"
        )


def _known(sizes: Sequence[int]) -> list[int]:
    return [s for s in sizes if s != -1]


def _fill(sizes: Sequence[int], total: int) -> list[int]:
    """Replaces one −1 by what is left of `total`."""
    known = math.prod(_known(sizes))
    return [max(total // known, 1) if s == -1 else s for s in sizes]
