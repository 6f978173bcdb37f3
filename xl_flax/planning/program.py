"""What a compiled program sends between devices, and in which loops it does so."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
)

_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (.*)$")
_COLLECTIVE = re.compile(rf"^(.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_LOOP = re.compile(r" while\(")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Written as counts, as lists of devices, or as axes of a mesh.
_GROUPS = re.compile(
    r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]*)\}|mesh\[([^\]]*)\] *\{([^}]*)\})"
)
_OP_NAME = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """An instruction of the program by which devices exchange data."""

    kind: str  # of KINDS
    bytes: int  # of the whole arrays that a device puts in or gets out, the larger of the two
    group: int | None  # devices that take part together; None: all, or pairs
    loops: tuple[int | None, ...]  # turns of the loops around it, outermost first; None: unknown
    source: str  # the operation of JAX that it comes from

    @property
    def turns(self) -> int:
        """How often a run of the program executes it; loops of unknown length count as one turn."""
        return math.prod(n or 1 for n in self.loops)


def collectives(text: str) -> list[Collective]:
    """The collectives of a program.

    A computation that is called from several places counts once for each of them.

    Args:
      text: `jax.stages.Compiled.as_text()`.

    Raises:
      ValueError: the text is not a program.
    """
    computations, entry = _computations(text)
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of a compiled program")

    def walk(name: str, loops: tuple[int | None, ...]) -> Iterator[Collective]:
        for line in computations.get(name, ()):
            if found := _collective(line, loops):
                # Of this name is what a TPU does at once: the sum, and a part of it for each.
                scattered = name.startswith("all-reduce-scatter")
                yield found._replace(kind="reduce-scatter") if scattered else found
            inside = loops
            if _LOOP.search(line):
                trips = _TRIPS.search(line)
                inside = (*loops, int(trips[1]) if trips else None)
            for called in _called(line):
                yield from walk(called, inside)

    return list(walk(entry, ()))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The instructions of each computation by its name, and the name of the first one to run."""
    found: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            lines = found[head[1]] = []
            entry = head[1] if line.startswith("ENTRY") else entry
        elif instruction := _INSTRUCTION.match(line):
            lines.append(instruction[1])
    return found, entry


def _called(line: str) -> Iterator[str]:
    yield from _CALLED.findall(line)
    for names in _BRANCHES.findall(line):
        yield from (name.strip().lstrip("%") for name in names.split(","))


def _collective(line: str, loops: tuple[int | None, ...]) -> Collective | None:
    match = _COLLECTIVE.match(line)
    if match is None:
        return None
    result, kind, start = match.groups()
    group, source = _group(line), _OP_NAME.search(line)
    arrays = _ARRAY.findall(result)
    if start:  # beside the arrays a TPU has scalars of its own there
        arrays = [(dtype, shape) for dtype, shape in arrays if shape] or arrays
    sizes = [_bytes(*array) for array in arrays]
    size = sum(sizes)
    if start and kind != "all-reduce":  # its result holds the operands, too
        size = max(sum(sizes[: len(sizes) // 2]), sum(sizes[len(sizes) // 2 :]))
    elif kind == "reduce-scatter":
        size *= group or 1
    return Collective(kind, size, group, loops, source[1] if source else "")


def _group(line: str) -> int | None:
    match = _GROUPS.search(line)
    if match is None:
        return None
    count, devices, mesh, axes = match.groups()
    if mesh is None:
        return int(count or len(devices.split(",")))
    sizes = dict(axis.split("=") for axis in mesh.split(","))
    return math.prod(int(sizes[axis]) for axis in axes.split(","))


def _bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
    return math.prod(int(n) for n in shape.split(",") if n) * bits // 8
