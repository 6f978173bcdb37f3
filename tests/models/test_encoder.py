"""The encoder: settings change how it is computed, never what; packing; states of chosen layers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.encoder import stretches
from xl_flax.models.heads import build_model, mlm_prediction
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
CONFIGS = {"bert": dataclasses.replace(BERT, num_layers=4), "modernbert": MODERN}
DEEP = dataclasses.replace(BERT, num_layers=12, max_positions=256)
LONG = np.zeros((4, 256), np.int32)
STATE = 4 * LONG.size * DEEP.width  # bytes of one state in float32


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
    return jax.jit(function(config, **options))


def with_dropout(config):
    names = ("embedding", "attention", "attention_out", "mlp_out")
    return dataclasses.replace(config, **{f"{name}_dropout": 0.2 for name in names})


def loss_and_gradients(config, params, keys):
    run = function(config)

    def loss(params):
        hidden = run(params, TOKENS, segment_ids=SEGMENTS, dropout_keys=keys)
        return jnp.sum(hidden * jnp.sin(jnp.arange(hidden.size)).reshape(hidden.shape))

    return jax.jit(jax.value_and_grad(loss))(params)


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
def test_packed_rows_equal_each_example_alone(config, optimised):
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


def test_bfloat16_is_close_and_parameters_stay_float32(optimised):
    config = dataclasses.replace(MODERN, dtype="bfloat16")
    _, params = make(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    half, full = encode(config)(params, TOKENS), encode(MODERN)(params, TOKENS)
    assert half.dtype == jnp.bfloat16
    assert np.abs(half.astype(np.float32) - full).mean() < 0.03 * np.abs(full).mean()


def test_dropout_of_a_row_follows_from_its_key_alone(optimised):
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
    head, table, bias = mlm_prediction(model)
    assert head is model.heads["mlm"] and (head.table is None) == tie
    expected = model.encoder.embeddings.tokens if tie else head.table
    np.testing.assert_array_equal(table, expected[...])
    np.testing.assert_array_equal(bias, head.bias[...])


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
        compiled = jax.jit(gradient).lower(make(config)[1]).compile()
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
    with pytest.raises(
        UserError, match="unknown heads qa; there are biaffine, classification, mlm"
    ):
        build_model(BERT, {"qa": {}}, nnx.Rngs(0))


@functools.cache
def reference(name):
    """The states of all layers, one layer after the other, and the output of the default call."""
    graph, params = make(CONFIGS[name])

    @jax.jit
    def run(params):
        encoder = nnx.merge(graph, params).encoder
        positions = jnp.arange(TOKENS.shape[1])[None]
        states = [encoder.embeddings(TOKENS, positions, None, None, None)]
        apply = encoder._layer_function(SEGMENTS, positions, None)
        stacked = nnx.split(encoder.layers)
        outside = encoder.config.num_layers - len(jax.tree.leaves(stacked[1])[0])
        for i in range(encoder.config.num_layers):
            layer = encoder.first
            if i >= outside:
                at = i - outside
                layer = nnx.merge(stacked[0], jax.tree.map(lambda p, at=at: p[at], stacked[1]))
            states.append(apply(layer, i, encoder.config.window(i) is None, states[-1]))
        if encoder.final_norm is not None:
            states[-1] = encoder.final_norm(states[-1])
        return states

    return run(params), encode(CONFIGS[name])(params, TOKENS, segment_ids=SEGMENTS)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("scan", ["scan", "unroll"])
@pytest.mark.parametrize("name", CONFIGS)
def test_states_are_those_of_a_full_run(name, scan, remat):
    states, last = reference(name)
    np.testing.assert_allclose(states[-1], last, atol=1e-5)
    config = dataclasses.replace(CONFIGS[name], scan=scan, remat=remat)
    chosen = [(0, 1, 2, 3, 4), (-1, 0, -4, 3)] if remat == "none" else [(1, 4)]
    for layers in chosen:
        got = encode(config, layers=layers)(make(config)[1], TOKENS, segment_ids=SEGMENTS)
        assert isinstance(got, tuple) and len(got) == len(layers)
        for layer, state in zip(layers, got, strict=True):
            np.testing.assert_allclose(state, states[layer], atol=2e-5, err_msg=str(layer))


def test_the_final_norm_belongs_to_the_last_layer_alone():
    params = make(MODERN)[1]
    without = dataclasses.replace(MODERN, final_norm=False)
    (inner,) = encode(MODERN, layers=[3])(params, TOKENS)
    again, last = encode(MODERN, layers=[3, 4])(params, TOKENS)
    plain = encode(without, layers=[3, 4])(make(without)[1], TOKENS)
    np.testing.assert_allclose(inner, again, atol=1e-5)
    assert np.abs(last - plain[1]).max() > 0.1


@pytest.mark.parametrize("scan", ["scan", "unroll"])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_a_full_run(name, scan):
    config = dataclasses.replace(CONFIGS[name], scan=scan)
    graph, params = make(config)
    weights = np.sin(np.arange(TOKENS.size * config.width)).reshape(*TOKENS.shape, config.width)

    def loss(params, layers, chosen):
        states = nnx.merge(graph, params).encoder(TOKENS, layers=layers)
        return sum(jnp.sum(states[i] * weights * (i + 1)) for i in chosen)

    gradient = jax.jit(jax.grad(loss), static_argnums=(1, 2))
    got, expected = gradient(params, (1, 3), (0, 1)), gradient(params, (1, 3, 4), (0, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4), got, expected)
    unused = got["encoder"]["layers"]["up"][...]
    assert np.abs(unused[:-1]).max(axis=tuple(range(1, unused.ndim))).min() > 0
    assert not np.any(unused[-1])


def lowered(config, layers, backward=False):
    """The forward pass, or the gradient of the sum of all its states' squares, not compiled yet."""
    graph, params = make(config)

    def run(params):
        return nnx.merge(graph, params).encoder(LONG, segment_ids=LONG, layers=layers)

    def loss(params):
        return sum(jnp.square(state).sum() for state in run(params))

    function = jax.grad(loss) if backward else run
    return jax.jit(function).lower(params)


