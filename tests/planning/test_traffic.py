"""What programs move between memory and cores, by hand and against what XLA counts."""

import jax
import jax.numpy as jnp
import pytest

from xl_flax.planning.hlo import Array, read_program, turns
from xl_flax.planning.traffic import memory_traffic

# A program as a TPU's compiler writes it: layouts with tiles, what is on the chip as S(1).
TEXT = """HloModule jit_f, is_scheduled=true

%fused (p0: f32[10,64], p1: s32[]) -> f32[1,64] {
  %p0 = f32[10,64]{1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %row = f32[1,64]{1,0:T(1,128)} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,64}
  ROOT %sine = f32[1,64]{1,0:T(1,128)} sine(%row)
}

%written (p0.1: f32[10,64], p1.1: f32[1,64], p2.1: s32[]) -> f32[10,64] {
  %p0.1 = f32[10,64]{1,0:T(8,128)} parameter(0)
  %p1.1 = f32[1,64]{1,0:T(1,128)} parameter(1)
  %p2.1 = s32[]{:T(128)} parameter(2)
  %zero.1 = s32[]{:T(128)} constant(0)
  ROOT %update = f32[10,64]{1,0:T(8,128)} dynamic-update-slice(%p0.1, %p1.1, %p2.1, %zero.1)
}

%body (arg: (s32[], f32[10,64])) -> (s32[], f32[10,64]) {
  %arg = (s32[]{:T(128)}, /*index=1*/f32[10,64]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %x = f32[10,64]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %row.1 = f32[1,64]{1,0:T(1,128)S(1)} fusion(%x, %i), kind=kLoop, calls=%fused
  %new = f32[10,64]{1,0:T(8,128)} fusion(%x, %row.1, %i), kind=kLoop, calls=%written
  ROOT %out = (s32[]{:T(128)}, f32[10,64]{1,0:T(8,128)}) tuple(%i, %new)
}

%cond (arg.1: (s32[], f32[10,64])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, f32[10,64]{1,0:T(8,128)}) parameter(0)
  ROOT %true = pred[]{:T(512)} constant(true)
}

ENTRY %main (a: f32[10,64], i: s32[]) -> f32[10,64] {
  %a = f32[10,64]{1,0:T(8,128)} parameter(0)
  %i.1 = s32[]{:T(128)} parameter(1)
  %both = (s32[]{:T(128)}, f32[10,64]{1,0:T(8,128)}) tuple(%i.1, %a)
  %loop = (s32[]{:T(128)}, f32[10,64]{1,0:T(8,128)}) while(%both), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  %b = f32[10,64]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  %c = (f32[10,64]{1,0:T(8,128)S(1)}, f32[10,64]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%b)
  %d = f32[10,64]{1,0:T(8,128)S(1)} copy-done(%c)
  ROOT %e = f32[10,64]{1,0:T(8,128)} add(%d, %b)
}
"""  # noqa: E501
ROW, WHOLE, INDEX = 64 * 4, 640 * 4, 4


def test_a_program_by_hand():
    sliced = ROW + INDEX  # the row stays on the chip
    written = ROW + INDEX  # in place
    # The copy reads the array (and has a scalar); the sum reads one operand and writes.
    assert memory_traffic(TEXT) == 10 * (sliced + written) + (WHOLE + INDEX) + 2 * WHOLE


def test_a_slice_moves_what_is_cut():
    """And not what it is cut from, which its result repeats."""
    text = """HloModule jit_f

ENTRY %main (a: f32[10,64]) -> f32[2,64] {
  %a = f32[10,64]{1,0:T(8,128)} parameter(0)
  %s = ((f32[10,64]{1,0:T(8,128)}), f32[2,64]{1,0:T(2,128)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:2], [0:64]}
  %t = f32[2,64]{1,0:T(2,128)S(1)} slice-done(%s)
  %u = ((), f32[2,64]{1,0:T(2,128)}, u32[]{:S(2)}) async-start(), calls=%made
  ROOT %v = f32[2,64]{1,0:T(2,128)} async-done(%u)
}
"""  # noqa: E501
    assert memory_traffic(text) == 2 * ROW + 2 * 2 * ROW


def test_a_program_is_read():
    computations, entry = read_program(TEXT)
    assert entry == "main" and list(computations) == ["fused", "written", "body", "cond", "main"]
    loop = computations["main"]["loop"]
    assert loop.op == "while" and loop.operands == ("both",)
    assert turns(loop, computations["main"], computations) == 10
    assert dict(loop.called()) == {"cond": "condition", "body": "body"}
    assert computations["body"]["row.1"].arrays == (Array("f32", (1, 64), True),)
    assert computations["body"]["arg"].arrays[1].bytes == WHOLE
    assert [i.name for i in computations["body"].values() if i.is_root] == ["out"]


def test_turns_follow_from_the_condition():
    """As in a program for a TPU, which does not write them at the loop."""
    text = TEXT.replace(', backend_config={"known_trip_count":{"n":"10"}}', "")
    text = text.replace("pred[]{:T(512)} constant(true)", "pred[] compare(%j, %n), direction=LT")
    held = (
        "  %n = s32[] constant(12)\n  %j = s32[] get-tuple-element(%arg.1), index=0\n  ROOT %true"
    )
    text = text.replace("  ROOT %true", held)

    def count(text):
        computations, _ = read_program(text)
        return turns(computations["main"]["loop"], computations["main"], computations)

    assert count(text) == 12  # from what is given, taken for 0
    begin = text.replace("%i.1 = s32[]{:T(128)} parameter(1)", "%i.1 = s32[] constant(1)")
    assert count(begin) == 11
    unknown = text.replace("%n = s32[] constant(12)", "%n = s32[] negate(%j)")
    assert count(unknown) is None
    turn = memory_traffic(unknown, 3) - memory_traffic(unknown, 2)
    assert turn == pytest.approx(2 * (ROW + INDEX), abs=20)  # and the condition's numbers


def test_a_loop_counts_as_its_turns_do():
    def looped(x):
        return jax.lax.fori_loop(0, 6, lambda _, x: jnp.sort(x * 2.0), x)

    def unrolled(x):
        for _ in range(6):
            x = jnp.sort(x * 2.0)
        return x

    shape = jax.ShapeDtypeStruct((4096,), jnp.float32)
    counted = [
        memory_traffic(jax.jit(f).lower(shape).compile().as_text()) for f in (looped, unrolled)
    ]
    assert counted[0] == pytest.approx(counted[1], rel=0.35)  # a loop copies its state once
    assert counted[1] >= 6 * 2 * 4096 * 4


def test_of_a_conditional_the_heavier_branch_counts():
    def function(x):
        return jax.lax.cond(x[0] > 0, lambda x: jnp.sort(jnp.sort(x)[::-1]), lambda x: x, x)

    shape = jax.ShapeDtypeStruct((4096,), jnp.float32)
    moved = memory_traffic(jax.jit(function).lower(shape).compile().as_text())
    assert 4 * 4096 * 4 <= moved <= 10 * 4096 * 4
