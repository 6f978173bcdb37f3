import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xl_flax.errors import UserError
from xl_flax.evaluation import search
from xl_flax.evaluation.search import nearest, nearest_both, unit


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 60), m=st.integers(1, 60), d=st.integers(2, 40), data=st.data())
def test_the_nearest_are_those_of_the_whole_matrix(n, m, d, data):
    k = data.draw(st.integers(1, m))
    x, y = unit(normal(n, n, d)), unit(normal(100 + m, m, d))
    similarity, index = nearest(x, y, k)
    whole = x @ y.T
    np.testing.assert_allclose(similarity, -np.sort(-whole, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(whole, index, 1), similarity, atol=1e-6)
    assert all(len(set(row)) == k for row in index.tolist())


@pytest.fixture(scope="module")
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SMALL": 0, "STRIDE": 3, "ROWS": 32, "COLUMNS": 64}.items():
            patch.setattr(search, name, value)
        yield


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(16, 150), m=st.integers(16, 150), k=st.integers(1, 5), alike=st.floats(0, 2),
    common=st.floats(-1, 1),
)  # fmt: skip
def test_one_pass_finds_what_two_searches_find(small_blocks, n, m, k, alike, common):
    x, noise = normal(n, n, 12), normal(100 + m, m, 12)
    x, y = unit(x + common), unit(alike * np.resize(x, (m, 12)) + noise + common)
    found = search._one_pass(x, y, k)
    assert found is not None
    for (cos, index), (a, b) in zip(found, ((x, y), (y, x)), strict=True):
        np.testing.assert_allclose(cos, nearest(a, b, k)[0], atol=1e-6)
        assert cos.dtype == np.float32 and index.shape == (len(a), k)
        assert all(len(set(row)) == k for row in index.tolist())
        np.testing.assert_allclose(np.take_along_axis(a @ b.T, index, 1), cos, atol=1e-6)


def test_so_many_ties_that_memory_would_grow_are_left_to_faiss(small_blocks):
    point = unit(np.tile(normal(0, 1, 8), (120, 1)))
    assert search._one_pass(point, point, 4) is None
    (cos, _), _ = nearest_both(point, point, 4)
    np.testing.assert_allclose(cos, 1, rtol=1e-6)


@pytest.mark.parametrize("side", [0, 1])
def test_one_pass_refuses_vectors_that_are_not_finite(small_blocks, side):
    both = [unit(normal(0, 80, 3)), unit(normal(1, 70, 3))]
    both[side][2, 1] = np.nan  # not among those that are searched first
    with pytest.raises(UserError, match="NaN or infinite"):
        nearest_both(*both, 4)


def test_unit_leaves_zeros():
    x = normal(0, 3, 4)
    x[1] = 0
    np.testing.assert_allclose(np.linalg.norm(unit(x), axis=1), [1, 0, 1], rtol=1e-6)


def test_too_few_candidates_are_an_error():
    with pytest.raises(UserError, match="k = 4 nearest of 3 sentences"):
        nearest(normal(0, 5, 2), normal(1, 3, 2), 4)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_an_error(side, value):
    both = [unit(normal(0, 8, 3)), unit(normal(1, 4, 3))]
    both[side][2, 1] = value
    with pytest.raises(UserError, match="NaN or infinite"):
        nearest(*both, 4)


def test_a_missing_faiss_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'xl-flax\[eval\]'"):
        nearest(normal(0, 5, 2), normal(1, 3, 2), 1)
