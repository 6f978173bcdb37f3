"""Blockwise reductions over similarities equal those over the whole matrix, on every mesh."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xl_flax.ops.similarity import log_sum_exps, softplus_sums
from xl_flax.parallel.mesh import MeshConfig, make_partitioning

MESHES = [(a, b, 8 // (a * b)) for a in (1, 2, 4, 8) for b in (1, 2, 4, 8) if a * b <= 8]


def draw(n, m, d, keys, seed, share=0.8):
    """Vectors, scale, bias, keys and validity of a problem."""
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=(size, d)).astype(np.float32) for size in (n, m))
    x_keys, y_keys = (  # a vector y has one key more than x
        rng.integers(0, 4 * max(n, m), (size, count)).astype(np.int32)
        for size, count in ((n, keys), (m, keys + 1))
    )
    x_valid, y_valid = (rng.random(size) < share for size in (n, m))
    return x, y, np.float32(1.7), np.float32(-0.4), x_keys, y_keys, x_valid, y_valid


def counts_of(x_keys, y_keys, x_valid, y_valid):
    shared = [[bool(set(x) & set(y)) for y in y_keys.tolist()] for x in x_keys.tolist()]
    return x_valid[:, None] & y_valid & ~np.array(shared)


def plain(x, y, scale, bias, *masks):
    """What is tested, with the whole matrix."""
    counts = counts_of(*masks)
    s = scale * jnp.matmul(x, y.T, precision="highest")

    def reduce(axis):
        some = counts.any(axis)
        kept = jnp.where(counts | ~jnp.expand_dims(some, axis), s, -jnp.inf)
        total = jnp.where(some, jax.nn.logsumexp(kept, axis), -jnp.inf)
        return total, jnp.where(some, kept.max(axis), -jnp.inf)

    (rows, row_max), (columns, column_max) = reduce(1), reduce(0)
    sums = jnp.where(counts, jax.nn.softplus(s + bias), 0).sum(1)
    return (rows, columns, row_max, column_max), (sums, row_max + bias)


def blockwise(x, y, scale, bias, *masks, block=None):
    return (
        tuple(log_sum_exps(x, y, scale, *masks, block)),
        softplus_sums(x, y, scale, bias, *masks, block),
    )


def evaluate(function, problem, partitioning=None, **kwargs):
    """Values, and gradients of a weighted sum in which each row and column has its own weight."""
    vectors, masks = problem[:4], problem[4:]

    def loss(vectors, masks):
        with contextlib.nullcontext() if partitioning is None else partitioning.activate():
            values = function(*vectors, *masks, **kwargs)
        (rows, columns, *_), (sums, _) = values
        parts = (
            jnp.where(jnp.isfinite(v), v, 0) @ jnp.cos(jnp.arange(len(v)) + i)
            for i, v in enumerate((rows, columns, sums))
        )
        return sum(parts), values

    if function is plain:  # its masks are NumPy's
        whole = lambda vectors: loss(vectors, masks)  # noqa: E731
        found = jax.jit(jax.grad(whole, has_aux=True))(vectors)
    else:
        found = jax.jit(jax.grad(loss, has_aux=True))(vectors, masks)
    return jax.device_get(found)


def check(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@settings(max_examples=12, deadline=None)
@given(
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    d=st.integers(1, 5),
    keys=st.integers(0, 3),
    block=st.one_of(st.none(), st.integers(1, 12)),
    share=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_blocks_equal_the_whole_matrix(n, m, d, keys, block, share, seed):
    problem = draw(n, m, d, keys, seed, share)
    check(evaluate(blockwise, problem, block=block), evaluate(plain, problem))


@pytest.fixture(scope="module")
def problem():
    return draw(16, 24, 6, 2, seed=5)


@pytest.fixture(scope="module")
def expected(problem):
    return evaluate(plain, problem)


@pytest.mark.parametrize("ici", MESHES)
def test_every_mesh_gives_the_same(problem, expected, ici):
    partitioning = make_partitioning(MeshConfig(ici=ici))
    sharding = partitioning.sharding(("batch",))
    problem = [jax.device_put(z, sharding) if z.ndim else z for z in problem]
    check(evaluate(blockwise, problem, partitioning, block=7), expected)


def test_large_similarities_do_not_overflow():
    x, y, *rest = draw(4, 6, 3, 0, seed=1, share=1.0)
    problem = (1e3 * x, 1e3 * y, *rest)
    grads, values = evaluate(blockwise, problem, block=4)
    assert all(np.isfinite(z).all() for z in jax.tree.leaves((grads, values)))
    check(values[0], evaluate(plain, problem)[1][0])


def test_a_row_without_pairs_is_minus_infinity_and_teaches_nothing():
    x, y, scale, bias, _, _, _, _ = draw(3, 4, 2, 0, seed=2)
    keys_x = np.array([[9], [1], [2]], np.int32)
    keys_y = np.full((4, 1), 9, np.int32)  # all of them are forbidden to the first x
    valid = np.ones(3, bool), np.array([True, True, True, False])
    problem = (x, y, scale, bias, keys_x, keys_y, *valid)
    (d_x, d_y, *_), ((rows, columns, *_), (sums, largest)) = evaluate(blockwise, problem, block=3)
    assert np.isneginf(rows[0]) and np.isfinite(rows[1:]).all()
    assert np.isneginf(columns[3]) and np.isfinite(columns[:3]).all()
    assert sums[0] == 0 and np.isneginf(largest[0])
    assert not d_x[0].any() and not d_y[3].any()
    assert np.isfinite(d_x).all() and np.isfinite(d_y).all() and d_x[1].any()


def test_no_pair_at_all_gives_zero_gradients():
    x, y, scale, bias, x_keys, y_keys, *_ = draw(2, 3, 2, 1, seed=3)
    none = np.zeros(2, bool), np.zeros(3, bool)
    grads, values = evaluate(blockwise, (x, y, scale, bias, x_keys, y_keys, *none))
    assert all(not g.any() for g in grads)
    assert np.isneginf(values[0][0]).all() and not values[1][0].any()


def test_the_matrix_is_never_held():
    size, d = 4096, 8
    shape = jax.ShapeDtypeStruct((size, d), jnp.float32)
    keys, valid = np.arange(size, dtype=np.int32)[:, None], np.ones(size, bool)

    def loss(x, y):
        found = log_sum_exps(x, y, 20.0, keys, keys, valid, valid, 128)
        return found.rows.sum() + found.columns.sum()

    memory = jax.jit(jax.grad(loss, (0, 1))).lower(shape, shape).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.25 * size * size * 4
