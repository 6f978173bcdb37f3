"""How far a score moves when the test is drawn again, and whether two systems differ.

Scores are functions of sums over examples: of correct answers, of words, of chunks that were found.
So a test set is drawn again by weights of its examples, and predictions are not scored anew.

Shapes: n examples, R draws, k numbers per example.
"""

from collections.abc import Callable

import numpy as np

DRAWS = 1000
LEVEL = 0.95
BLOCK = 1 << 22  # weights that exist at once

# From sums float64[..., k] to values float64[...].
Score = Callable[[np.ndarray], np.ndarray]


def ratio(sums: np.ndarray) -> np.ndarray:
    """(a, b) -> a / b, 0 where there is nothing: an accuracy, or a mean over examples."""
    return np.divide(sums[..., 0], sums[..., 1], np.zeros(sums.shape[:-1]), where=sums[..., 1] > 0)


def f1(sums: np.ndarray) -> np.ndarray:
    """(found, predicted, gold) -> 2 found / (predicted + gold), 0 where there is nothing."""
    both = sums[..., 1] + sums[..., 2]
    return np.divide(2 * sums[..., 0], both, np.zeros(both.shape), where=both > 0)


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """(found, predicted, gold) of each class -> mean F1 of the classes predicted or gold."""
    by_class = sums.reshape(*sums.shape[:-1], -1, 3)
    there = (by_class[..., 1] + by_class[..., 2] > 0).sum(axis=-1)
    return f1(by_class).sum(axis=-1) / np.maximum(there, 1)


def drawn_sums(counts: np.ndarray, seed: int, draws: int = DRAWS) -> np.ndarray:
    """Sums float64[R, k] over n examples drawn with replacement, R times (Efron 1979, bootstrap).

    Args:
      counts: float64[n, k].
      seed: of the draws; the same seed and n draw the same examples, so that two systems are paired
        (Koehn 2004, Statistical Significance Tests for Machine Translation Evaluation, §3).
      draws: R.
    """
    n = len(counts)
    rng = np.random.default_rng([seed, n])
    sums = np.empty((draws, counts.shape[1]))
    step = max(1, BLOCK // max(n, 1))
    for first in range(0, draws, step):
        own = min(step, draws - first)
        drawn = rng.integers(n, size=(own, n))
        drawn += np.arange(own)[:, None] * n
        weights = np.bincount(drawn.ravel(), minlength=own * n).reshape(own, n)
        sums[first : first + own] = weights @ counts
    return sums


def interval(values: np.ndarray) -> tuple[float, float]:
    """The percentiles between which `LEVEL` of the drawn values lie."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def permutation_p(
    a: np.ndarray, b: np.ndarray, score: Score, seed: int = 0, draws: int = 10_000
) -> float:
    """How often chance alone parts two systems as far, two-sided: approximate randomisation.

    In each draw every example's results change sides or not (Noreen 1989; Yeh 2000, More accurate
    tests for the statistical significance of result differences).

    Args:
      a: float64[n, k] of one system.
      b: of the other, on the same examples.
      score: of sums.
      seed: of the draws.
      draws: R; the smallest p is 1 / (R + 1).
    """
    rng = np.random.default_rng([seed, len(a)])
    seen = abs(float(score(a.sum(axis=0)) - score(b.sum(axis=0))))
    total, difference, as_far = a.sum(axis=0) + b.sum(axis=0), b - a, 0
    step = max(1, BLOCK // max(len(a), 1))
    for first in range(0, draws, step):
        own = min(step, draws - first)
        changed = rng.integers(2, size=(own, len(a)), dtype=np.int8) @ difference
        one = a.sum(axis=0) + changed
        # A sum in another order may miss the same value by its last bits.
        as_far += int((abs(score(one) - score(total - one)) >= seen - 1e-12).sum())
    return (as_far + 1) / (draws + 1)
