"""What the first step tells of an objective."""

import contextlib
import types

import pytest

from xl_flax.errors import UserError
from xl_flax.objectives.base import Mean
from xl_flax.training.checks import check_first_metrics

STEP = {"bad_streak": 0}


def feeds(**metrics):
    objective = types.SimpleNamespace(name="mine", metrics={"loss": Mean("loss")} | metrics)
    return {"mine": types.SimpleNamespace(objective=objective)}


def sums(**values):
    return {"loss": 2.5, "count": 3.0, "grad_norm": 0.1} | values


def test_an_objective_that_learns_is_checked_once():
    unchecked = {"mine"}
    check_first_metrics({"step": STEP, "mine": sums()}, feeds(), unchecked)
    assert not unchecked


def test_a_gradient_of_zero_is_named():
    with pytest.raises(UserError, match="'mine' has a loss of 2.5, whose gradient is exactly zero"):
        check_first_metrics({"step": STEP, "mine": sums(grad_norm=0.0)}, feeds(), {"mine"})


@pytest.mark.parametrize("squares", [0.0, 0.1])
def test_squares_stand_for_a_norm_that_is_not_there(squares):
    metrics = {"step": STEP, "mine": {"loss": 2.5, "count": 3.0, "grad_squares": squares}}
    unchecked = {"mine"}
    with contextlib.nullcontext() if squares else pytest.raises(UserError, match="exactly zero"):
        check_first_metrics(metrics, feeds(), unchecked)
    assert bool(unchecked) == (squares == 0)


@pytest.mark.parametrize(
    ("step", "values"),
    [({"bad_streak": 1}, {"grad_norm": float("nan")}), (STEP, {"count": 0.0, "grad_norm": 0.0})],
)
def test_steps_that_tell_nothing_are_waited_out(step, values):
    unchecked = {"mine"}
    check_first_metrics({"step": step, "mine": sums(**values)}, feeds(), unchecked)
    assert unchecked == {"mine"}


@pytest.mark.parametrize(
    ("mean", "missing"),
    [
        (Mean("corect"), "corect"),
        (Mean("loss", "words"), "words"),
        (Mean("loss", by_language=True), "language_count"),
    ],
)
def test_metrics_without_sums_are_named(mean, missing):
    with pytest.raises(UserError, match=f"'mine' declares the metric 'own' .* no sum '{missing}'"):
        check_first_metrics({"step": STEP, "mine": sums()}, feeds(own=mean), {"mine"})