@pytest.mark.parametrize("backward", [False, True])
def test_two_of_twelve_layers_cost_a_sixth(backward):
    config = dataclasses.replace(DEEP, scan="unroll")
    flops = {
        layers: lowered(config, layers, backward).cost_analysis()["flops"]
        for layers in ((0,), (2,), (12,))
    }
    part, full = flops[2,] - flops[0,], flops[12,] - flops[0,]
    assert part / full == pytest.approx(2 / 12, rel=0.05)


def scanned(config, layers):
    """(length, shapes of stacked outputs) of each scan in the traced program."""
    graph, params = make(config)
    run = lambda params: nnx.merge(graph, params).encoder(LONG, layers=layers)  # noqa: E731
    scans = [e for e in jax.make_jaxpr(run)(params).eqns if e.primitive.name == "scan"]
    return [
        (e.params["length"], [v.aval.shape[0] for v in e.outvars[e.params["num_carry"] :]])
        for e in scans
    ]


def test_a_scan_has_outputs_only_where_contiguous_layers_are_wanted():
    assert scanned(DEEP, None) == [(12, [])]
    assert scanned(DEEP, (2,)) == [(2, [])]
    assert scanned(DEEP, (4, 8)) == [(4, []), (4, [])]
    assert scanned(DEEP, tuple(range(13))) == [(12, [12])]
    assert scanned(DEEP, (0, 6, 7, 8)) == [(6, []), (2, [2])]
    assert scanned(dataclasses.replace(MODERN, num_layers=7, max_positions=256), (1, 3)) == [
        (2, [])
    ]


def test_stretches_cover_all_layers_once():
    assert list(stretches(0, {0})) == [] and list(stretches(1, {1})) == []
    assert list(stretches(0, {1, 3, 4, 9})) == [
        (0, 1, False),
        (1, 3, False),
        (3, 4, False),
        (4, 9, False),
    ]
    assert list(stretches(1, {1, 2, 3, 6})) == [(1, 3, True), (3, 6, False)]


def memory(config, layers, backward=False):
    """Bytes of temporaries and outputs."""
    analysis = lowered(config, layers, backward).compile().memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


@pytest.mark.parametrize("backward", [False, True])
def test_two_states_are_kept_and_no_others(backward):
    config = dataclasses.replace(DEEP, remat="full")
    one, two = (memory(config, layers, backward) for layers in ((8,), (4, 8)))
    assert two - one < 3 * STATE
    if not backward:
        assert memory(config, tuple(range(9))) - one > 7 * STATE


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((3,), r"layers: there is no layer 3; the encoder has 0 \(the embeddings\) to 2, or -3"),
        ((1, -4), "there is no layer -4"),
        ((1.0,), "there is no layer 1.0"),
        ((True,), "there is no layer True"),
        (1, "layers = 1: give a sequence"),
        ("all", "layers = 'all': give a sequence"),
        ((), r"layers = \(\): give a sequence"),
    ],
)
def test_layers_that_are_not_there_are_named(layers, message):
    graph, params = make(BERT)
    with pytest.raises(UserError, match=message):
        nnx.merge(graph, params).encoder(TOKENS, layers=layers)
