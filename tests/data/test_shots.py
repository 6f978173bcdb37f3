"""Few-shot training draws so many examples of each label, by seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xl_flax.data.shots import few
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
