"""The fused linear cross-entropy: its values, gradients, memory, and on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xl_flax.ops.cross_entropy import chunk_size, linear_cross_entropy


def problem(batch, slots, width, vocab, dtype=jnp.float32, filled=0.7, seed=0):
    rng = np.random.default_rng(seed)
    features = jnp.asarray(rng.normal(size=(batch, slots, width)), dtype)
    table = jnp.asarray(rng.normal(size=(vocab, width)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=vocab), jnp.float32)
    targets = jnp.asarray(rng.integers(0, vocab, (batch, slots)), jnp.int32)
    weights = rng.random((batch, slots)) < filled
    weights = jnp.asarray(weights * rng.uniform(0.5, 2, weights.shape), jnp.float32)
    return features, table, bias, targets, weights


def reference(features, table, bias, targets, weights):
    logits = features.astype(jnp.float32) @ table.T + bias
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    used = weights != 0
    correct = (logits.argmax(-1) == targets) & used
    return (loss * weights).sum(), (jnp.where(used, loss, 0), correct.astype(jnp.float32))


def fused(*args, **settings):
    result = linear_cross_entropy(*args, **settings)
    return result.total, (result.loss_BxK, result.correct_BxK)


def gradient(function):
    return jax.jit(jax.value_and_grad(function, (0, 1, 2), has_aux=True))


def check(got, expected, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max()))


@settings(max_examples=8, deadline=None)
@given(
    shards=st.integers(1, 3),
    rows=st.integers(1, 3),
    slots=st.integers(1, 9),
    width=st.integers(1, 17),
    vocab=st.integers(2, 70),
    chunk=st.integers(1, 40),
    filled=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_equals_optax(shards, rows, slots, width, vocab, chunk, filled, seed):
    args = problem(shards * rows, slots, width, vocab, filled=filled, seed=seed)
    got = gradient(lambda *a: fused(*a, chunk=chunk, shards=shards))(*args)
    check(got, gradient(reference)(*args), 2e-5)


def test_bfloat16_features_keep_float32_sums():
    args = problem(4, 8, 32, 300, jnp.bfloat16)
    rounded = (args[0].astype(jnp.float32), args[1].astype(jnp.bfloat16).astype(jnp.float32))
    got = gradient(lambda *a: fused(*a, chunk=8))(*args)
    expected = gradient(reference)(*rounded, *args[2:])
    # The inputs are rounded; the loss is not: it agrees as float32 does.
    check(got[0], expected[0], 1e-5)
    check(got[1], expected[1], 2e-2)
    assert [g.dtype for g in got[1]] == [jnp.bfloat16, jnp.float32, jnp.float32]


def test_large_logits_are_finite():
    features, table, bias, targets, weights = problem(2, 4, 8, 50)
    args = features * 1e4, table, bias, targets, weights
    everything = gradient(lambda *a: fused(*a, chunk=8))(*args)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(everything))


def test_gradient_scales_with_its_cotangent():
    args = problem(2, 4, 8, 50)

    def scaled(scale, *args):
        return jax.grad(lambda *a: scale * fused(*a, chunk=3)[0], (0, 1, 2))(*args)

    one, three = (jax.jit(scaled)(scale, *args) for scale in (1.0, 3.0))
    check(three, jax.tree.map(lambda x: 3 * x, one), 1e-6)


@pytest.mark.parametrize("shape", [(4, 1, 2), (2, 2, 2)])
def test_same_on_eight_devices_without_gathering(shape):
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("data", "fsdp", "tensor"))
    rows, slots, width, vocab = 16, 8, 8, 512
    args = problem(rows, slots, width, vocab)
    specs = [(("data", "fsdp"),), ("tensor", "fsdp"), ("tensor",), *[(("data", "fsdp"),)] * 2]
    sharded = [
        jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
        for x, spec in zip(args, specs, strict=True)
    ]
    shards = shape[0] * shape[1]
    step = gradient(lambda *a: fused(*a, chunk=16, shards=shards))
    check(step(*sharded), gradient(reference)(*args), 2e-5)
    # No logits travel, [16, vocab] on each device of a group: only the table and its gradient.
    biggest = 0
    for line in step.lower(*sharded).compile().as_text().splitlines():
        if " all-gather(" in line or " all-reduce(" in line or " all-to-all(" in line:
            dims = line.split("= ")[1].split("[")[1].split("]")[0]
            biggest = max(biggest, int(np.prod([int(d) for d in dims.split(",") if d])))
    assert biggest <= vocab * width


def temporaries(slots, chunk, vocab=20_000):
    shapes = [(4, slots, 16), (vocab, 16), (vocab,)]
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    args += [jax.ShapeDtypeStruct((4, slots), d) for d in (jnp.int32, jnp.float32)]
    step = gradient(lambda *a: fused(*a, chunk=chunk))
    return step.lower(*args).compile().memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_slots():
    few, many = temporaries(16, 32), temporaries(256, 32)
    logits = 4 * 240 * 20_000 * 4  # bytes, of the additional slots
    assert many - few < logits / 50


def test_chunks_fill_the_budget_evenly():
    mib = 2**20
    assert (
        chunk_size(600, mib // 8, 128) == 600
    )  # 1,024 would fit: one chunk, no larger than needed
    assert chunk_size(600, mib, 400) == 304  # two
    assert chunk_size(600, mib, 128) == 120  # five
    assert chunk_size(600, mib, 1) == 8  # never less
