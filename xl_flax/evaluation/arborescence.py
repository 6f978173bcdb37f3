"""Maximum spanning trees of dependency parsing: the best tree with one root."""

import numpy as np


def best_tree(scores_NxH: np.ndarray) -> np.ndarray:
    """The heads of the tree with the highest sum of scores in which one word is the root.

    Chu-Liu/Edmonds (McDonald et al. 2005), made to choose one root by taking so much from every
    root's score that no second one can pay (Stanojević and Cohen 2021, "A Root of a Problem", by
    reweighting; else there may be several roots, Zmigrod et al. 2020). O(N³).

    Args:
      scores_NxH: float[N, 1 + N] finite, of each word (row) the score of being the root (column 0)
        and of each word as its head (column h is word h, counted from 1); its own is not read.
        N may be 0.

    Returns:
      int[N], the number of each word's head from 1, 0 for the root. Of equal trees always the same.

    Raises:
      ValueError: a score is not finite.
    """
    count = len(scores_NxH)
    if not count:
        return np.array([], int)
    own = np.arange(1, count + 1)
    weights = np.full((count + 1, count + 1), -np.inf)  # [head, word], both from 1; 0 is above all
    weights[:, 1:] = np.asarray(scores_NxH, np.float64).T
    weights[own, own] = 0
    if not np.isfinite(weights[:, 1:]).all():
        raise ValueError("scores of heads must be finite")
    # No two trees without a difference in the number of roots are farther apart than this.
    weights[0, 1:] -= count * np.ptp(weights[:, 1:]) + 1
    weights[own, own] = -np.inf
    return _arborescence(weights)[1:]


def _arborescence(weights_NxN: np.ndarray) -> np.ndarray:
    """The head of each node in the best tree below node 0, int[N]; that of node 0 means nothing.

    Args:
      weights_NxN: [head, node], -inf where there is no arc, as into node 0.
    """
    heads = weights_NxN.argmax(axis=0)
    cycle = _cycle(heads)
    if not len(cycle):
        return heads
    # The cycle becomes one node, the last. An arc into it costs what the arc that it replaces gave.
    rest = np.setdiff1d(np.arange(len(heads)), cycle)
    into = weights_NxN[np.ix_(rest, cycle)] - weights_NxN[heads[cycle], cycle]
    out = weights_NxN[np.ix_(cycle, rest)]
    contracted = np.full((len(rest) + 1, len(rest) + 1), -np.inf)
    contracted[:-1, :-1] = weights_NxN[np.ix_(rest, rest)]
    contracted[:-1, -1] = into.max(axis=1)
    contracted[-1, :-1] = out.max(axis=0)
    found = _arborescence(contracted)
    leaves = found[:-1] == len(rest)  # of the nodes outside, those below the cycle
    heads[rest] = np.where(leaves, cycle[out.argmax(axis=0)], rest[found[:-1] % len(rest)])
    above = found[-1]
    heads[cycle[into[above].argmax()]] = rest[above]
    return heads


def _cycle(heads: np.ndarray) -> np.ndarray:
    """The nodes of a cycle among the heads of nodes 1, 2, …, none if there is no cycle."""
    heads, state = heads.tolist(), [0] * len(heads)  # 0: not seen
    state[0] = -1
    for start in range(1, len(heads)):
        node = start
        while not state[node]:
            state[node], node = start, heads[node]
        if state[node] == start:
            cycle, end = [node], node
            while (node := heads[node]) != end:
                cycle.append(node)
            return np.array(cycle)
    return np.array([], int)
