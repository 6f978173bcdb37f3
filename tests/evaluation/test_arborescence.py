"""The best tree is the best of all trees, and that of NetworkX where it has one root."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xl_flax.evaluation.arborescence import best_tree


@functools.cache
def trees(count):
    """All trees of so many words with one root, as heads."""

    def reaches(heads, word):
        for _ in range(count):
            word = heads[word - 1]
            if word == 0:
                return True
        return False

    return [
        heads
        for heads in itertools.product(range(count + 1), repeat=count)
        if heads.count(0) == 1 and all(reaches(heads, word) for word in range(1, count + 1))
    ]


def value(scores, heads):
    return scores[np.arange(len(heads)), heads].sum()


@pytest.mark.parametrize(("count", "number"), [(1, 1), (2, 2), (3, 9), (4, 64), (5, 625)])
def test_there_are_as_many_trees_as_cayley_says(count, number):
    assert len(trees(count)) == number == count ** (count - 1)


def drawn(draw, count, **kinds):
    return draw(arrays(np.float64, (count, count + 1), **kinds))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_tree_is_better(data):
    """Whole numbers make ties and cycles; floats of all sizes cost precision."""
    count = data.draw(st.integers(1, 5))
    elements = data.draw(
        st.sampled_from([st.integers(-3, 3).map(float), st.floats(-100, 100, width=32)])
    )
    scores = drawn(data.draw, count, elements=elements)
    found = tuple(best_tree(scores))
    assert found in trees(count)
    best = max(value(scores, heads) for heads in trees(count))
    assert value(scores, found) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_networkx_finds_no_better_one(seed):
    networkx = pytest.importorskip("networkx")
    rng = np.random.default_rng(seed)
    count = int(rng.integers(8, 18))
    scores = np.round(rng.normal(size=(count, count + 1)) * 5, 1 if seed % 2 else 9)
    found = best_tree(scores)
    assert (found == 0).sum() == 1
    values = []
    for root in range(1, count + 1):  # one root: one arc from node 0
        graph = networkx.DiGraph()
        graph.add_edge(0, root, weight=scores[root - 1, 0])
        for word in range(1, count + 1):
            for head in set(range(1, count + 1)) - {word}:
                graph.add_edge(head, word, weight=scores[word - 1, head])
        tree = networkx.maximum_spanning_arborescence(graph)
        values.append(sum(weight for *_, weight in tree.edges.data("weight")))
    assert value(scores, found) == pytest.approx(max(values), abs=1e-9)


def test_long_sentences_and_nested_cycles_are_trees():
    count = 120
    scores = np.random.default_rng(0).normal(size=(count, count + 1))
    pairs = np.arange(count) ^ 1  # each word wants its neighbour, pairs of pairs each other, …
    for level in range(6):
        scores[np.arange(count), 1 + (pairs ^ (1 << level)) % count] += 40 >> level
    scores[:, 0] -= 100
    heads = best_tree(scores)
    assert (heads == 0).sum() == 1
    for word in range(count):
        for _ in range(count):
            word = heads[word] - 1
            if word < 0:
                break
        assert word < 0


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="finite"):
        best_tree(np.array([[0.0, 0, np.nan], [0, 1, 0]]))
