"""How well vectors of two languages find each other: P@1 by cosine, CSLS and ratio margin."""

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
    if issparse(x_NxD):
        cos_N, compare = x_NxD.multiply(y_NxD).sum(axis=1), _compare_sparse
    else:
        cos_N, compare = np.einsum("nd,nd->n", x_NxD, y_NxD), _compare
    gold_N = cos_N - penalty_2xN.sum(axis=0)
    n = len(gold_N)
    parts = [slice(i, i + BLOCK) for i in range(0, n, BLOCK)]
    sides = [
        [(vectors[part], penalty_N[part], gold_N[part]) for part in parts]
        for vectors, penalty_N in zip((x_NxD, y_NxD), penalty_2xN, strict=True)
    ]
    counts = np.zeros((2, 2, n), np.int64)  # direction; above the right one, tied with it
    for rows, queries in zip(parts, sides[0], strict=True):
        for columns, candidates in zip(parts, sides[1], strict=True):
            forward, backward = compare(*queries, *candidates)
            counts[0, :, rows] += np.asarray(forward)
            counts[1, :, columns] += np.asarray(backward)
    above, tied = counts[:, 0], counts[:, 1]
    return tuple(np.where(above == 0, 1 / np.maximum(tied, 1), 0.0))


@jax.jit
def _compare(
    x_QxD, x_penalty_Q, x_gold_Q, y_CxD, y_penalty_C, y_gold_C
) -> tuple[jax.Array, jax.Array]:
    """Counts of similarities above and equal to the right one, int32[2, Q] and int32[2, C]."""
    s_QxC = products(x_QxD, y_CxD)
    return _counts(s_QxC, x_penalty_Q, x_gold_Q, y_penalty_C, y_gold_C)


def _compare_sparse(x_QxD, x_penalty_Q, x_gold_Q, y_CxD, y_penalty_C, y_gold_C) -> tuple:
    s_QxC = products(x_QxD, y_CxD)
    return _counts(s_QxC, x_penalty_Q, x_gold_Q, y_penalty_C, y_gold_C)


@jax.jit
def _counts(s_QxC, x_penalty_Q, x_gold_Q, y_penalty_C, y_gold_C) -> tuple[jax.Array, jax.Array]:
    s_QxC = s_QxC - x_penalty_Q[:, None] - y_penalty_C

    def count(margin_QxC: jax.Array, axis: int) -> jax.Array:
        above = (margin_QxC > TIE).sum(axis)
        return jnp.stack([above, (margin_QxC >= -TIE).sum(axis) - above])

    return count(s_QxC - x_gold_Q[:, None], 1), count(s_QxC - y_gold_C, 0)
