"""Batches that are under way at once come back in order, and as they would alone."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xl_flax.evaluation.ahead import AT_ONCE, run_ahead
from xl_flax.parallel import compiled
from xl_flax.parallel.mesh import MeshConfig, make_partitioning


@pytest.fixture(params=[1, 8], ids="{} devices".format)
def partitioning(request):
    return make_partitioning(MeshConfig(), jax.devices()[: request.param])


def batches(count, sizes=(4, 6)):
    for i in range(count):
        yield i, (np.full((sizes[i % len(sizes)], 3), i, np.float32), {"add": np.ones(3)})


@jax.jit
def scaled(params, x, more):
    return {"y": jnp.tanh(x @ x.T * params) @ x + more["add"]}


def test_outputs_come_in_order_and_as_alone(partitioning):
    got = list(run_ahead(scaled, 0.1, batches(20), partitioning))
    assert [i for i, _ in got] == [*range(20)]
    for (_, output), (_, arrays) in zip(got, batches(20), strict=True):
        assert isinstance(output["y"], np.ndarray)
        np.testing.assert_array_equal(output["y"], scaled(0.1, *arrays)["y"])


def test_no_program_is_compiled_twice(partitioning):
    fresh, count = jax.jit(lambda params, x, more: x + params + more["add"]), compiled.counter()
    list(run_ahead(fresh, 1.0, batches(30, sizes=(2, 3, 5)), partitioning))
    assert count() == 3


def test_two_batches_are_computed_at_once_on_one_device_and_one_on_several(partitioning):
    both, first = threading.Barrier(2, timeout=60 if partitioning.mesh.size == 1 else 0.1), []

    def meet(params, x, more):
        if first:  # the first of a shape is computed before all others
            both.wait()
        first.append(x)
        return x

    run = run_ahead(meet, 1.0, batches(5, sizes=(4,)), partitioning)
    if partitioning.mesh.size == 1:
        assert len(list(run)) == 5
    else:
        with pytest.raises(threading.BrokenBarrierError):
            list(run)


def test_only_a_few_batches_are_under_way(partitioning):
    depth = AT_ONCE if partitioning.mesh.size == 1 else 1
    read = []

    def counted():
        for i, arrays in batches(12):
            read.append(i)
            yield i, arrays

    for i, _ in run_ahead(scaled, 1.0, counted(), partitioning):
        assert len(read) <= i + 1 + depth


def test_what_a_batch_raises_reaches_the_caller_and_no_thread_stays(partitioning):
    def fails(params, x, more):
        if x[0, 0] == 5:
            raise ValueError("batch 5")
        return x

    before = threading.active_count()
    with pytest.raises(ValueError, match="batch 5"):
        list(run_ahead(fails, 1.0, batches(9), partitioning))
    assert threading.active_count() <= before


def test_a_caller_may_leave(partitioning):
    before = threading.active_count()
    for i, _ in run_ahead(scaled, 1.0, batches(9), partitioning):
        if i == 2:
            break
    assert threading.active_count() <= before
