import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xl_flax.data import packing, shuffling
from xl_flax.data.features import Example
from xl_flax.data.framing import Framer, Part, Piece, join
from xl_flax.data.layout import Layout
from xl_flax.data.packing import best_fit, pack_in_order, pack_windows

CLS, SEP = 0, 2
SPECIAL = types.SimpleNamespace(cls=CLS, sep=SEP)


def framed(examples, length):
    framer = Framer("t", Layout(length), 1, {}, SPECIAL)
    return [p for i, e in enumerate(examples) for p in framer.parts(Example(i, (e,)))]


def joined(parts):
    return [e.texts[0].tolist() for e in join(parts, 0, {})]


@given(st.lists(st.integers(1, 40), max_size=200))
def test_best_fit_places_every_item_once_and_overfills_no_row(lengths):
    rows = best_fit(lengths, 40)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 40 for row in rows)
    # No two rows could be one.
    totals = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(totals) < 2 or totals[0] + totals[1] > 40


def test_best_fit_fills_rows_of_sentences():
    lengths = np.random.default_rng(0).gamma(2.0, 14.0, 20_000).astype(int).clip(3, 512).tolist()
    rows = best_fit(lengths, 512)
    assert sum(lengths) / (512 * len(rows)) > 0.995


@given(st.lists(st.integers(0, 60), max_size=50), st.integers(3, 20), st.randoms())
def test_nothing_is_lost_however_long_the_examples(sizes, length, random):
    examples = [np.arange(n) + 1000 * i for i, n in enumerate(sizes)]
    framing = framed(examples, length)
    ids = [part.segments[0] for part in framing]
    assert all(len(i) <= length and i[0] == CLS and i[-1] == SEP for i in ids)
    assert joined(framing) == [e.tolist() for e in examples]
    random.shuffle(framing)
    assert sorted(joined(framing)) == sorted(e.tolist() for e in examples)


def test_a_missing_piece_is_noticed():
    with pytest.raises(ValueError, match="pieces of 1 examples"):
        joined([Part((np.arange(4),), 4, Piece(0, 0, 2))])


def test_in_order_packing_keeps_the_order():
    framing = framed([np.full(n, i) for i, n in enumerate([3, 9, 1, 30, 2, 2])], 12)
    rows = list(pack_in_order(framing, 12))
    assert [id(p) for row in rows for p in row] == [id(p) for p in framing]
    assert max(sum(p.size for p in row) for row in rows) <= 12


def test_windows_bound_what_is_held(monkeypatch):
    monkeypatch.setattr(packing, "WINDOW_ROWS", 4)
    read = 0

    def stream():
        nonlocal read
        for _ in range(1000):
            read += 1
            yield Part((np.zeros(8, np.int32),), 8)

    rows = pack_windows(stream(), 16)
    next(rows)
    assert read == 8
    assert sum(len(row) for row in rows) + 2 == 1000


@pytest.mark.parametrize("held", [10**6, 2000])
def test_shuffle_is_a_seeded_permutation_in_memory_and_through_files(tmp_path, held):
    examples = [
        Example(i, tuple(np.full((i + k) % 7, i, np.int32) for k in range(1 + i % 3)))
        for i in range(500)
    ]
    first, again, other = (
        list(shuffling.shuffled(iter(examples), tmp_path, seed, held)) for seed in (1, 1, 2)
    )
    assert [e.number for e in first] == [e.number for e in again] != [e.number for e in other]
    assert sorted(e.number for e in first) == list(range(500))
    for i, texts, _ in first:
        assert [text.tolist() for text in texts] == [[i] * ((i + k) % 7) for k in range(1 + i % 3)]
    assert not list(tmp_path.iterdir())
    # A permutation at random: neighbours come from anywhere.
    order = np.array([e.number for e in first])
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.2


@st.composite
def parts_of_rows(draw):
    """Parts of K segments that fit into a row, the row's length, and a cap."""
    texts, length = draw(st.integers(1, 4)), draw(st.integers(12, 60))
    size = st.integers(2, length // texts)
    sizes = draw(st.lists(st.lists(size, min_size=texts, max_size=texts), max_size=60))
    parts = [
        Part(tuple(np.full(n, 10 * i + k) for k, n in enumerate(each)), sum(each))
        for i, each in enumerate(sizes)
    ]
    return parts, length, draw(st.integers(1, 6))


@given(parts_of_rows(), st.sampled_from([pack_windows, pack_in_order]), st.sampled_from([1, 4096]))
def test_every_part_lies_in_one_row_under_the_cap(drawn, pack, window_rows):
    parts, length, most = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "WINDOW_ROWS", window_rows)
        rows = list(pack(iter(parts), length, most))
    assert all(0 < len(row) <= most for row in rows)
    assert all(sum(part.size for part in row) <= length for row in rows)
    packed = [id(part) for row in rows for part in row]
    assert sorted(packed) == sorted(map(id, parts))
    if pack is pack_in_order:
        assert packed == list(map(id, parts))


@given(st.lists(st.integers(1, 40), max_size=200), st.integers(1, 5))
def test_best_fit_with_a_cap_loses_nothing(lengths, most):
    rows = best_fit(lengths, 40, most)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(len(row) <= most and sum(lengths[i] for i in row) <= 40 for row in rows)


@pytest.mark.parametrize("length, mean, shape", [(128, 60, 1.5), (128, 60, 6), (512, 60, 2)])
def test_the_cap_costs_little_room(length, mean, shape):
    lengths = np.random.default_rng(0).gamma(shape, mean / shape, 20_000).astype(int)
    stream = [Part((np.zeros(n, np.int32),), n) for n in lengths.clip(6, length)]
    most, again = packing.measured(stream, length)
    assert most == int(np.ceil(1.15 * length / np.mean(lengths.clip(6, length))))
    rows = list(pack_windows(again, length, most))
    assert sum(part.size for row in rows for part in row) / (length * len(rows)) > 0.95


def test_the_first_window_alone_decides_how_many_parts_a_row_may_hold(monkeypatch):
    monkeypatch.setattr(packing, "WINDOW_ROWS", 2)
    stream = [Part((np.zeros(n, np.int32),), n) for n in [*[8] * 4, *[2] * 50]]
    most, again = packing.measured(iter(stream), 16)
    assert most == 3  # 1.15 * 16 / 8, rounded up
    assert len(list(again)) == 54
    assert packing.measured([], 16)[0] == 1
