"""Dropout: rate, scale, independence of rows, places and sites, and the same bits backward."""

import jax
import jax.numpy as jnp
import numpy as np

from xl_flax.models.dropout import dropout, row_bits, row_keys

KEYS = jax.random.split(jax.random.key(0), 8)


def test_rate_and_mean_are_right_and_backward_uses_the_same_mask():
    x = jnp.ones((8, 64, 96))
    y, pullback = jax.vjp(lambda x: dropout(x, KEYS, 0.1), x)
    assert abs(float((y == 0).mean()) - 0.1) < 0.004
    assert abs(float(y.mean()) - 1) < 0.005
    np.testing.assert_array_equal(pullback(x)[0], y)


def test_bfloat16_does_not_round_the_factor():
    """1/0.9 is 1.1094 in bfloat16, 0.16 % too small, in every place where something is dropped."""
    x = jnp.linspace(1, 2, 8 * 64 * 96, endpoint=False).reshape(8, 64, 96).astype(jnp.bfloat16)
    y, pullback = jax.vjp(lambda x: dropout(x, KEYS, 0.1), x)
    for values in (y, pullback(x)[0]):
        assert values.dtype == jnp.bfloat16
        kept = np.asarray(values, np.float64)
        factor = kept.sum() / np.asarray(x, np.float64)[kept != 0].sum()
        assert abs(factor * 0.9 - 1) < 1e-4


def test_bits_of_rows_sites_and_neighbours_are_uncorrelated():
    bits = np.asarray(row_bits(KEYS, (64, 64)), np.float64) / 2**32 - 0.5
    other = np.asarray(row_bits(row_keys(KEYS, 1), (64, 64)), np.float64) / 2**32 - 0.5
    rows = bits.reshape(8, -1)

    def correlation(a, b):
        return abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) * np.sqrt(a.size)  # in deviations

    assert abs(bits.mean()) * np.sqrt(12 * bits.size) < 4
    assert max(correlation(rows[i], rows[j]) for i in range(8) for j in range(i)) < 4
    assert correlation(bits, other) < 4
    assert correlation(bits[:, :, 1:], bits[:, :, :-1]) < 4
    assert correlation(bits[:, 1:], bits[:, :-1]) < 4
    counts = np.bincount(np.asarray(row_bits(KEYS, (64, 64))).ravel() >> 24, minlength=256)
    expected = counts.sum() / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 4 * np.sqrt(2 * 255)


def test_no_keys_or_no_rate_is_the_identity():
    x = jnp.ones((8, 4))
    assert dropout(x, None, 0.5) is x
    assert dropout(x, KEYS, 0.0) is x
