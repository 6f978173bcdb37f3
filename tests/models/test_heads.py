"""Sentence heads: projection, length, learnt numbers, and settings that make no head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import SentenceHead, build_model

CONFIG = EncoderConfig(
    vocab_size=40, num_layers=2, width=8, num_heads=2, mlp_width=16, max_positions=16
)
POOLED = np.random.default_rng(0).normal(size=(5, 3, 8)).astype(np.float32)


def head(**settings):
    return SentenceHead(CONFIG, nnx.Rngs(0), **settings)


@pytest.mark.parametrize(
    ("projection", "width"), [(None, None), ("linear", None), ("linear", 6), ("mlp", 6)]
)
@pytest.mark.parametrize("normalise", [True, False])
def test_vectors_follow_from_the_parameters(projection, width, normalise):
    module = head(projection=projection, width=width, normalise=normalise)
    if projection == "mlp":
        module.hidden_bias[...] = jnp.linspace(-0.1, 0.1, 8)
    expected = POOLED
    if projection == "mlp":
        inner = expected @ np.asarray(module.hidden[...]) + np.asarray(module.hidden_bias[...])
        expected = np.maximum(inner, 0)
    if projection:
        expected = expected @ np.asarray(module.out[...])
    if normalise:
        expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
    found = module(POOLED)
    assert found.shape == (5, 3, width or 8) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_a_zero_vector_has_a_finite_gradient():
    """Places without a sentence are pooled to zeros."""
    gradient = jax.grad(lambda x: head()(x).sum())(jnp.zeros((2, 8)))
    assert np.isfinite(gradient).all()


def test_only_what_is_trained_is_a_parameter():
    def names(**settings):
        return set(nnx.to_pure_dict(nnx.state(head(**settings))))

    assert names() == set()
    assert names(projection="linear") == {"out"}
    assert names(projection="mlp") == {"hidden", "hidden_bias", "out"}
    module = head(scale=20.0, bias=-10.0)
    np.testing.assert_allclose(jnp.exp(module.log_scale[...]), 20.0, rtol=1e-6)
    assert module.bias[...] == -10


@pytest.mark.parametrize(("layer", "expected"), [(-1, 2), (-2, 1), (0, 0), (1, 1), (2, 2)])
def test_layers_are_counted_from_the_embeddings(layer, expected):
    assert head(layer=layer).layer == expected


def test_several_heads_of_a_kind_have_their_own_parameters():
    heads = {
        "mlm": {},
        "a": {"kind": "sentence", "projection": "linear"},
        "b": {"kind": "sentence", "projection": "linear", "width": 4},
    }
    model = nnx.eval_shape(lambda: build_model(CONFIG, heads, nnx.Rngs(0)))
    a, b = (model.heads[name].out.get_value() for name in "ab")
    assert a.shape == (8, 8) and b.shape == (8, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "max"}, "pooling = 'max'"),
        ({"projection": "conv"}, "projection = 'conv'"),
        ({"layer": 3}, "layer of a sentence head: there is no layer 3; .*to 2"),
        ({"layer": -4}, "there is no layer -4"),
        ({"width": 4}, "width = 4 .* encoder's 8.*projection"),
        ({"scale": 0.0}, "scale = 0.0 .*positive"),
    ],
)
def test_settings_that_make_no_head_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        head(**settings)


def test_an_unknown_kind_is_named():
    with pytest.raises(
        UserError, match="unknown heads word; .*mlm, pooler, sentence.*Gin file .or .*convert"
    ):
        build_model(CONFIG, {"x": {"kind": "word"}}, nnx.Rngs(0))
