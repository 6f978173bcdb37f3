"""The encoder's settings change how it is computed, never what; rows and segments are islands."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model, token_table
from xl_flax.models.layers import Layer

SIZES = {"vocab_size": 61, "num_layers": 4, "width": 32, "num_heads": 2, "mlp_width": 48}
MODERNBERT = {
    "positions": "rotary",
    "pre_norm": True,
    "first_attention_norm": False,
    "final_norm": True,
    "norm_bias": False,
    "bias": False,
    "gated_mlp": True,
    "local_window": 8,
    "norm_eps": 1e-5,
}
BERT = EncoderConfig(**SIZES | {"num_layers": 2}, max_positions=64, token_types=2)
MODERN = EncoderConfig(**SIZES, max_positions=64, **MODERNBERT)
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 32))
SEGMENTS = np.repeat([[1, 2, 0], [1, 1, 2]], [14, 14, 4], axis=1)


FAST_COMPILE = {"xla_backend_optimization_level": 0}


@functools.cache
def make(config):
    """(graph, parameters), random everywhere; the model's own init takes seconds to compile."""
    graph, abstract = nnx.split(
        nnx.eval_shape(lambda: build_model(config, {"mlm": {}}, nnx.Rngs(0)))
    )
    rng = np.random.default_rng(0)
    return graph, jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.1, 0.2, leaf.shape), jnp.float32), abstract
    )


def function(config, **options):
    """(params, tokens, **inputs) -> hidden states."""

    def run(params, tokens, **inputs):
        return nnx.merge(make(config)[0], params).encoder(tokens, **inputs, **options)

    return run


def encode(config, **options):
    return jax.jit(function(config, **options), compiler_options=FAST_COMPILE)


def with_dropout(config):
    names = ("embedding", "attention", "attention_out", "mlp_out")
    return dataclasses.replace(config, **{f"{name}_dropout": 0.2 for name in names})


def loss_and_gradients(config, params, keys):
    run = function(config)

    def loss(params):
        hidden = run(params, TOKENS, segment_ids=SEGMENTS, dropout_keys=keys)
        return jnp.sum(hidden * jnp.sin(jnp.arange(hidden.size)).reshape(hidden.shape))

    return jax.jit(jax.value_and_grad(loss), compiler_options=FAST_COMPILE)(params)


@pytest.mark.parametrize("config", [BERT, MODERN], ids=["bert", "modernbert"])
def test_scan_unroll_and_remat_agree_with_dropout_on(config):
    config = with_dropout(config)
    _, params = make(config)
    keys = jax.random.split(jax.random.key(1), 2)
    expected = loss_and_gradients(config, params, keys)
    for scan, remat in ("scan", "full"), ("unroll", "dots"):
        got = loss_and_gradients(dataclasses.replace(config, scan=scan, remat=remat), params, keys)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4), got, expected
        )


@pytest.mark.parametrize("config", [BERT, MODERN], ids=["bert", "modernbert"])
def test_packed_rows_equal_each_example_alone(config):
    run, (_, params) = encode(config), make(config)
    starts = np.where(SEGMENTS == 2, [[14], [28]], 0)
    packed = run(params, TOKENS, segment_ids=SEGMENTS, positions=np.arange(32) - starts)
    for row in 0, 1:
        # Row 0: the first example alone, then padding; row 1: the second.
        alone, segments = np.zeros_like(TOKENS), np.zeros_like(SEGMENTS)
        examples = [SEGMENTS[row] == 1, SEGMENTS[row] == 2]
        for i, where in enumerate(examples):
            alone[i, : where.sum()] = TOKENS[row, where]
            segments[i, : where.sum()] = 1
        positions = np.broadcast_to(np.arange(32), TOKENS.shape)
        alone = run(params, alone, segment_ids=segments, positions=positions)
        for i, where in enumerate(examples):
            np.testing.assert_allclose(packed[row, where], alone[i, : where.sum()], atol=2e-5)


def test_local_layers_see_half_a_window_to_each_side():
    config = dataclasses.replace(MODERN, num_layers=2, global_every=2)  # layer 0 global, 1 local
    graph, params = make(config)
    hidden = jax.random.normal(jax.random.key(0), (1, 32, 32))

    def last_layer(x):
        encoder = nnx.merge(graph, params).encoder
        apply = encoder._layer_function(None, jnp.arange(32)[None], None)
        layer = jax.tree.map(lambda leaf: leaf[0], nnx.state(encoder.layers))
        return apply(nnx.merge(nnx.graphdef(encoder.layers), layer), 1, False, x)[0, 16]

    touched = jnp.abs(jax.jit(jax.jacobian(last_layer))(hidden)).sum((0, 1, 3)) > 0
    assert np.flatnonzero(touched).tolist() == list(range(12, 21))


