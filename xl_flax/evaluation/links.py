"""Links between words by the similarity of their vectors, and their scores against gold links.

Shapes: M words of a sentence, N of its translation, P and Q their pieces.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np

from xl_flax.data.links import Links

Method = Literal["argmax", "itermax", "match"]
ITERATIONS, ALPHA = 2, 0.9  # of itermax, as in SimAlign's code


def argmax(similarity_MxN: np.ndarray) -> np.ndarray:
    """Words that are each other's nearest; of equally near ones the first.

    "Argmax" of Jalili Sabet et al. (2020, arXiv:2004.08728, section 2.3).

    Returns:
      bool[M, N].
    """
    forward, backward = similarity_MxN.argmax(axis=1), similarity_MxN.argmax(axis=0)
    links_MxN = np.zeros(similarity_MxN.shape, bool)
    own = np.arange(len(forward))
    mutual = backward[forward] == own
    links_MxN[own[mutual], forward[mutual]] = True
    return links_MxN


def itermax(
    similarity_MxN: np.ndarray, iterations: int = ITERATIONS, alpha: float = ALPHA
) -> np.ndarray:
    """`argmax`, again and again: what is linked stays so, and may get a second link.

    "Itermax" of Jalili Sabet et al. (2020, arXiv:2004.08728, algorithm 1). From the second time on,
    similarities count `alpha` times where one of the words has a link, and not at all where both
    have. As in SimAlign's code nothing is added where one side has at most two words, or only words
    with a link.

    Args:
      similarity_MxN: not negative.
      iterations: how often at most.
      alpha: from 0 to 1.

    Returns:
      bool[M, N].
    """
    links_MxN = argmax(similarity_MxN)
    if min(links_MxN.shape) <= 2:
        return links_MxN
    for _ in range(iterations - 1):
        x_M, y_N = links_MxN.any(axis=1), links_MxN.any(axis=0)
        if x_M.all() or y_N.all():
            break
        both_MxN = x_M[:, None] & y_N
        weight_MxN = np.where(x_M[:, None] | y_N, alpha, 1.0) * ~both_MxN
        added_MxN = argmax(similarity_MxN * weight_MxN) & ~both_MxN
        if not added_MxN.any():
            break
        links_MxN |= added_MxN
    return links_MxN


def match(similarity_MxN: np.ndarray) -> np.ndarray:
    """The links of the largest sum of similarities in which each word has one at most.

    "Match" of Jalili Sabet et al. (2020, arXiv:2004.08728, section 2.3): the side with fewer words
    is linked whole.

    Returns:
      bool[M, N].
    """
    from scipy.optimize import linear_sum_assignment  # late: every command imports this module

    links_MxN = np.zeros(similarity_MxN.shape, bool)
    links_MxN[linear_sum_assignment(similarity_MxN, maximize=True)] = True
    return links_MxN


METHODS: dict[Method, Callable[[np.ndarray], np.ndarray]] = {
    "argmax": argmax,
    "itermax": itermax,
    "match": match,
}


def similarities(x_LxMxD: np.ndarray, y_LxNxD: np.ndarray) -> np.ndarray:
    """float32[Layers, M, N], (1 + cosine) / 2 as in SimAlign, so that itermax can weigh them."""
    x, y = map(_unit, (x_LxMxD, y_LxNxD))
    return (1 + x @ y.transpose(0, 2, 1)) / 2


def _unit(x_LxMxD: np.ndarray) -> np.ndarray:
    return x_LxMxD / np.maximum(np.linalg.norm(x_LxMxD, axis=-1, keepdims=True), 1e-12)


def of_words(links_PxQ: np.ndarray, words_P: np.ndarray, words_Q: np.ndarray) -> np.ndarray:
    """Words are linked if any of their pieces are.

    Args:
      links_PxQ: bool, between pieces.
      words_P: the number of each piece's word, from 0.
      words_Q: of the other side's.

    Returns:
      bool[M, N], of the words that have a piece here.
    """
    links_MxN = np.zeros((words_P.max(initial=-1) + 1, words_Q.max(initial=-1) + 1), bool)
    p, q = np.nonzero(links_PxQ)
    links_MxN[words_P[p], words_Q[q]] = True
    return links_MxN


def diagonal(m: int, n: int) -> np.ndarray:
    """Each word i linked to the one as far through the translation, (i + 1/2) n / m; bool[M, N]."""
    links_MxN = np.zeros((m, n), bool)
    own = np.arange(m)
    links_MxN[own, (2 * own + 1) * n // (2 * m)] = True
    return links_MxN


def counts(links_MxN: np.ndarray, gold: Links) -> np.ndarray:
    """What scores are made of: links that are sure, that are possible, that are there; sure ones.

    Returns:
      int64[4]: |A ∩ S|, |A ∩ P|, |A|, |S|, of links A.
    """
    found = set(zip(*(axis.tolist() for axis in np.nonzero(links_MxN)), strict=True))
    return np.array(
        [len(found & gold.sure), len(found & gold.possible), len(found), len(gold.sure)], np.int64
    )


def scores(counts_4: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of sums of `counts`, over all sentences (Och and Ney 2003, equation 18 and above it).

    Args:
      counts_4: [..., 4].

    Returns:
      float64[...] each: "aer" = 1 - (|A ∩ S| + |A ∩ P|) / (|A| + |S|), the alignment error rate;
      "precision" = |A ∩ P| / |A|, 0 without links; "recall" = |A ∩ S| / |S|; "f1", their harmonic
      mean, as SimAlign's.
    """
    sure, possible, found, gold = np.moveaxis(counts_4.astype(np.float64), -1, 0)
    # Of sentences drawn again none may have sure links; the recall of no link is then 0.
    precision, recall = possible / np.maximum(found, 1), sure / np.maximum(gold, 1)
    return {
        "aer": 1 - (sure + possible) / np.maximum(found + gold, 1),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / np.maximum(precision + recall, 1e-12),
    }
