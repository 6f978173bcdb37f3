"""How much a compiled program reads from a device's memory and writes to it."""

import math
from collections.abc import Iterable, Mapping

from xl_flax.planning.hlo import Array, Computation, Instruction, read_program, turns

# They move nothing by themselves: names, views, and the ends of what was counted at its start.
_FREE = {
    *("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("add-dependency", "optimization-barrier", "partition-id", "replica-id"),
}
_SLICES = {"slice", "dynamic-slice", "gather"}
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # in place; which operand is written


def memory_traffic(text: str, unknown: float = 1) -> float:
    """Bytes that one run of a program moves between a device's memory and its cores.

    Each instruction outside a fusion reads its operands and writes its result, a fusion only those
    parts of its operands that it uses; what a TPU keeps on the chip moves nothing. A loop counts as
    often as it turns, a conditional as its heaviest branch. XLA's own `cost_analysis` counts a
    loop's body once, and what is on the chip like the rest.

    Args:
      text: `jax.stages.Compiled.as_text()`.
      unknown: turns of loops whose number the program does not say.

    Raises:
      ValueError: the text is not a program.
    """
    computations, entry = read_program(text)

    def moved(name: str) -> float:
        own = computations[name]
        return sum(_moved(instruction, own) for instruction in own.values())

    def _moved(instruction: Instruction, own: Computation) -> float:
        op, called = instruction.op, dict(instruction.called())
        if op == "while":
            count = turns(instruction, own, computations)
            return (unknown if count is None else count) * sum(map(moved, called))
        if op == "conditional":
            return max(map(moved, called))
        if op == "call":
            return sum(map(moved, called))
        if op == "fusion":
            return _fusion(instruction, own, computations)
        return _single(instruction, own)

    return moved(entry)


def _bytes(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays if not array.on_chip)


def _single(instruction: Instruction, own: Computation) -> int:
    op = instruction.op
    written = _bytes(instruction.arrays)
    if op in _FREE or op.endswith(("-done", "-update")):
        return 0
    operands = [own[name].arrays for name in instruction.operands if name in own]
    if op in ("slice-start", "dynamic-slice-start", "async-start"):  # operands, then the slice
        taken = [array for arrays in operands for array in arrays]
        read = not (taken and taken[0].on_chip)
        parts = [array for array in instruction.arrays[len(taken) :] if array.shape]
        return sum(part.bytes * (read + (not part.on_chip)) for part in parts)
    if op.endswith("-start"):  # the result of most holds the operands, too
        return 2 * written if op == "all-reduce-start" else written
    if op in _SLICES:
        return 2 * written
    if op in _UPDATES:
        return 2 * _bytes(operands[_UPDATES[op]])
    return written + sum(map(_bytes, operands))


def _fusion(
    instruction: Instruction, own: Computation, computations: Mapping[str, Computation]
) -> int:
    (name,) = (name for name, _ in instruction.called())
    body = computations[name]
    arrays = [own[operand].arrays for operand in instruction.operands]
    used = [_used(body, place, computations) for place in range(len(arrays))]
    read = sum(min(_bytes(a), u) for a, u in zip(arrays, used, strict=True))
    root = next(i for i in body.values() if i.is_root)
    parts = [body[name] for name in root.operands] if root.op == "tuple" else [root]
    written = 0
    for part, array in zip(parts, instruction.arrays, strict=False):
        while part.op == "bitcast":
            part = body[part.operands[0]]
        size = array.bytes
        if part.op in _UPDATES and body[part.operands[0]].op != "broadcast":
            size = sum(a.bytes for a in body[part.operands[_UPDATES[part.op]]].arrays)
        written += 0 if array.on_chip else size
    return read + written


def _used(body: Computation, place: int, computations: Mapping[str, Computation]) -> float:
    """Bytes that a fusion reads of its parameter at this place; infinite: all of it."""
    parameter = next(i for i in body.values() if i.op == "parameter" and i.number == place)
    return _used_of(parameter.name, body, computations)


def _used_of(name: str, body: Computation, computations: Mapping[str, Computation]) -> float:
    used = 0.0
    for user in body.values():
        for place, operand in enumerate(user.operands):
            if operand != name:
                continue
            if user.op == "bitcast":
                used += _used_of(user.name, body, computations)
            elif user.op == "fusion":  # a fusion may hold others
                used += sum(_used(computations[n], place, computations) for n, _ in user.called())
            elif user.op in _SLICES and place == 0:
                used += sum(array.bytes for array in user.arrays)
            elif user.op not in _UPDATES or place != 0:
                return math.inf
    return used
