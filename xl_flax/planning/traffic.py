"""How much a compiled program reads from a device's memory and writes to it."""

from collections import defaultdict
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
            (body,) = called
            return _fusion(instruction, computations[body], own)
        return _single(instruction, own)

    return moved(entry)


def _bytes(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays if not array.on_chip)


def _single(instruction: Instruction, own: Computation) -> int:
    op = instruction.op
    written = _bytes(instruction.arrays)
    if op in _FREE or op.endswith(("-done", "-update")):
        return 0
    if op.endswith("-start"):  # its result holds the operands, too
        return written
    if op in _SLICES:
        return 2 * written
    operands = [own[name].arrays for name in instruction.operands if name in own]
    if op in _UPDATES:
        return 2 * _bytes(operands[_UPDATES[op]])
    return written + sum(map(_bytes, operands))


def _fusion(instruction: Instruction, body: Computation, own: Computation) -> int:
    users: dict[str, list[tuple[Instruction, int]]] = defaultdict(list)
    for user in body.values():
        for place, name in enumerate(user.operands):
            users[name].append((user, place))
    read = 0
    for parameter in body.values():
        if parameter.op == "parameter":
            whole = _bytes(own[instruction.operands[parameter.number]].arrays)
            read += min(whole, _used(parameter.name, users, whole)) if whole else 0
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


def _used(name: str, users: Mapping[str, list[tuple[Instruction, int]]], whole: int) -> int:
    """Bytes that a fusion reads of a parameter."""
    used = 0
    for user, place in users[name]:
        if user.op == "bitcast":
            used += _used(user.name, users, whole)
        elif user.op in _SLICES and place == 0:
            used += sum(array.bytes for array in user.arrays)
        elif user.op not in _UPDATES or place != 0:
            return whole
    return used
