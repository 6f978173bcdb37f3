"""The text of a compiled program, `jax.stages.Compiled.as_text()`, as data."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_OPERAND = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(
    r"(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Array(NamedTuple):
    """An array of an instruction's result."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool  # in the TPU's vector memory, not in HBM

    @property
    def bytes(self) -> int:
        """Its size."""
        bits = 8 if self.dtype == "pred" else int(re.search(r"\d+", self.dtype)[0])
        return math.prod(self.shape) * bits // 8


class Instruction(NamedTuple):
    """An instruction of a computation."""

    name: str
    op: str
    arrays: tuple[Array, ...]  # of the result
    operands: tuple[str, ...]  # instructions of the same computation
    attributes: str  # what stands behind the operands, which begin it
    is_root: bool  # its result is the computation's

    @property
    def number(self) -> int:
        """Of a parameter, its place among the parameters; of a constant, its whole number."""
        return int(re.match(r"\((-?\d+)\)", self.attributes)[1])

    def called(self) -> Iterator[tuple[str, str]]:
        """The computations that it runs, each with the part it plays: "body", "branch", "calls"."""
        for part, name in _CALLED.findall(self.attributes):
            yield name, "branch" if part in ("true_computation", "false_computation") else part
        for names in _BRANCHES.findall(self.attributes):
            yield from ((name.strip().lstrip("%"), "branch") for name in names.split(","))


Computation = dict[str, Instruction]


def read_program(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a program by name, and the name of the first one to run.

    Raises:
      ValueError: the text is not a program.
    """
    computations: dict[str, Computation] = {}
    entry, own = "", {}
    for line in text.splitlines():
        if head := _HEAD.match(line):
            own = computations[head[1]] = {}
            entry = head[1] if line.startswith("ENTRY") else entry
        elif found := _INSTRUCTION.match(line):
            own[found[2]] = _instruction(found[2], found[3], bool(found[1]))
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of a compiled program")
    return computations, entry


def turns(loop: Instruction, own: Computation, computations: dict[str, Computation]) -> int | None:
    """How often a loop's body runs; None where the program does not say.

    Where it is not written at the loop, as in programs for TPUs, it follows from a condition
    i < constant, with an i that counts from a constant, or 0, by one.

    Args:
      loop: the instruction.
      own: the computation in which it stands.
      computations: of the program.
    """
    if trips := _TRIPS.search(loop.attributes):
        return int(trips[1])
    condition = computations[next(name for name, part in loop.called() if part == "condition")]
    root = next(i for i in condition.values() if i.is_root)
    if root.op != "compare" or "direction=LT" not in root.attributes:
        return None
    counter, limit = (condition.get(name) for name in root.operands)
    if counter.op != "get-tuple-element" or limit.op != "constant":
        return None
    place = int(re.search(r"index=(\d+)", counter.attributes)[1])
    start = own[loop.operands[0]]
    first = own.get(start.operands[place]) if start.op == "tuple" else None
    return limit.number - (first.number if first is not None and first.op == "constant" else 0)


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    result, text = text[:end], text[end + 1 :]
    begin = text.index("(")
    operands = _OPERAND.findall(text[begin : _closing(text, begin)])
    arrays = tuple(
        Array(dtype, tuple(int(n) for n in shape.split(",") if n), "S(1)" in layout)
        for dtype, shape, layout in _ARRAY.findall(result)
    )
    return Instruction(name, text[:begin], arrays, tuple(operands), text[begin:], is_root)


def _closing(text: str, begin: int) -> int:
    """Where the bracket that opens at `begin` closes."""
    depth = 0
    for place in range(begin, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"a bracket is left open in {text[begin : begin + 80]!r}")
