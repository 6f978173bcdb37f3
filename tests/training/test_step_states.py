"""The step of objectives that compare rows with one another, or carry something on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_layers import MLP, ROWS, ROWS_READ, WIDTH, Centred, centred, regression, run, spread

from xl_flax.errors import UserError
from xl_flax.objectives.base import Loss


def run_compared(ici, accumulate=1, microbatches=1, **kwargs):
    objectives = (regression(), spread(microbatches=microbatches), centred(microbatches=2))
    return run(ici, accumulate, objectives=objectives, **kwargs)


@pytest.fixture(scope="module")
def compared():
    return run_compared((1, 1, 1))


@pytest.mark.parametrize(
    ("ici", "accumulate", "microbatches"),
    [
        ((1, 1, 1), 1, 2),
        ((1, 1, 1), 2, 4),
        ((8, 1, 1), 1, 2),
        ((2, 2, 2), 2, 2),
    ],
)
def test_encoding_twice_in_parts_gives_the_same_run(compared, ici, accumulate, microbatches):
    state, history = run_compared(ici, accumulate, microbatches)
    expected_state, expected = compared
    for a, b in zip(history, expected, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves((state.params, state.objectives)),
        jax.tree.leaves((expected_state.params, expected_state.objectives)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_what_is_carried_follows_the_updated_parameters(compared):
    state, _ = compared
    np.testing.assert_allclose(state.objectives["spread"]["up"], state.params["up"] + 1, rtol=1e-6)
    assert np.abs(state.objectives["spread"]["mean"]).max() > 1e-3
    _, alone = run((1, 1, 1))
    assert compared[1][1]["loss"] != alone[1]["loss"]


def test_copies_of_parameters_lie_as_these_do():
    state, _ = run_compared((2, 2, 2), steps=1)
    up, copy = state.params["up"], state.objectives["spread"]["up"]
    assert copy.sharding.is_equivalent_to(up.sharding, 2)
    assert copy.sharding.shard_shape(copy.shape) == (WIDTH // 2, MLP // 2)


def test_a_step_that_is_not_finite_carries_nothing_on():
    before, _ = run_compared((2, 2, 2), microbatches=2, steps=2)
    after, history = run_compared((2, 2, 2), microbatches=2, steps=3, spoil=(2,))
    assert [int(h["skipped"]) for h in history] == [0, 0, 1]
    for a, b in zip(
        jax.tree.leaves((before.params, before.objectives)),
        jax.tree.leaves((after.params, after.objectives)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_sum_over_rows_has_a_state_of_its_own(compared):
    state, _ = compared
    assert np.abs(state.objectives["centred"]["mean"]).max() > 1e-3
    sharded, _ = run_compared((2, 2, 2), steps=1)
    mean = sharded.objectives["centred"]["mean"]
    assert mean.sharding.shard_shape(mean.shape) == (WIDTH // 2,)


def test_axes_that_do_not_fit_a_state_are_named():
    class Wrong(Centred):
        def state_axes(self, axes):
            return {"mean": ("embed", None)}

    with pytest.raises(UserError, match=r"'centred': Wrong.state_axes .* 'mean' of shape \(8,\)"):
        run((1, 1, 1), objectives=(Wrong(rows=ROWS_READ, batch_size=ROWS),))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_axes": lambda self, axes: {"mean": ("wide",)}}, r"names 'wide' for 'mean'"),
        (
            {"update_state": lambda self, state, params, update: {"other": state["mean"]}},
            r"update_state returns \{'other'",
        ),
        (
            {"loss": lambda self, model, batch, inputs: Loss(jnp.sum(model.up[...]), {})},
            r"the sums of its Loss have no 'count'",
        ),
    ],
)
def test_what_breaks_the_contract_is_named(changes, message):
    wrong = type("Wrong", (Centred,), changes)
    with pytest.raises(UserError, match=rf"'centred': .*{message}"):
        run((1, 1, 1), steps=1, objectives=(wrong(rows=ROWS_READ, batch_size=ROWS),))
