import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from xl_flax.evaluation import scores, search
from xl_flax.evaluation.lexical import length, tf_idf
from xl_flax.evaluation.scores import found_at_1
from xl_flax.evaluation.search import unit


def sentences(seed, n, pieces=30):
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 5 + pieces, size) for size in rng.integers(1, 9, n)]


def by_hand(x, y):
    """Cosines of the whole vectors, with every piece a column."""
    texts = [Counter(map(int, s)) for s in [*x, *y]]
    df = Counter(piece for text in texts for piece in text)
    idf = {piece: math.log((1 + len(texts)) / (1 + n)) + 1 for piece, n in df.items()}
    vectors = [{p: n * idf[p] for p, n in text.items()} for text in texts]
    norm = lambda v: math.sqrt(sum(w * w for w in v.values()))  # noqa: E731
    return [
        [
            sum(w * b.get(p, 0) for p, w in a.items()) / (norm(a) * norm(b))
            for b in vectors[len(x) :]
        ]
        for a in vectors[: len(x)]
    ]


def test_cosines_of_tf_idf_are_those_of_the_whole_vectors():
    x, y = sentences(0, 25), [s + 15 for s in sentences(1, 40)]  # half of the pieces in common
    a, b = tf_idf(x, y)
    np.testing.assert_allclose((a @ b.T).toarray(), by_hand(x, y), atol=1e-6)
    for side in (a, b):
        np.testing.assert_allclose(np.linalg.norm(side.toarray(), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("similarity", ["cosine", "margin"])
def test_memory_grows_with_the_text_and_not_with_its_pieces(monkeypatch, similarity):
    monkeypatch.setattr(scores, "BLOCK", 256)
    monkeypatch.setattr(search, "SIMILARITIES", 2**16)
    x = list(np.arange(12_000).reshape(2000, 6))  # all pieces are rare, and in both languages
    tracemalloc.start()
    found = found_at_1(*tf_idf(x, x), similarity)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.min(found) == 1
    assert peak < 20e6  # every piece of every sentence would be 2000 · 12,000 · 4 B = 96 MB


def test_languages_without_a_common_piece_are_at_chance():
    x = sentences(0, 20)
    a, b = tf_idf(x, [s + 1000 for s in x])
    assert found_at_1(a, b)[0].mean() == pytest.approx(1 / 20)


def test_an_empty_sentence_is_like_no_other():
    a, b = tf_idf([np.array([7, 8]), np.array([], int)], [np.array([7, 9]), np.array([7])])
    assert ((a @ b.T).toarray() > 0).tolist() == [[True, True], [False, False]]


def test_the_nearest_by_cosine_is_the_nearest_in_length():
    rng = np.random.default_rng(0)
    sizes = [rng.integers(0, 500, 200), rng.integers(1, 120, 200)]
    a, b = length(*([np.zeros(n, int) for n in own] for own in sizes))
    relative = [own / own.mean() for own in sizes]
    distance = np.abs(relative[0][:, None] - relative[1])
    span = np.ptp(np.concatenate(relative))
    np.testing.assert_allclose(unit(a) @ unit(b).T, 1 - 2 * distance / (span + 1), atol=1e-5)
    # As precise as scores are: what ties has the same length.
    best = distance.min(axis=1, keepdims=True)
    near = np.abs(distance - best) < 1e-9
    expected = np.where(near.diagonal(), 1 / near.sum(axis=1), 0).mean()
    assert found_at_1(a, b)[0].mean() == pytest.approx(expected)


def test_sentences_of_one_length_are_at_chance():
    same = [np.zeros(4, int)] * 10
    assert found_at_1(*length(same, same))[0].mean() == pytest.approx(1 / 10)
