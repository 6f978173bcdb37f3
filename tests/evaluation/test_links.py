"""Links by similarity equal those of loops over words, and scores those of sets."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xl_flax.data.links import Links, read_links, write_links
from xl_flax.errors import UserError
from xl_flax.evaluation import links as links_lib
from xl_flax.evaluation.links import argmax, counts, diagonal, itermax, match, of_words, scores

SIZES = st.integers(1, 6)


def table(m, n, seed, steps=None):
    """Similarities in [0, 1]; with `steps` only so many values, so that they tie."""
    rng = np.random.default_rng(seed)
    return rng.random((m, n)) if steps is None else rng.integers(0, steps, (m, n)) / steps


def pairs(links):
    return {(int(i), int(j)) for i, j in np.argwhere(links)}


def mutual(value, m, n):
    """Word i's first best is j, and j's is i."""
    best = lambda options: max(options, key=lambda o: (o[0], -o[1]))[1]  # noqa: E731
    forward = {i: best([(value(i, j), j) for j in range(n)]) for i in range(m)}
    backward = {j: best([(value(i, j), i) for i in range(m)]) for j in range(n)}
    return {(i, j) for i, j in forward.items() if backward[j] == i}


def itermax_by_hand(s, iterations, alpha):
    """Algorithm 1 of the paper, with the exceptions that SimAlign's code makes."""
    m, n = len(s), len(s[0])
    found = mutual(lambda i, j: s[i][j], m, n)
    if min(m, n) <= 2:
        return found
    for _ in range(iterations - 1):
        rows, columns = {i for i, _ in found}, {j for _, j in found}
        if len(rows) == m or len(columns) == n:
            return found
        weights = [
            [(1.0, alpha, 0.0)[(i in rows) + (j in columns)] for j in range(n)] for i in range(m)
        ]
        new = mutual(lambda i, j, w=weights: s[i][j] * w[i][j], m, n)
        new = {(i, j) for i, j in new if not (i in rows and j in columns)}
        if not new:
            return found
        found |= new
    return found


@settings(max_examples=200, deadline=None)
@given(SIZES, SIZES, st.integers(0, 999), st.sampled_from([None, 2, 4]))
def test_argmax_and_itermax_are_those_of_loops(m, n, seed, steps):
    s = table(m, n, seed, steps)
    assert pairs(argmax(s)) == mutual(lambda i, j: s[i, j], m, n)
    for iterations, alpha in ((2, 0.9), (5, 0.7), (1, 0.9)):
        expected = itermax_by_hand(s.tolist(), iterations, alpha)
        assert pairs(itermax(s, iterations, alpha)) == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 999))
def test_match_has_the_largest_sum_of_all_assignments(m, n, seed):
    s = table(m, n, seed)
    found = pairs(match(s))
    rows, columns = (range(m), range(n)) if m <= n else (range(n), range(m))
    value = (lambda a, b: s[a, b]) if m <= n else (lambda a, b: s[b, a])
    best = max(
        sum(value(a, b) for a, b in zip(rows, order, strict=True))
        for order in itertools.permutations(columns, len(rows))
    )
    assert len(found) == min(m, n) == len({i for i, _ in found}) == len({j for _, j in found})
    assert sum(s[i, j] for i, j in found) == pytest.approx(best)


def test_itermax_by_hand():
    s = np.array([[0.9, 0.1, 0.2, 0.3], [0.1, 0.95, 0.1, 0.4], [0.2, 0.8, 0.6, 0.1]])
    assert pairs(argmax(s)) == {(0, 0), (1, 1)}
    # Word 2 gets 1, which has a link: 0.9 · 0.8 > 0.6. Word 3 gets 1, which has one, too.
    assert pairs(itermax(s)) == {(0, 0), (1, 1), (2, 1), (1, 3)}
    s[2, 2] = 0.75  # > 0.9 · 0.8
    assert pairs(itermax(s)) == {(0, 0), (1, 1), (2, 2), (1, 3)}
    assert pairs(itermax(s[:2])) == {(0, 0), (1, 1)}  # two words on one side: nothing is added
    s[2] = [0.2, 0.3, 0.6, 0.1]
    assert pairs(itermax(s)) == pairs(argmax(s)) == {(0, 0), (1, 1), (2, 2)}  # all have a link


