"""How long a step takes at best, from what its program computes, moves and sends."""

import dataclasses
from collections.abc import Sequence

from xl_flax.parallel.chips import Chip
from xl_flax.planning.program import Collective

# How often the data passes through a link: a ring adds up and then hands round, or does one of it.
_PASSES = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}


@dataclasses.dataclass(frozen=True)
class Step:
    """Lower bounds of a step's time, in seconds; what is not known is None."""

    arithmetic: float
    memory: float
    ici: float
    dcn: float | None

    @property
    def apart(self) -> float:
        """Nothing is sent while a device computes."""
        return max(self.arithmetic, self.memory) + self.ici + (self.dcn or 0.0)

    @property
    def together(self) -> float:
        """All that is sent is sent meanwhile."""
        return max(self.arithmetic, self.memory, self.ici, self.dcn or 0.0)


def estimate(
    chip: Chip,
    devices: int,
    slices: int,
    flops: float,
    traffic: float,
    sent: Sequence[Collective],
) -> Step:
    """A step's lower bounds.

    What all devices of a slice exchange goes over all links, what fewer exchange over those of one
    dimension of the torus. What goes beyond a slice is added up inside it first, so that each
    device sends its share of it.

    Args:
      chip: of the devices.
      devices: how many there are.
      slices: over which they are spread.
      flops: of all devices together.
      traffic: bytes between a device's memory and its cores.
      sent: the program's collectives.
    """
    per_slice = devices // slices
    ici = dcn = 0.0
    for collective in sent:
        size, group = collective.bytes * collective.turns, collective.group or devices
        passes = _PASSES.get(collective.kind, 1)
        across = max(1, group // per_slice) if group > per_slice else 1
        if slices > 1 and group == slices:  # the axis between slices alone
            across, group = slices, 1
        inside = min(group, per_slice)
        if inside > 1:
            links = 1.0 if inside == per_slice or not chip.torus else 1 / chip.torus
            ici += passes * size * (inside - 1) / inside / (chip.ici * links)
        if across > 1 and chip.dcn:
            dcn += passes * size / inside * (across - 1) / across / chip.dcn
    return Step(
        arithmetic=flops / devices / chip.flops,
        memory=traffic / chip.bandwidth,
        ici=ici,
        dcn=(dcn if chip.dcn else None) if slices > 1 else 0.0,
    )
