"""Sentence vectors of packed rows against a loop."""

import jax
import numpy as np
import pytest

from xl_flax.ops.pooling import pool

SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 3, 0], [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]], np.int32)
SENTENCES = 4


def loop(hidden, pooling):
    out = np.zeros((len(hidden), SENTENCES, hidden.shape[-1]), np.float32)
    for b, s in np.ndindex(out.shape[:2]):
        at = np.flatnonzero(SEGMENTS[b] == s + 1)
        if pooling == "cls" and len(at):
            out[b, s] = hidden[b, at[0]]
        if pooling == "mean" and len(at) > 2:
            out[b, s] = hidden[b, at[1:-1]].mean(axis=0)
    return out


@pytest.fixture
def hidden():
    return np.random.default_rng(0).normal(size=(*SEGMENTS.shape, 3)).astype(np.float32)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_equals_a_loop(hidden, pooling):
    expected = loop(hidden, pooling)
    np.testing.assert_allclose(pool(hidden, SEGMENTS, SENTENCES, pooling), expected, atol=1e-6)
    low = pool(hidden.astype("bfloat16"), SEGMENTS, SENTENCES, pooling)
    assert low.dtype == np.float32
    np.testing.assert_allclose(low, expected, atol=0.03)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_that_is_not_finite_reaches_no_vector(hidden, pooling):
    expected = loop(hidden, pooling)
    hidden[SEGMENTS == 0] = np.nan
    np.testing.assert_allclose(pool(hidden, SEGMENTS, SENTENCES, pooling), expected, atol=1e-6)
    gradient = jax.grad(lambda h: pool(h, SEGMENTS, SENTENCES, pooling).sum())(hidden)
    assert np.isfinite(gradient).all() and not gradient[SEGMENTS == 0].any()
