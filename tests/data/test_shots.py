"""Few-shot training draws so many examples of each label, by seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xl_flax.data.features import FeatureSpec
from xl_flax.data.shots import few, few_rows
from xl_flax.data.stream import Rows
from xl_flax.errors import UserError


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 5))
def test_so_many_of_each_label(labels, shots, seed):
    labels = np.array(labels)
    chosen = few(labels, len(labels), shots, seed)
    assert len(set(chosen)) == len(chosen)
    for label in range(4):
        assert (labels[chosen] == label).sum() == min(shots, (labels == label).sum())
    assert (labels[chosen] >= 0).all()
    more = few(labels, len(labels), shots + 2, seed)
    assert set(chosen) <= set(more)
    np.testing.assert_array_equal(chosen, few(labels, len(labels), shots, seed))


def test_sentences_without_a_label_of_their_own_are_counted():
    chosen = few(None, 100, 10, 0)
    assert len(set(chosen)) == 10 and chosen.max() < 100
    assert set(chosen) != set(few(None, 100, 10, 1))


def test_rows_of_several_examples_have_no_shots():
    with pytest.raises(UserError, match=r"Rows\.shots are examples.*Rows\.packing = 'batch'"):
        Rows("t", 32, shots=5)
    assert Rows("t", 32, packing="batch", shots=5).description()["shots"] == 5


def test_all_pieces_of_an_example_are_drawn_together():
    numbers = np.repeat(np.arange(20), 3)
    batches = [
        {"example": part[:, None], "label": part[:, None] % 2}
        for part in np.array_split(np.random.default_rng(0).permutation(numbers), 4)
    ]
    specs = {"label": FeatureSpec("example", labels=("a", "b"))}
    chosen = few_rows("t", batches, specs, 4, 0)
    drawn = np.concatenate([batch["example"][:, 0] for batch in batches])[chosen]
    assert sorted(drawn) == sorted(np.repeat(np.unique(drawn), 3))
    assert np.bincount(np.unique(drawn) % 2).tolist() == [4, 4]
    with pytest.raises(UserError, match=r"Rows\.shots = 4: the examples of t have no labels"):
        few_rows("t", batches, {}, 4, 0)
    with pytest.raises(UserError, match=r"several labels \(label, other\)"):
        few_rows("t", batches, specs | {"other": specs["label"]}, 4, 0)
