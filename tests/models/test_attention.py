"""Kernels are the plain attention: that of TPUs interpreted on CPU, cuDNN's on a GPU."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xl_flax.errors import UserError
from xl_flax.models import attention as attention_lib
from xl_flax.models import fused_attention
from xl_flax.models.attention import attention
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.parallel.mesh import DEFAULT_RULES, MeshConfig, make_partitioning

LENGTH = 256
KEYS = jax.random.split(jax.random.key(0), 4)
MODERN = EncoderConfig(
    vocab_size=61, num_layers=3, width=64, num_heads=4, num_kv_heads=2, mlp_width=48,
    positions="rotary", pre_norm=True, first_attention_norm=False, final_norm=True, bias=False,
    norm_bias=False, gated_mlp=True, local_window=32, global_every=2, max_positions=LENGTH,
)  # fmt: skip


@pytest.fixture
def on_tpu(monkeypatch):
    """Programs are made as for a TPU, with kernels that this CPU interprets."""
    splash = fused_attention._kernel()
    make = functools.partial(splash.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash, "make_splash_mha", make)
    monkeypatch.setattr(attention_lib, "platform", lambda: "tpu")


def operands(dtype="float32", rows=2, heads=2, length=LENGTH, size=16):
    """(q, k, v), segments, and the gradient of the result."""
    rng = np.random.default_rng(0)
    shape = rows, heads, length, size
    q, k, v, gradient = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4))
    ends = np.sort(rng.integers(1, length, (rows, 3)), axis=1)
    index = np.arange(length)[None, :, None]
    segments = ((index >= ends[:, None]).sum(-1) + 1) % 4  # 1, 2, 3, and padding behind them
    return (q, k, v), jnp.asarray(segments), gradient


def results(inputs, segments, gradient, window=None, **options):
    """The result with the gradients of q, k and v."""

    @jax.jit
    def run(inputs, segments, gradient):
        def attend(q, k, v):
            return attention(q, k, v, segment_ids=segments, window=window, **options)

        out, pull = jax.vjp(attend, *inputs)
        return out, *pull(gradient)

    return run(inputs, segments, gradient)


def kernels(function, *args):
    """How many kernels are in a traced program."""
    return str(jax.make_jaxpr(function)(*args)).count("pallas_call[")


@pytest.mark.parametrize(
    ("segmented", "window", "options", "tolerance"),
    [
        (True, None, {}, 1e-5),
        (False, None, {"size": 24}, 1e-5),
        (True, 64, {"length": 384}, 1e-5),  # three blocks: gradients of queries by themselves
        # A step of bfloat16 is 2^-8 of a value; these are up to 4.
        (True, 64, {"dtype": "bfloat16"}, 0.02),
    ],
)
def test_the_kernel_is_the_plain_attention(on_tpu, segmented, window, options, tolerance):
    inputs, segments, gradient = operands(**options)
    segments = segments if segmented else None
    plain, fused = (
        results(inputs, segments, gradient, window, kernel=kernel) for kernel in ("plain", "auto")
    )
    for expected, got in zip(plain, fused, strict=True):
        assert got.dtype == expected.dtype
        expected, got = (np.asarray(x, np.float32) for x in (expected, got))
        np.testing.assert_allclose(got, expected, atol=tolerance)
    assert kernels(lambda: attention(*inputs, segment_ids=segments, window=window)) == 1


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_an_encoder_is_the_same_with_it(on_tpu, remat):
    """Rotary positions, shared keys, and windows that a flag chooses inside a scan."""
    build = lambda config: nnx.eval_shape(lambda: build_model(config, {}, nnx.Rngs(0)))  # noqa: E731
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.1, 0.2, leaf.shape), jnp.float32),
        nnx.state(build(MODERN)),
    )
    _, segments, gradient = operands(heads=1, size=MODERN.width)
    tokens = np.arange(segments.size).reshape(segments.shape) % 61

    def run(params, kernel):
        config = dataclasses.replace(MODERN, attention=kernel, remat=remat)
        model = nnx.merge(nnx.graphdef(build(config)), params)
        out = model.encoder(tokens, segment_ids=segments)
        return jnp.sum(out * gradient[:, 0])

    plain, fused = (
        jax.jit(jax.value_and_grad(run), static_argnums=1)(params, kernel)
        for kernel in ("plain", "auto")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=2e-3, rtol=1e-4), plain, fused)
    assert kernels(lambda params: run(params, "auto"), params) == 2  # of global, of local layers


@pytest.mark.parametrize(
    ("ici", "rows", "heads", "rules"),
    [
        ((2, 2, 2), 4, 2, DEFAULT_RULES),
        ((1, 4, 2), 4, 3, DEFAULT_RULES),
        ((8, 1, 1), 3, 2, DEFAULT_RULES),
        ((1, 4, 2), 4, 1, (("batch", "fsdp"), ("length", "tensor"))),
    ],
)
def test_each_device_attends_in_its_rows_and_heads(on_tpu, ici, rows, heads, rules):
    """Or in all of them, if the mesh does not divide their number; a row is always whole."""
    partitioning = make_partitioning(MeshConfig(ici=ici, rules=rules))
    inputs, segments, gradient = operands(rows=rows, heads=heads)

    def lay_out(x):
        names = ("batch", "heads", None, None) if x.ndim == 4 else ("batch", None)
        return jax.device_put(x, partitioning.sharding(names, x.shape))

    expected = results(inputs, segments, gradient, 64)
    with partitioning.activate():
        got = results(*jax.tree.map(lay_out, (inputs, segments, gradient)), 64)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        if rows % 4 == 0:
            divided = rows // 4, heads // 2 if heads % 2 == 0 else heads
            assert a.sharding.shard_shape(a.shape)[:2] == divided


def test_dropout_is_refused_with_two_remedies(on_tpu):
    inputs, segments, _ = operands(rows=4)
    attend = functools.partial(attention, *inputs, segment_ids=segments, dropout_rate=0.1)
    message = r"EncoderConfig\.attention_dropout = 0\.1.*Set attention_dropout = 0, or EncoderConf"
    with pytest.raises(UserError, match=message):
        attend(dropout_keys=KEYS)
    assert kernels(attend) == 1  # as in evaluation
    assert kernels(lambda: attend(dropout_keys=KEYS, kernel="plain")) == 0


def test_rows_of_other_lengths_take_the_plain_attention(on_tpu):
    inputs, segments, _ = operands(rows=4, length=200)
    attend = functools.partial(attention, *inputs, segment_ids=segments)
    assert kernels(attend) == 0
    assert attend(dropout_keys=KEYS, dropout_rate=0.1).shape == inputs[0].shape


def test_elsewhere_there_is_no_kernel():
    inputs, segments, _ = operands()
    assert kernels(lambda: attention(*inputs, segment_ids=segments)) == 0


def test_a_jax_without_the_kernel_is_told_of_once(on_tpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.ops.tpu.splash_attention", None)
    fused_attention._kernel.cache_clear()
    inputs, segments, _ = operands()
    with pytest.warns(UserWarning, match="lacks splash attention .*: attention is not fused"):
        assert kernels(lambda: attention(*inputs, segment_ids=segments)) == 0
    assert kernels(lambda: attention(*inputs, segment_ids=segments)) == 0
    fused_attention._kernel.cache_clear()


# ---- cuDNN


@pytest.fixture
def on_gpu(monkeypatch):
    """Programs are made as for a GPU; without one, what is asked of cuDNN is computed by XLA."""
    if jax.default_backend() == "gpu":
        return
    attend = jax.nn.dot_product_attention

    def compute(*args, implementation, **options):
        assert implementation == "cudnn"
        return attend(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", compute)
    monkeypatch.setattr(attention_lib, "platform", lambda: "gpu")


@pytest.mark.parametrize(
    ("segmented", "window", "options"),
    [
        (True, None, {"rows": 3}),
        (False, None, {"length": 200}),
        (False, 64, {}),
        (True, 64, {"rows": 4, "heads": 4, "size": 64}),
    ],
)
def test_what_cudnn_is_asked_for_is_the_plain_attention(on_gpu, segmented, window, options):
    inputs, segments, gradient = operands("bfloat16", **options)
    segments = segments if segmented else None
    plain, fused = (
        results(inputs, segments, gradient, window, kernel=kernel) for kernel in ("plain", "cudnn")
    )
    for expected, got in zip(plain, fused, strict=True):
        assert got.dtype == expected.dtype
        expected, got = (np.asarray(x, np.float32) for x in (expected, got))
        np.testing.assert_allclose(got, expected, atol=0.03)


@pytest.mark.parametrize("ici", [(8, 1, 1), (2, 2, 2)])
def test_each_device_has_its_rows_and_heads_for_cudnn(on_gpu, ici):
    inputs, segments, gradient = operands("bfloat16", rows=8)
    expected = results(inputs, segments, gradient, 64, kernel="plain")
    with make_partitioning(MeshConfig(ici=ici)).activate():
        got = results(inputs, segments, gradient, 64, kernel="cudnn")
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (a, b)), atol=0.03)


def test_cudnn_has_no_dropout_and_computes_in_bfloat16(on_gpu, monkeypatch):
    inputs, _, _ = operands(rows=4)
    with pytest.raises(UserError, match="'cudnn', on a GPU in float32: .*dtype = 'bfloat16'"):
        attention(*inputs, kernel="cudnn")
    with pytest.raises(UserError, match="drops no probabilities"):
        attention(*inputs, kernel="cudnn", dropout_keys=KEYS, dropout_rate=0.1)
    monkeypatch.setattr(attention_lib, "platform", lambda: "cpu")  # where a checkpoint is evaluated
    assert attention(*inputs, kernel="cudnn").dtype == inputs[0].dtype
    with pytest.raises(UserError, match="on a TPU in bfloat16"):  # as training says
        attention_lib.check_cudnn(0.0, "bfloat16", "tpu")
