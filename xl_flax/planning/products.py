"""How much a compiled program computes in matrix products."""

import math
import re

from xl_flax.planning.hlo import Computation, Instruction, read_program, turns

_BATCH = re.compile(r"lhs_batch_dims=\{([\d,]+)\}")
_WINDOW = re.compile(r"window=\{size=([\dx]+)([^}]*)\}")
_DILATED = re.compile(r"lhs_dilate=([\dx]+)")


def product_flops(text: str, unknown: float = 1) -> float:
    """FLOPs of one run of a program in its matrix products, those inside kernels not among them.

    A loop counts as often as it turns, a conditional as its heaviest branch. XLA's own
    `cost_analysis` counts a loop's body once, and what is computed element by element, too.

    Args:
      text: `jax.stages.Compiled.as_text()`.
      unknown: turns of loops whose number the program does not say.

    Raises:
      ValueError: the text is not a program.
    """
    computations, entry = read_program(text)

    def computed(name: str) -> float:
        own = computations[name]
        return sum(_computed(instruction, own) for instruction in own.values())

    def _computed(instruction: Instruction, own: Computation) -> float:
        if instruction.op in ("convolution", "dot"):
            return _product(instruction, own)
        inside = [computed(name) for name, _ in instruction.called() if name in computations]
        if not inside:
            return 0.0
        if instruction.op == "while":
            count = turns(instruction, own, computations)
            return (unknown if count is None else count) * sum(inside)
        return max(inside) if instruction.op == "conditional" else sum(inside)

    return computed(entry)


def _product(instruction: Instruction, own: Computation) -> float:
    """2 · B · M · N · K, of arrays with B · M · K, B · N · K and B · M · N numbers.

    A TPU's compiler writes products as convolutions, whose axes it folds into windows as suits it;
    a batch's axes are windows that the first operand is spread for.
    """
    shapes = [own[name].arrays[0].shape for name in instruction.operands]
    sizes = math.prod(map(math.prod, [*shapes, instruction.arrays[0].shape]))
    batch = 1
    if dims := _BATCH.search(instruction.attributes):
        batch = math.prod(shapes[0][int(dim)] for dim in dims[1].split(","))
    elif (window := _WINDOW.search(instruction.attributes)) and (
        dilated := _DILATED.search(window[2])
    ):
        pairs = zip(window[1].split("x"), dilated[1].split("x"), strict=True)
        batch = math.prod(int(size) for size, dilation in pairs if int(dilation) > 1)
    return 2.0 * math.sqrt(sizes / batch)
