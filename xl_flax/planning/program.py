"""What a compiled program sends between devices, and in which loops it does so."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from xl_flax.planning.hlo import Instruction, read_program, turns

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
)

# Written as counts, as lists of devices, or as axes of a mesh.
_GROUPS = re.compile(
    r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]*)\}|mesh\[([^\]]*)\] *\{([^}]*)\})"
)
# Between slices a TPU hands its share of an array to the host, which exchanges it.
_BETWEEN = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
# One that a TPU does in steps, meanwhile computing, stands in the program once for each step.
_CHAIN = re.compile(r'channel_id=(\d+).*?chain_id="(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """An instruction of the program by which devices exchange data."""

    kind: str  # of KINDS
    bytes: int  # of the whole arrays that a device puts in or gets out, the larger of the two
    group: int | None  # devices that take part together; None: all, or pairs
    loops: tuple[float | None, ...]  # turns of the loops around it, outermost first; None: unknown
    source: str  # the operation of JAX that it comes from
    between_slices: bool = False  # over the data-centre network; then of a device's share

    @property
    def turns(self) -> float:
        """How often a run of the program executes it; loops of unknown length count as one turn."""
        return math.prod(1 if n is None else n for n in self.loops)


def collectives(text: str, unknown: float | None = None) -> list[Collective]:
    """The collectives of a program.

    A computation that is called from several places counts once for each of them.

    Args:
      text: `jax.stages.Compiled.as_text()`.
      unknown: turns of loops whose number the program does not say.

    Raises:
      ValueError: the text is not a program.
    """
    computations, entry = read_program(text)
    chains: set[tuple[str, ...]] = set()

    def walk(name: str, loops: tuple[float | None, ...]) -> Iterator[Collective]:
        own = computations.get(name, {})
        for instruction in own.values():
            found = _collective(instruction, loops)
            if found and (chain := _CHAIN.search(instruction.attributes)):
                found = None if chain.groups() in chains else found
                chains.add(chain.groups())
            if found:
                # Of this name is what a TPU does at once: the sum, and a part of it for each.
                scattered = name.startswith("all-reduce-scatter")
                yield found._replace(kind="reduce-scatter") if scattered else found
            inside = loops
            if instruction.op == "while":
                count = turns(instruction, own, computations)
                inside = (*loops, unknown if count is None else count)
            for called, _ in instruction.called():
                yield from walk(called, inside)

    return list(walk(entry, ()))


def _collective(instruction: Instruction, loops: tuple[float | None, ...]) -> Collective | None:
    source = _OP_NAME.search(instruction.attributes)
    between = _BETWEEN.search(instruction.attributes)
    if between and instruction.op == "send":
        kind, size = between[1].lower().replace("_", "-"), instruction.arrays[0].bytes
        return Collective(kind, size, None, loops, source[1] if source else "", True)
    kind = instruction.op.removesuffix("-start")
    start = kind != instruction.op
    if kind not in KINDS:
        return None
    group = _group(instruction.attributes)
    arrays = instruction.arrays
    if start:  # beside the arrays a TPU has scalars of its own there
        arrays = [array for array in arrays if array.shape] or arrays
    sizes = [array.bytes for array in arrays]
    size = sum(sizes)
    if start and kind != "all-reduce":  # its result holds the operands, too
        size = max(sum(sizes[: len(sizes) // 2]), sum(sizes[len(sizes) // 2 :]))
    elif kind == "reduce-scatter":
        size *= group or 1
    return Collective(kind, size, group, loops, source[1] if source else "")


def _group(attributes: str) -> int | None:
    match = _GROUPS.search(attributes)
    if match is None:
        return None
    count, devices, mesh, axes = match.groups()
    if mesh is None:
        return int(count or len(devices.split(",")))
    sizes = dict(axis.split("=") for axis in mesh.split(","))
    return math.prod(int(sizes[axis]) for axis in axes.split(","))
