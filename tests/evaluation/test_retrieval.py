import dataclasses

import numpy as np
import pytest

from xl_flax.errors import UserError
from xl_flax.evaluation import retrieval
from xl_flax.evaluation.context import check_aligned
from xl_flax.evaluation.retrieval import SentenceRetrieval, check_finite, precision_at_1


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_translations_with_a_little_noise_are_found_in_both_directions():
    x = normal(0, 50, 16)
    assert precision_at_1(x, 3 * x + 0.01 * normal(1, 50, 16)) == (1.0, 1.0)


@pytest.mark.parametrize("n", [7, 64])
def test_a_collapsed_encoder_scores_chance(n):
    # One point, up to float32 rounding: no order of the candidates may favour the right one.
    point = np.tile(normal(0, 1, 24), (n, 1)) * (1 + 1e-7 * normal(1, n, 1))
    assert precision_at_1(point, point) == pytest.approx((1 / n, 1 / n))


def test_a_query_whose_best_candidates_tie_gets_the_share_that_is_right():
    x = np.eye(4, dtype=np.float32)
    x[1, 0] = 2  # queries 0 and 1 both point at candidates 0 and 1, which are the same
    y = np.eye(4, dtype=np.float32)
    y[1] = y[0]
    forward, backward = precision_at_1(x, y)
    assert forward == pytest.approx((0.5 + 0.5 + 1 + 1) / 4)
    assert backward == pytest.approx((1 + 0 + 1 + 1) / 4)


def test_the_first_number_has_x_as_queries():
    # All of x is nearest to y[0]; y[i] still finds x[i].
    x = np.array([[1, 0, 0], [1, 0.1, 0], [1, 0, 0.1]], np.float32)
    y = np.array([[1, 0.03, 0.03], [0, 1, -0.5], [0, -0.5, 1]], np.float32)
    assert precision_at_1(x, y) == pytest.approx((1 / 3, 1.0))


@pytest.mark.parametrize("block", [5, 16, 100])
def test_blocks_give_what_the_whole_matrix_gives(monkeypatch, block):
    monkeypatch.setattr(retrieval, "BLOCK", block)
    x = normal(0, 37, 8)
    y = x + normal(1, 37, 8)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y)]
    s = unit[0] @ unit[1].T
    own = np.arange(37)
    expected = (s.argmax(1) == own).mean(), (s.argmax(0) == own).mean()
    assert 0.1 < expected[0] < 0.9
    assert precision_at_1(x, y) == pytest.approx(expected)


def test_a_sentence_without_an_embedding_is_found_by_chance_only():
    x = np.abs(normal(0, 10, 8))
    y = x.copy()
    y[3] = 0
    assert precision_at_1(x, y) == pytest.approx((0.9, (9 + 1 / 10) / 10))


def test_nan_embeddings_are_an_error_that_names_the_language():
    x = normal(0, 4, 3)
    x[2, 1] = np.nan
    with pytest.raises(UserError, match="ntrex, layer 2: 1 of 4 embeddings of 'deu' are NaN"):
        check_finite({"eng": normal(1, 4, 3), "deu": x}, "ntrex, layer 2")


@pytest.mark.parametrize(
    "examples, message",
    [
        ({"eng": [1, 2], "deu": [1]}, "eng 2, deu 1.*one mixture per pair"),
        ({"eng": [1, 2], "deu": []}, "no examples in deu"),
        ({"eng": [1]}, "has one language"),
    ],
)
def test_tasks_that_are_not_aligned_are_an_error(examples, message):
    with pytest.raises(UserError, match=message):
        check_aligned("mixture 'm', split 'test'", examples)


@dataclasses.dataclass
class FakeDescription:
    num_layers: int = 4
    max_positions: int = 64

    @property
    def encoder(self):
        return self


def test_layers_are_chosen_by_number_or_all():
    chosen = lambda layers: SentenceRetrieval("m", layers=layers)._layers(FakeDescription())  # noqa: E731
    assert chosen("all") == (0, 1, 2, 3, 4)
    assert chosen([-1, 0, 2]) == (0, 2, 4)


@pytest.mark.parametrize("layers", [[5], [-6], [], "last", [1.5]])
def test_a_layer_that_does_not_exist_is_an_error(layers):
    with pytest.raises(UserError, match="from 0 .embeddings. to 4"):
        SentenceRetrieval("m", layers=layers)._layers(FakeDescription())
