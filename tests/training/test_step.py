"""The step: accumulation, meshes, clipping and skipping, on a model small enough to check."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from two_layers import (
    MLP,
    ROWS,
    ROWS_READ,
    WIDTH,
    Regression,
    TwoLayers,
    batch_of,
    regression,
    run,
    spread,
)

from xl_flax.errors import UserError
from xl_flax.objectives.base import Inputs
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.mesh import MeshConfig, make_partitioning
from xl_flax.training import state as state_lib
from xl_flax.training.gradients import objective_gradient
from xl_flax.training.optimizer import OptimizerConfig, make_optimizer


@dataclasses.dataclass(frozen=True)
class Flat(Regression):
    name: str = "flat"

    def loss(self, model, batch, inputs):
        return jax.lax.stop_gradient(super().loss(model, batch, inputs))


@pytest.fixture(scope="module")
def reference():
    return run((1, 1, 1))


@pytest.mark.parametrize(
    ("ici", "accumulate", "divided"),
    [
        ((1, 1, 1), 4, ()),
        ((8, 1, 1), 1, ()),
        ((8, 1, 1), 2, ("data",)),
        ((2, 2, 2), 2, ()),
        ((2, 2, 2), 1, ("data",)),
        ((1, 8, 1), 2, ()),
        ((1, 2, 4), 4, ()),
    ],
)
def test_every_mesh_and_accumulation_gives_the_same_run(reference, ici, accumulate, divided):
    state, history = run(ici, accumulate, divided=divided)
    expected_state, expected = reference
    for a, b in zip(history, expected, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(expected_state.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_state_is_sharded_as_the_rules_say():
    state, _ = run((2, 2, 2), steps=1)
    up = state.params["up"]
    assert up.sharding.shard_shape(up.shape) == (WIDTH // 2, MLP // 2)
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.shape == up.shape]
    assert all(m.sharding.shard_shape(m.shape) == (WIDTH // 2, MLP // 2) for m in moments)


@pytest.mark.parametrize(
    ("ici", "own", "moments"),
    [
        ((8, 1, 1), (WIDTH, MLP), (WIDTH // 8, MLP)),
        ((4, 2, 1), (WIDTH // 2, MLP), (WIDTH // 2, MLP // 4)),
        ((2, 2, 2), (WIDTH // 2, MLP // 2), (WIDTH // 2, MLP // 2)),  # no axis is left
    ],
)
def test_the_optimizers_state_may_be_divided_over_data(ici, own, moments):
    state, _ = run(ici, steps=2, divided=("data",))
    part = lambda x: x.sharding.shard_shape(x.shape)  # noqa: E731
    up = state.params["up"]
    assert part(up) == own
    large = [x for x in jax.tree.leaves(state.optimizer) if x.shape == up.shape]
    assert len(large) == 2 and {part(x) for x in large} == {moments}


@pytest.mark.parametrize("name", ["adamw", "stable_adamw", "muon"])
def test_the_optimizers_state_is_laid_out_like_its_parameters(name):
    partitioning = make_partitioning(MeshConfig(ici=(2, 2, 2)))
    build = lambda: TwoLayers(nnx.Rngs(0))  # noqa: E731
    abstract = params_lib.abstract(build)
    optimizer, _ = make_optimizer(OptimizerConfig(name=name), 10, abstract.axes)
    layout = state_lib.layout(abstract, optimizer, partitioning)
    state = state_lib.fresh(params_lib.create(build, partitioning), optimizer, layout)
    large = [x for x in jax.tree.leaves(state.optimizer) if x.ndim == 2]
    assert len(large) >= 2
    for moment in large:
        assert moment.size == 4 * np.prod(moment.sharding.shard_shape(moment.shape))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(accumulate):
    before, _ = run((2, 2, 1), accumulate, steps=2)
    after, history = run((2, 2, 1), accumulate, steps=4, spoil=(2, 3))
    for a, b in zip(
        jax.tree.leaves((before.params, before.optimizer)),
        jax.tree.leaves((after.params, after.optimizer)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert [int(h["skipped"]) for h in history] == [0, 0, 1, 2]
    assert [int(h["bad_streak"]) for h in history] == [0, 0, 1, 2]


def test_the_streak_of_skipped_steps_ends_with_a_good_one():
    state, history = run((1, 1, 1), steps=4, spoil=(1,))
    assert [int(h["bad_streak"]) for h in history] == [0, 1, 0, 0]
    assert int(state.skipped) == 1 and int(state.updates) == 3


def test_objectives_are_weighted_after_each_is_divided_by_its_own_count():
    one, history = run((1, 1, 1), steps=1)
    two, both = run(
        (1, 1, 1),
        steps=1,
        objectives=(regression(weight=0.5), regression(name="other", weight=2.0)),
    )
    assert both[0]["loss"] > 0.5 * history[0]["loss"]
    assert not np.allclose(one.params["up"], two.params["up"])


def test_clipping_bounds_the_update_but_reports_the_true_norm():
    _, plain = run((1, 1, 1), steps=1)
    _, clipped = run((1, 1, 1), steps=1, clip_norm=1e-3)
    assert clipped[0]["grad_norm"] == plain[0]["grad_norm"]


# ---- Names, gradients apart and together, frozen parameters


@pytest.mark.parametrize(
    ("ici", "accumulate", "divided"),
    [
        ((1, 1, 1), 1, ()),
        ((8, 1, 1), 2, ("data",)),
        ((2, 4, 1), 1, ()),
        ((2, 2, 2), 2, ()),
    ],
)
def test_gradients_that_are_sent_together_train_the_same(ici, accumulate, divided):
    three = (regression(), regression(name="other", weight=0.5), spread())
    settings = OptimizerConfig(
        learning_rate=1e-2, schedule="constant", eps=1e-8, rate_factors=[("down", 0.0)]
    )
    for clip in (None, 0.1):
        each = {"steps": 3, "objectives": three, "clip_norm": clip, "settings": settings}
        apart, one_by_one = run((1, 1, 1), **each)
        state, history = run(ici, accumulate, divided=divided, norms=False, **each)
        for a, b in zip(history, one_by_one, strict=True):
            for key in ("loss", "grad_norm"):
                np.testing.assert_allclose(a[key], b[key], rtol=1e-5)
            for name in ("regression", "other"):
                np.testing.assert_allclose(a[name]["loss"], b[name]["loss"], rtol=1e-5)
                assert a[name]["grad_squares"] > 0 and "grad_norm" not in a[name]
            assert a["spread"]["grad_norm"] > 0  # a comparison is sent by itself
        np.testing.assert_allclose(state.params["up"], apart.params["up"], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(state.params["down"], apart.params["down"])


def test_a_loss_without_a_gradient_shows_in_the_squares():
    _, history = run(
        (8, 1, 1), steps=1, objectives=(regression(), Flat(ROWS_READ, ROWS)), norms=False
    )
    assert history[0]["flat"]["grad_squares"] == 0 < history[0]["regression"]["grad_squares"]


def test_the_order_of_objectives_changes_nothing():
    first, second = regression(), regression(name="other", weight=0.5)
    (one, forward), (two, backward) = (
        run((1, 1, 1), steps=2, objectives=order) for order in ((first, second), (second, first))
    )
    for a, b in zip(forward, backward, strict=True):
        for name in ("regression", "other"):
            assert a[name]["loss"] == b[name]["loss"]
    assert forward[0]["regression"]["loss"] != forward[0]["other"]["loss"]  # own noise
    np.testing.assert_allclose(one.params["up"], two.params["up"], rtol=1e-6)


def test_gradients_of_two_losses_can_be_had_apart():
    partitioning = make_partitioning(MeshConfig(ici=(1, 1, 1)), jax.devices()[:1])
    abstract = params_lib.abstract(lambda: TwoLayers(nnx.Rngs(0)))
    params = params_lib.create(lambda: TwoLayers(nnx.Rngs(0)), partitioning)
    batch = batch_of(np.random.default_rng(0))

    def gradient(objective, accumulate=1):
        inputs = Inputs(jax.random.key(0), None, {}, phase=0.1)
        return jax.jit(
            lambda params: objective_gradient(
                *(abstract.graph, objective, params, batch, inputs),
                *(abstract.layouts(partitioning), accumulate),
            )
        )(params)

    grads, loss = gradient(regression())
    cut, same = gradient(regression(), 4)
    np.testing.assert_allclose(cut["up"], grads["up"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(same.total, loss.total, rtol=1e-5)


def test_frozen_parameters_stay_and_others_have_their_own_rate():
    settings = OptimizerConfig(learning_rate=1e-2, schedule="constant", eps=1e-8)
    plain, history = run((1, 1, 1), steps=1, settings=settings)
    frozen = dataclasses.replace(settings, rate_factors=[("up", 0.0), ("down", 0.5)])
    state, other = run((1, 1, 1), steps=1, settings=frozen)
    start, _ = run((1, 1, 1), steps=0)
    np.testing.assert_array_equal(state.params["up"], start.params["up"])
    np.testing.assert_allclose(
        2 * (state.params["down"] - start.params["down"]),
        plain.params["down"] - start.params["down"],
        rtol=1e-3,
        atol=1e-6,
    )
    assert other[0]["grad_norm"] < history[0]["grad_norm"]  # without the frozen ones
    spread, on_eight = run((8, 1, 1), steps=1, settings=frozen, divided=("data",))
    np.testing.assert_array_equal(spread.params["up"], start.params["up"])
    np.testing.assert_allclose(spread.params["down"], state.params["down"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(on_eight[0]["grad_norm"], other[0]["grad_norm"], rtol=1e-5)
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.ndim == 2]
    assert {x.shape for x in moments} == {state.params["down"].shape}


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([("nowhere/.*", 0.0)], r"'nowhere/\.\*', 0\.0\) matches no parameter; paths look like"),
        ([(".*", 0.0)], "freezes every parameter"),
    ],
)
def test_factors_that_make_no_sense_are_named(factors, message):
    with pytest.raises(UserError, match=message):
        run((1, 1, 1), steps=0, settings=OptimizerConfig(rate_factors=factors))
