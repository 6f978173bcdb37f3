"""Examples of a batch are laid out in few rows, and nothing of them is lost or mixed up."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from xl_flax.data.batch_packing import MOST, SIZES, pack_batch
from xl_flax.data.features import FeatureSpec

PAD, LENGTH = 1, 24
SPECS = {
    "label": FeatureSpec("example", labels=("a", "b")),
    "score": FeatureSpec("example", "float32"),
    "tag": FeatureSpec("token", labels=("x", "y")),
    "answer": FeatureSpec("span"),
}


def single_rows(sizes, languages, texts, seed):
    """One example a row, of so many tokens in `texts` segments."""
    rng, n = np.random.default_rng(seed), len(sizes)
    batch = {name: np.zeros((n, LENGTH), np.int32) for name in ("segment_ids", "positions")}
    batch["tokens"] = np.full((n, LENGTH), PAD, np.int32)
    batch["tag"] = np.full((n, LENGTH), -1, np.int32)
    batch["answer"] = np.full((n, 1, 2), -1, np.int32)
    batch["languages"] = np.repeat(np.asarray(languages, np.int32)[:, None], texts, axis=1)
    batch["row_id"] = rng.permutation(1000)[:n].astype(np.int32)
    for name, values in (
        ("example", rng.permutation(n)),
        ("piece", np.zeros(n)),
        ("label", rng.integers(2, size=n)),
    ):
        batch[name] = values.astype(np.int32)[:, None]
    batch["score"] = rng.random((n, 1)).astype(np.float32)
    for i, size in enumerate(sizes):
        cuts = np.sort(rng.integers(1, size, texts - 1)) if texts > 1 else []
        for k, (first, last) in enumerate(zip([0, *cuts], [*cuts, size], strict=True)):
            batch["segment_ids"][i, first:last] = k + 1
            batch["positions"][i, first:last] = np.arange(last - first)
        batch["tokens"][i, :size] = rng.integers(5, 90, size)
        batch["tag"][i, :size] = rng.integers(-1, 2, size)
        if rng.random() < 0.7:
            batch["answer"][i, 0] = np.sort(rng.integers(0, size, 2))
    return batch


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(3, LENGTH), st.integers(0, 2)), min_size=1, max_size=40),
    st.integers(1, 2),
    st.sampled_from([1, 2, 3, 8]),
    st.integers(0, 9),
)
def test_every_example_is_found_again(examples, texts, multiple, seed):
    sizes, languages = zip(*examples, strict=True)
    batch = single_rows(sizes, languages, texts, seed)
    packed = pack_batch(batch, texts, SPECS, PAD, multiple)
    assert {k: v.dtype for k, v in packed.items()} == {k: v.dtype for k, v in batch.items()}
    rows = len(packed["tokens"])
    assert rows % multiple == 0
    assert rows <= multiple * -(-len(sizes) // multiple) + multiple * SIZES
    assert all(len(array) == rows for array in packed.values())

    found = {}
    for row in range(rows):
        for place in range(MOST):
            number = packed["example"][row, place]
            columns = np.flatnonzero(
                (packed["segment_ids"][row] > place * texts)
                & (packed["segment_ids"][row] <= (place + 1) * texts)
            )
            assert (number >= 0) == bool(len(columns))
            if number >= 0:
                found[number] = row, place, columns
    assert sorted(found) == list(range(len(sizes)))
    for i, size in enumerate(sizes):
        row, place, columns = found[batch["example"][i, 0]]
        assert columns.tolist() == list(range(columns[0], columns[0] + size))
        for name in ("tokens", "positions", "tag"):
            np.testing.assert_array_equal(packed[name][row, columns], batch[name][i, :size])
        np.testing.assert_array_equal(
            packed["segment_ids"][row, columns] - place * texts, batch["segment_ids"][i, :size]
        )
        for name in ("label", "score", "piece"):
            assert packed[name][row, place] == batch[name][i, 0]
        answer = batch["answer"][i, 0]
        np.testing.assert_array_equal(
            packed["answer"][row, place], answer + columns[0] if answer[0] >= 0 else answer
        )
        np.testing.assert_array_equal(packed["languages"][row], batch["languages"][i])
    used = packed["segment_ids"] != 0
    assert (packed["tokens"][~used] == PAD).all()
    assert used.sum() == sum(sizes)
    assert (packed["row_id"] >= 0).tolist() == used.any(axis=1).tolist()
    assert set(packed["row_id"][packed["row_id"] >= 0]) <= set(batch["row_id"])


def test_short_examples_share_rows():
    batch = single_rows([6] * 32, [0] * 32, 1, 0)
    assert len(pack_batch(batch, 1, SPECS, PAD, 1)["tokens"]) == 8  # four to a row
    assert len(pack_batch(batch, 1, SPECS, PAD, 8)["tokens"]) == 8


def test_the_number_of_rows_takes_few_values():
    rng = np.random.default_rng(0)
    numbers = {
        len(
            pack_batch(single_rows(rng.integers(3, LENGTH, 32), [0] * 32, 1, i), 1, SPECS, PAD, 1)[
                "tokens"
            ]
        )
        for i in range(50)
    }
    assert len(numbers) <= 3 and all(number % 4 == 0 for number in numbers)
