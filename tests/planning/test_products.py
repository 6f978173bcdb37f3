"""What programs compute in matrix products: by the shapes of theirs, and as TPUs write them."""

import jax
import jax.numpy as jnp
import pytest

from xl_flax.planning.products import product_flops


def compiled(function, *shapes):
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*args).compile().as_text()


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("mk,kn->mn", ((6, 10), (10, 14)), 2 * 6 * 10 * 14),
        ("bhqk,bhlk->bhql", ((2, 3, 8, 16), (2, 3, 8, 16)), 2 * 2 * 3 * 8 * 8 * 16),
        ("bld,dchk->blchk", ((2, 8, 12), (12, 3, 2, 6)), 2 * 16 * 12 * 36),
    ],
)
def test_products_of_each_kind(equation, shapes, expected):
    text = compiled(lambda x, y: jnp.einsum(equation, x, y), *shapes)
    assert product_flops(text) == pytest.approx(expected)


def test_loops_count_as_often_as_they_turn_and_branches_as_the_heavier():
    def function(x, y):
        z = jax.lax.fori_loop(0, 5, lambda _, x: jnp.sin(x @ y), x)
        return jax.lax.cond(z[0, 0] > 0, lambda z: z @ y @ y, lambda z: z @ y, z)

    assert product_flops(compiled(function, (6, 10), (10, 10))) == (5 + 2) * 2 * 6 * 10 * 10


# As libtpu writes a product with a batch, one whose result has its axes in the window, and one
# inside a fusion that a loop of unknown turns runs.
TPU = """HloModule jit_f, is_scheduled=true

%fused (p0: bf16[8,512,768], p1: bf16[768,3,12,64]) -> bf16[8,512,3,12,64] {
  %p0 = bf16[8,512,768]{2,1,0:T(8,128)} parameter(0)
  %p1 = bf16[768,3,12,64]{3,2,1,0:T(8,128)} parameter(1)
  %x = bf16[1,8,512,768,1]{3,2,1,0,4:T(8,128)} bitcast(%p0)
  ROOT %dot = bf16[8,512,3,12,64]{4,3,2,1,0:T(8,128)} convolution(%x, %p1), window={size=3x1x12 pad=2_2x0_0x11_11 rhs_reversal=1x0x1}, dim_labels=1bf02_i02o1->1b02f
}

%body (arg: (bf16[8,512,768], bf16[768,3,12,64])) -> (bf16[8,512,768], bf16[768,3,12,64]) {
  %arg = (bf16[8,512,768]{2,1,0:T(8,128)}, bf16[768,3,12,64]{3,2,1,0:T(8,128)}) parameter(0)
  %x.1 = bf16[8,512,768]{2,1,0:T(8,128)} get-tuple-element(%arg), index=0
  %w = bf16[768,3,12,64]{3,2,1,0:T(8,128)} get-tuple-element(%arg), index=1
  %y = bf16[8,512,3,12,64]{4,3,2,1,0:T(8,128)} fusion(%x.1, %w), kind=kOutput, calls=%fused
  ROOT %out = (bf16[8,512,768]{2,1,0:T(8,128)}, bf16[768,3,12,64]{3,2,1,0:T(8,128)}) tuple(%x.1, %w)
}

%cond (arg.1: (bf16[8,512,768], bf16[768,3,12,64])) -> pred[] {
  %arg.1 = (bf16[8,512,768]{2,1,0:T(8,128)}, bf16[768,3,12,64]{3,2,1,0:T(8,128)}) parameter(0)
  ROOT %true = pred[]{:T(512)} constant(true)
}

ENTRY %main (a: bf16[8,512,768], b: bf16[768,3,12,64], q: bf16[96,512,64], k: bf16[96,512,64]) -> f32[96,512,512] {
  %a = bf16[8,512,768]{2,1,0:T(8,128)} parameter(0)
  %b = bf16[768,3,12,64]{3,2,1,0:T(8,128)} parameter(1)
  %q = bf16[96,512,64]{2,1,0:T(8,128)} parameter(2)
  %k = bf16[96,512,64]{2,1,0:T(8,128)} parameter(3)
  %both = (bf16[8,512,768]{2,1,0:T(8,128)}, bf16[768,3,12,64]{3,2,1,0:T(8,128)}) tuple(%a, %b)
  %loop = (bf16[8,512,768]{2,1,0:T(8,128)}, bf16[768,3,12,64]{3,2,1,0:T(8,128)}) while(%both), condition=%cond, body=%body
  ROOT %scores = f32[96,512,512]{2,1,0:T(8,128)} convolution(%q, %k), window={size=96 stride=95 lhs_dilate=96}, dim_labels=0bf_0oi->0bf
}
"""  # noqa: E501


def test_products_as_tpus_write_them():
    scores = 2 * 96 * 512 * 512 * 64
    projection = 2 * 8 * 512 * 768 * 3 * 12 * 64
    assert product_flops(TPU) == scores + projection
    assert product_flops(TPU, unknown=4) == scores + 4 * projection
