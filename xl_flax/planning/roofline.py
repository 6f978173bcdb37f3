"""How long a step takes at best, from what its program computes, moves and sends."""

import dataclasses
import math
from collections.abc import Sequence

from xl_flax.parallel.chips import Chip
from xl_flax.planning.program import Collective

# How often the data passes through a link: a ring adds up and then hands round, or does one of it.
_PASSES = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}


@dataclasses.dataclass(frozen=True)
class Step:
    """Lower bounds of a step's time, in seconds; what is not known is None."""

    arithmetic: float
    memory: float | None
    ici: float
    dcn: float | None

    @property
    def apart(self) -> float:
        """Nothing is sent while a device computes."""
        return max(self.arithmetic, self.memory or 0.0) + self.ici + (self.dcn or 0.0)

    @property
    def together(self) -> float:
        """All that is sent is sent meanwhile."""
        return max(self.arithmetic, self.memory or 0.0, self.ici, self.dcn or 0.0)


def estimate(
    chip: Chip,
    devices: int,
    slices: int,
    flops: float,
    traffic: float | None,
    sent: Sequence[Collective],
) -> Step:
    """A step's lower bounds.

    What all devices of a slice exchange goes over all links, what fewer exchange over those of one
    dimension of the torus.

    Args:
      chip: of the devices.
      devices: how many there are.
      slices: over which they are spread.
      flops: of all devices together.
      traffic: bytes between a device's memory and its cores; None: not known.
      sent: the program's collectives.
    """
    per_slice = devices // slices
    ici = dcn = 0.0
    for collective in sent:
        size = collective.bytes * collective.turns * _PASSES.get(collective.kind, 1)
        if collective.between_slices:
            dcn += size * (slices - 1) / slices / (chip.dcn or math.inf)
            continue
        if collective.kind == "collective-permute":  # to one neighbour, over one link
            ici += size / (chip.ici / max(1, 2 * chip.torus))
            continue
        group = min(collective.group or per_slice, per_slice)
        links = 1.0 if group == per_slice or not chip.torus else 1 / chip.torus
        ici += size * (group - 1) / group / (chip.ici * links)
    return Step(
        arithmetic=flops / devices / chip.flops,
        memory=None if traffic is None else traffic / chip.bandwidth,
        ici=ici,
        dcn=(dcn if chip.dcn else None) if slices > 1 else 0.0,
    )