def test_pieces_link_their_words():
    links = np.zeros((4, 3), bool)
    links[1, 0] = links[3, 2] = links[2, 0] = True
    words = np.array([0, 0, 1, 2]), np.array([0, 1, 1])
    assert pairs(of_words(links, *words)) == {(0, 0), (1, 0), (2, 1)}
    assert of_words(links, *words).shape == (3, 2)
    assert of_words(np.zeros((0, 3), bool), np.zeros(0, int), words[1]).shape == (0, 2)


@pytest.mark.parametrize(
    ("m", "n", "expected"),
    [(3, 3, [0, 1, 2]), (2, 5, [1, 3]), (5, 2, [0, 0, 1, 1, 1]), (1, 1, [0]), (3, 1, [0, 0, 0])],
)
def test_the_diagonal(m, n, expected):
    assert diagonal(m, n).argmax(axis=1).tolist() == expected
    assert diagonal(m, n).sum() == m


def test_similarities_are_cosines_between_0_and_1():
    x = np.array([[[2.0, 0.0], [0.0, 0.0]]])
    y = np.array([[[-1.0, 0.0], [3.0, 3.0], [0.0, 5.0]]])
    expected = [[0.0, (1 + 0.5**0.5) / 2, 0.5], [0.5, 0.5, 0.5]]
    np.testing.assert_allclose(links_lib.similarities(x, y)[0], expected, atol=1e-7)


def test_scores_by_hand():
    """Four links, three of them possible, two sure, of five sure ones."""
    gold = read_links("0-0 1-1 2-2 3-3 4-4 0p1", 5, 5)
    links = np.zeros((5, 5), bool)
    for i, j in ((0, 0), (1, 1), (0, 1), (4, 0)):
        links[i, j] = True
    assert counts(links, gold).tolist() == [2, 3, 4, 5]
    found = scores(counts(links, gold))
    assert found == pytest.approx(
        {"aer": 1 - 5 / 9, "precision": 3 / 4, "recall": 2 / 5, "f1": 2 * 0.75 * 0.4 / 1.15}
    )
    nothing = scores(counts(np.zeros((5, 5), bool), gold))
    assert nothing == {"aer": 1.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.integers(0, 999))
def test_scores_are_those_of_sets(m, n, seed):
    rng = np.random.default_rng(seed)
    links, sure, possible = rng.random((3, m, n)) < np.array([0.4, 0.3, 0.3])[:, None, None]
    sure[0, 0] = True
    a, s, p = pairs(links), pairs(sure), pairs(sure | possible)
    found = scores(counts(links, Links(frozenset(s), frozenset(p))))
    assert found["aer"] == pytest.approx(1 - (len(a & s) + len(a & p)) / (len(a) + len(s)))
    assert found["recall"] == len(a & s) / len(s)
    assert found["precision"] == (len(a & p) / len(a) if a else 0)
    if s == p and a:  # with sure links only, as Och and Ney say
        assert found["aer"] == pytest.approx(1 - found["f1"])


def test_links_are_read_and_written():
    gold = read_links("1p3 0-0 1-2", 2, 4)
    assert gold == Links(frozenset({(0, 0), (1, 2)}), frozenset({(0, 0), (1, 2), (1, 3)}))
    assert write_links(*gold) == "0-0 1-2 1p3"
    assert read_links("", 1, 1) == Links(frozenset(), frozenset())
    for wrong in ("0-4", "2-0", "0p4"):
        with pytest.raises(UserError, match=f"the link {wrong} names a word that is not there"):
            read_links(wrong, 2, 4)
    for wrong in ("0", "0-", "a-b", "-1-0", "0:1", "²-0"):
        with pytest.raises(UserError, match="is no link between two words"):
            read_links(wrong, 2, 4)
