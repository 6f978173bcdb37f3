"""Intervals cover what they should, and tests between systems see what is there."""

import itertools

import numpy as np
import pytest
from sklearn import metrics

from xl_flax.evaluation.bootstrap import (
    drawn_sums,
    f1,
    interval,
    macro_f1,
    permutation_p,
    ratio,
)


def test_scores_of_sums():
    assert ratio(np.array([3.0, 4.0])) == 0.75
    assert f1(np.array([2.0, 3.0, 5.0])) == 0.5
    assert ratio(np.zeros(2)) == f1(np.zeros(3)) == 0
    np.testing.assert_array_equal(ratio(np.array([[1.0, 2.0], [0.0, 0.0]])), [0.5, 0.0])
    # Two classes, a third that nobody has.
    assert macro_f1(np.array([1.0, 1, 1, 0, 2, 2, 0, 0, 0])) == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    gold, said = rng.integers(0, 5, (2, 60)) // rng.integers(1, 3)
    classes = np.arange(6)
    is_gold, is_said = gold[:, None] == classes, said[:, None] == classes
    counts = np.stack([is_gold & is_said, is_said, is_gold], axis=-1).reshape(60, -1)
    expected = metrics.f1_score(gold, said, average="macro")
    assert macro_f1(counts.sum(axis=0).astype(float)) == pytest.approx(expected, rel=1e-12)


def test_draws_are_examples_with_replacement():
    counts = np.eye(7)  # the sums are then how often each example was drawn
    sums = drawn_sums(counts, seed=1, draws=400)
    assert (sums.sum(axis=1) == 7).all() and sums.max() > 2
    np.testing.assert_allclose(sums.mean(axis=0), 1, atol=0.2)
    np.testing.assert_array_equal(sums, drawn_sums(counts, seed=1, draws=400))
    assert (sums != drawn_sums(counts, seed=2, draws=400)).any()


def test_blocks_of_draws_do_not_change_them(monkeypatch):
    counts = np.random.default_rng(0).random((50, 3))
    whole = drawn_sums(counts, seed=0, draws=64)
    monkeypatch.setattr("xl_flax.evaluation.bootstrap.BLOCK", 50 * 7)
    np.testing.assert_allclose(drawn_sums(counts, seed=0, draws=64), whole)


def test_intervals_hold_the_true_accuracy_nineteen_times_in_twenty():
    rng, held = np.random.default_rng(0), 0
    for seed in range(200):
        right = rng.random(150) < 0.7
        counts = np.stack([right, np.ones(150)], axis=1).astype(float)
        low, high = interval(ratio(drawn_sums(counts, seed, 500)))
        held += low <= 0.7 <= high
    assert 180 <= held <= 199


def test_p_is_that_of_all_permutations():
    rng = np.random.default_rng(3)
    a, b = (np.stack([rng.random(9) < p, np.ones(9)], axis=1) for p in (0.9, 0.3))
    seen = abs(ratio(a.sum(0)) - ratio(b.sum(0)))
    as_far = 0
    for swap in itertools.product([0, 1], repeat=9):
        swapped = np.array(swap, bool)[:, None]
        one, other = np.where(swapped, b, a), np.where(swapped, a, b)
        as_far += abs(ratio(one.sum(0)) - ratio(other.sum(0))) >= seen - 1e-12
    assert permutation_p(a, b, ratio) == pytest.approx(as_far / 2**9, abs=0.015)


def test_equal_systems_do_not_differ_and_p_is_not_small_by_chance():
    rng, small = np.random.default_rng(0), 0
    for seed in range(100):
        a, b = (np.stack([rng.random(80) < 0.6, np.ones(80)], axis=1) for _ in range(2))
        small += permutation_p(a, b, ratio, seed, draws=300) < 0.05
        assert permutation_p(a, a, ratio, seed, draws=20) == 1.0
    assert small <= 12
