"""How well vectors of two languages find each other: P@1 by cosine, CSLS and ratio margin."""

import itertools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import issparse

from xl_flax.errors import UserError
from xl_flax.evaluation.search import Vectors, nearest_both, products, unit

Similarity = Literal["cosine", "csls", "margin"]
NEIGHBOURS = {"cosine": None, "csls": 10, "margin": 4}  # k, as in the papers

BLOCK = 4096  # sentences on each side whose similarities exist at once: 64 MiB
TIE = 1e-6  # similarities closer than float32 can tell apart count as equal


def found_at_1(
    x_NxD: Vectors, y_NxD: Vectors, similarity: Similarity = "cosine"
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows find their own row of the other side first: their mean is P@1.

    "cosine": the candidate of the largest cosine. "csls": of the largest 2 cos(x, y) - r(x) - r(y),
    where r is the mean cosine to the 10 nearest of the other side (Conneau, Lample et al. 2018,
    arXiv:1710.04087, eq. 3). "margin": among the 4 nearest, of the largest ratio margin (Artetxe
    and Schwenk 2019, arXiv:1811.01136, eq. 3); 1 - P@1 is LASER's xSIM error rate.

    Similarities are computed in blocks: memory grows with N, not with N².

    Returns:
      float64[N] of the queries x searched in y, and of the queries y searched in x: 1 if the right
      candidate is the best, 0 if another is better. If it ties with k others for the first place
      1 / (k + 1), the expected value of breaking ties at random.

    Raises:
      NotFiniteError: vectors are NaN or infinite.
      UserError: `similarity` is unknown, or there are fewer sentences than neighbours to average.
    """
    if similarity not in get_args(Similarity):
        raise UserError(f"similarity {similarity!r}: choose from {', '.join(get_args(Similarity))}")
    x_NxD, y_NxD = unit(x_NxD), unit(y_NxD)
    k = NEIGHBOURS[similarity]
    if similarity == "margin":
        return tuple(map(_share_of_best, ratio_margins(x_NxD, y_NxD, k)))
    if similarity == "cosine":
        return _blockwise(x_NxD, y_NxD, np.zeros((2, x_NxD.shape[0]), np.float32))
    hubness = [cos.mean(axis=1) for cos, _ in nearest_both(x_NxD, y_NxD, k)]
    return _blockwise(x_NxD, y_NxD, np.stack(hubness) / 2)  # half of CSLS: the same order


def ratio_margins(
    x_NxD: Vectors, y_MxD: Vectors, k: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Ratio margins of the k nearest candidates of each sentence, in both directions.

    margin(x, y) = cos(x, y) / ((r(x) + r(y)) / 2), r = mean cosine to the k nearest of the other
    side (Artetxe and Schwenk 2019, arXiv:1811.01136). A denominator that is not positive, as of
    zero vectors, has no meaning and is replaced by 1e-6.

    Args:
      x_NxD: of length 1.
      y_MxD: of length 1.
      k: neighbours.

    Returns:
      For x: margins float32[N, k] and rows in y, int64[N, k]; for y: the same the other way round.

    Raises:
      UserError: one side has fewer than k sentences.
    """
    (x_cos, x_to_y), (y_cos, y_to_x) = nearest_both(x_NxD, y_MxD, k)
    x_mean, y_mean = x_cos.mean(axis=1), y_cos.mean(axis=1)

    def margins(cos: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
        return cos / np.maximum((own[:, None] + other) / 2, 1e-6)

    return (
        (margins(x_cos, x_mean, y_mean[x_to_y]), x_to_y),
        (margins(y_cos, y_mean, x_mean[y_to_x]), y_to_x),
    )


def _share_of_best(candidates: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """float64[N], of each row: is candidate i = row i the best, or which share of the best?"""
    score_Nxk, index_Nxk = candidates
    best_Nxk = score_Nxk >= score_Nxk.max(axis=1, keepdims=True) - TIE
    right_Nxk = index_Nxk == np.arange(len(index_Nxk))[:, None]
    return (best_Nxk & right_Nxk).sum(axis=1) / best_Nxk.sum(axis=1)


def _blockwise(x_NxD: Vectors, y_NxD: Vectors, penalty_2xN: np.ndarray) -> tuple:
    """As `found_at_1`, by cos(x, y) - penalty(x) - penalty(y), among all candidates."""
    n = x_NxD.shape[0]
    parts = [slice(i, i + BLOCK) for i in range(0, n, BLOCK)]
    put = (lambda part: part) if issparse(x_NxD) else jax.device_put
    x_blocks, y_blocks = ([put(v[part]) for part in parts] for v in (x_NxD, y_NxD))
    x_penalties, y_penalties = ([own[part] for part in parts] for own in penalty_2xN)
    counts = np.zeros((2, 2, n), np.int64)  # direction; above the right one, tied with it

    def add(i: int, j: int, forward: jax.Array, backward: jax.Array) -> None:
        counts[0, :, parts[i]] += np.asarray(forward)
        counts[1, :, parts[j]] += np.asarray(backward)

    # The right candidates' scores come from these very products: others of the same vectors may
    # differ by more than TIE, and a copy would be beaten by itself.
    gold = []
    for i, (x, y) in enumerate(zip(x_blocks, y_blocks, strict=True)):
        own, *found = _compare_right(products(x, y), x_penalties[i], y_penalties[i])
        gold.append(own)
        add(i, i, *found)
    for i, j in itertools.permutations(range(len(parts)), 2):
        queries, candidates = (x_penalties[i], gold[i]), (y_penalties[j], gold[j])
        add(i, j, *_compare(products(x_blocks[i], y_blocks[j]), queries, candidates))
    above, tied = counts[:, 0], counts[:, 1]
    return tuple(np.where(above == 0, 1 / np.maximum(tied, 1), 0.0))


@jax.jit
def _compare_right(s_NxN, x_penalty_N, y_penalty_N) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The score of each right candidate, which is on the diagonal, and counts as `_compare`."""
    gold_N = jnp.diagonal(s_NxN) - x_penalty_N - y_penalty_N
    return gold_N, *_compare(s_NxN, (x_penalty_N, gold_N), (y_penalty_N, gold_N))


@jax.jit
def _compare(s_QxC, queries, candidates) -> tuple[jax.Array, jax.Array]:
    """Counts of similarities above and equal to the right one, int32[2, Q] and int32[2, C]."""
    (x_penalty_Q, x_gold_Q), (y_penalty_C, y_gold_C) = queries, candidates
    s_QxC = s_QxC - x_penalty_Q[:, None] - y_penalty_C

    def count(margin_QxC: jax.Array, axis: int) -> jax.Array:
        above = (margin_QxC > TIE).sum(axis)
        return jnp.stack([above, (margin_QxC >= -TIE).sum(axis) - above])

    return count(s_QxC - x_gold_Q[:, None], 1), count(s_QxC - y_gold_C, 0)
