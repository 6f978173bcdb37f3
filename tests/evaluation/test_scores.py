import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from xl_flax.errors import UserError
from xl_flax.evaluation import scores, search
from xl_flax.evaluation.base import NotFiniteError
from xl_flax.evaluation.scores import found_at_1, ratio_margins
from xl_flax.evaluation.search import unit

SIMILARITIES = ("cosine", "csls", "margin")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def noisy(n, d, noise, seed=0):
    x = normal(seed, n, d)
    return x, x + noise * normal(seed + 1, n, d)


def precision_at_1(*arguments):
    forward, backward = found_at_1(*arguments)
    return forward.mean(), backward.mean()


def by_hand(x, y, similarity):
    """P@1 from the whole matrix, both ways."""

    def share_right(score, axis):
        best = score >= score.max(axis, keepdims=True) - scores.TIE  # draws may come that close
        return (best.diagonal() / best.sum(axis)).mean()

    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    cos = x @ y.T
    mean = lambda k, axis: -np.sort(-cos, axis=axis).take(range(k), axis).mean(axis, keepdims=True)  # noqa: E731
    if similarity == "csls":
        cos = 2 * cos - mean(10, 1) - mean(10, 0)
    if similarity == "margin":
        margin = cos / ((mean(4, 1) + mean(4, 0)) / 2)
        forward, backward = (
            np.where(cos >= -np.sort(-cos, axis=axis).take([3], axis), margin, -np.inf)
            for axis in (1, 0)
        )
        return share_right(forward, 1), share_right(backward, 0)
    return share_right(cos, 1), share_right(cos, 0)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@settings(max_examples=25, deadline=None)
@given(n=st.integers(10, 70), d=st.integers(4, 24), noise=st.floats(0.3, 2.0))
def test_scores_are_those_of_the_whole_matrix(similarity, n, d, noise):
    x, y = noisy(n, d, noise)
    y += 0.5  # a common direction makes hubs, and positive cosines
    x += 0.5
    found = precision_at_1(x, y, similarity)
    assert found == pytest.approx(by_hand(x, y, similarity))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_translations_with_a_little_noise_are_found_in_both_directions(similarity):
    x, y = noisy(50, 16, 0.01)
    assert precision_at_1(x, 3 * y, similarity) == (1.0, 1.0)


@pytest.mark.parametrize("n", [17, 64])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_collapsed_encoder_scores_chance(n, similarity):
    # One point, up to float32 rounding: no order of the candidates may favour the right one.
    point = np.tile(normal(0, 1, 24), (n, 1)) * (1 + 1e-7 * normal(1, n, 1))
    # By margin only the 4 nearest are candidates, whichever they are.
    tolerance = 2 / n if similarity == "margin" else 1e-6
    assert precision_at_1(point, point, similarity) == pytest.approx((1 / n, 1 / n), abs=tolerance)


def test_a_query_whose_best_candidates_tie_gets_the_share_that_is_right():
    x = np.eye(4, dtype=np.float32)
    x[1, 0] = 2  # queries 0 and 1 both point at candidates 0 and 1, which are the same
    y = np.eye(4, dtype=np.float32)
    y[1] = y[0]
    forward, backward = precision_at_1(x, y)
    assert forward == pytest.approx((0.5 + 0.5 + 1 + 1) / 4)
    assert backward == pytest.approx((1 + 0 + 1 + 1) / 4)
    forward, _ = precision_at_1(x[[0, 1, 2, 3]], y, "margin")
    assert forward == pytest.approx((0.5 + 0.5 + 1 + 1) / 4)


@pytest.mark.parametrize("similarity", ["cosine", "csls", "margin"])
def test_the_first_number_has_x_as_queries(similarity):
    x, y = noisy(60, 6, 0.8)
    y[:20] = y[0]  # queries y 0 to 19 are one vector; as candidates they tie
    forward, backward = precision_at_1(x, y, similarity)
    assert precision_at_1(y, x, similarity) == pytest.approx((backward, forward))
    assert forward != pytest.approx(backward)


def test_csls_and_margin_see_through_a_hub():
    x, y = noisy(200, 12, 0.6)
    y[0] = x.mean(axis=0) + 0.3  # near to everything
    x, y = x + 0.4, y + 0.4
    plain, csls, margin = (precision_at_1(x, y, s)[0] for s in SIMILARITIES)
    assert csls > plain and margin > plain


@pytest.mark.parametrize("similarity", ["cosine", "csls"])
@pytest.mark.parametrize("block", [5, 16, 100])
def test_blocks_give_what_the_whole_matrix_gives(monkeypatch, block, similarity):
    monkeypatch.setattr(scores, "BLOCK", block)
    x, y = noisy(37, 8, 1.0)
    expected = by_hand(x, y, similarity)
    assert 0.1 < expected[0] < 0.9
    assert precision_at_1(x, y, similarity) == pytest.approx(expected)


@pytest.mark.parametrize("n", [1997, 4796])
def test_a_copy_is_not_beaten_by_itself_in_many_dimensions(n):
    x = np.random.default_rng(0).normal(size=(n, 1024)).astype(np.float32) + 0.5
    assert [found.mean() for found in scores.found_at_1(x, x)] == [1, 1]


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_sparse_vectors_score_as_dense_ones_do(monkeypatch, similarity):
    monkeypatch.setattr(scores, "BLOCK", 16)
    monkeypatch.setattr(search, "SIMILARITIES", 100)  # two queries at a time
    x, y = (np.where(v > 0.3, v, 0) for v in noisy(41, 12, 0.8))
    x[5] = 0
    expected = found_at_1(x, y, similarity)
    assert 0.1 < np.mean(expected) < 0.9
    np.testing.assert_allclose(found_at_1(csr_array(x), csr_array(y), similarity), expected)


def test_a_sentence_without_an_embedding_is_found_by_chance_only():
    x = np.abs(normal(0, 10, 8))
    y = x.copy()
    y[3] = 0
    assert precision_at_1(x, y) == pytest.approx((0.9, (9 + 1 / 10) / 10))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])  # the last one's square is infinite
def test_vectors_without_a_length_are_an_error(similarity, value):
    x, y = noisy(20, 4, 0.1)
    y[7, 2] = value
    for sides in ((x, y), (y, x)):
        with pytest.raises(NotFiniteError, match="1 of 20 vectors are NaN or infinite"):
            found_at_1(*sides, similarity)


def test_margins_of_zero_vectors_are_zero_and_finite():
    x, y = unit(normal(0, 6, 4)), np.zeros((5, 4), np.float32)
    for margins, _ in ratio_margins(x, y, 4):
        assert (margins == 0).all()


@pytest.mark.parametrize("similarity, n", [("csls", 9), ("margin", 3)])
def test_fewer_sentences_than_neighbours_are_an_error(similarity, n):
    with pytest.raises(UserError, match=f"nearest of {n} sentences"):
        precision_at_1(normal(0, n, 4), normal(1, n, 4), similarity)


def test_an_unknown_similarity_is_an_error():
    with pytest.raises(UserError, match="'l2': choose from cosine, csls, margin"):
        precision_at_1(normal(0, 9, 4), normal(1, 9, 4), "l2")