@pytest.mark.parametrize("scan", ["scan", "unroll"])
def test_all_layers_end_in_the_output(scan):
    config = dataclasses.replace(MODERN, scan=scan)
    graph, params = make(config)
    last, states = encode(config)(params, TOKENS), encode(config, all_layers=True)(params, TOKENS)
    assert states.shape == (5, 2, 32, 32)
    np.testing.assert_allclose(states[-1], last, atol=1e-5)
    embedded = nnx.merge(graph, params).encoder.embeddings(
        TOKENS, jnp.arange(32)[None], None, None, None
    )
    np.testing.assert_allclose(states[0], embedded, atol=1e-6)
    assert min(np.abs(states[i] - states[i + 1]).max() for i in range(4)) > 1e-3


def test_bfloat16_is_close_and_parameters_stay_float32():
    config = dataclasses.replace(MODERN, dtype="bfloat16")
    _, params = make(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    half, full = encode(config)(params, TOKENS), encode(MODERN)(params, TOKENS)
    assert half.dtype == jnp.bfloat16
    assert np.abs(half.astype(np.float32) - full).mean() < 0.03 * np.abs(full).mean()


def test_dropout_of_a_row_follows_from_its_key_alone():
    config = with_dropout(BERT)
    run, (_, params) = encode(config), make(config)
    keys = jax.random.split(jax.random.key(1), 2)
    both = run(params, TOKENS, dropout_keys=keys)
    swapped = run(params, TOKENS[::-1], dropout_keys=keys[::-1])
    np.testing.assert_allclose(swapped[::-1], both, atol=1e-5)
    alone = run(params, TOKENS[1:], dropout_keys=keys[1:])
    np.testing.assert_allclose(alone, both[1:], atol=1e-5)
    assert np.abs(run(params, TOKENS, dropout_keys=keys[::-1]) - both).max() > 0.1


def test_parameters_carry_logical_axis_names_and_are_created_abstractly():
    model = nnx.eval_shape(lambda: build_model(MODERN, {"mlm": {}}, nnx.Rngs(0)))
    specs = nnx.get_partition_spec(nnx.state(model))
    spec = jax.sharding.PartitionSpec
    assert specs["encoder"]["embeddings"]["tokens"].get_value() == spec("vocab", "embed")
    layers = specs["encoder"]["layers"]
    assert layers["qkv"].get_value() == spec("layers", "embed", None, "heads", "head_dim")
    assert layers["up"].get_value() == spec("layers", "embed", None, "mlp")
    leaves = jax.tree.leaves(nnx.state(model), is_leaf=lambda x: isinstance(x, nnx.Variable))
    assert all(len(leaf.get_metadata("out_sharding")) == leaf.ndim for leaf in leaves)


@pytest.mark.parametrize("tie", [True, False])
def test_token_table_is_the_encoders_or_the_heads_own(tie):
    config = dataclasses.replace(BERT, tie_head=tie)
    model = nnx.merge(*make(config))
    own = model.heads["mlm"].table
    assert (own is None) == tie
    expected = model.encoder.embeddings.tokens if tie else own
    np.testing.assert_array_equal(token_table(model), expected[...])


def test_initial_weights_are_cut_at_two_deviations_and_smaller_into_the_residual():
    config = dataclasses.replace(MODERN, init_std=0.5, scale_residual_init=True)
    first = nnx.jit(lambda: Layer(config, nnx.Rngs(0)))()
    for kernel, std in (first.up, 0.5), (first.down, 0.5 / np.sqrt(8)):
        assert std < np.abs(kernel[...]).max() <= 2 * std * (1 + 1e-6)
        assert np.std(kernel[...]) == pytest.approx(0.88 * std, rel=0.1)
    assert np.all(first.mlp_norm.scale[...] == 1)


@pytest.mark.parametrize("config", [BERT, MODERN], ids=["bert", "modernbert"])
def test_num_params_counts_what_is_there(config):
    encoder = nnx.eval_shape(lambda: build_model(config, {}, nnx.Rngs(0))).encoder
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(encoder))) == config.num_params


def test_scan_needs_a_fraction_of_the_temporaries_of_unroll_and_dots_are_kept():
    config = dataclasses.replace(MODERN, num_layers=7, max_positions=512)
    tokens = np.zeros((1, 512), np.int32)

    def temporaries(scan, remat):
        run = function(dataclasses.replace(config, scan=scan, remat=remat))
        gradient = jax.grad(lambda params: run(params, tokens, segment_ids=tokens).sum())
        compiled = jax.jit(gradient).lower(make(config)[1]).compile(FAST_COMPILE)
        return compiled.memory_analysis().temp_size_in_bytes

    full = temporaries("scan", "full")
    assert full < temporaries("unroll", "full") / 2
    kept = 6 * 512 * (3 * config.width + 2 * config.mlp_width) * 4  # bytes of qkv and up
    assert temporaries("scan", "dots") > full + kept


def test_too_long_a_row_names_the_limit():
    graph, params = make(BERT)
    with pytest.raises(UserError, match=r"rows of 65 tokens.*max_positions = 64"):
        nnx.merge(graph, params).encoder(np.zeros((1, 65), int))


def test_unknown_head_lists_the_known_ones():
    with pytest.raises(UserError, match="unknown heads qa; there are classification, mlm"):
        build_model(BERT, {"qa": {}}, nnx.Rngs(0))
