from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xl_flax.data import filtering
from xl_flax.data.filtering import Filter, Hashes, filtered, hash_sides, hash_texts


def text(*sides):
    return tuple(np.array(list(side.encode())) for side in sides)


@given(st.lists(st.lists(st.integers(0, 30), max_size=40), max_size=12))
def test_a_set_of_hashes_is_a_set(batches):
    hashes, known = Hashes(), set()
    for batch in batches:
        array = np.array(batch, np.uint64) * np.uint64(2**58)  # up to the largest
        assert hashes.has(array).tolist() == [int(h) in known for h in array]
        expected = []
        for h in array.tolist():
            expected.append(h not in known)
            known.add(h)
        assert hashes.add(array).tolist() == expected
        assert len(hashes) == len(known)


def test_hashes_tell_sides_and_their_order_apart():
    texts = [text("ab", "c"), text("a", "bc"), text("c", "ab"), text("abc"), text("ab", "c", "")]
    assert len(set(hash_texts(texts).tolist())) == len(texts)
    # The dtype of the tokens does not matter: other sources give other ones.
    wide = [tuple(side.astype(np.int64) for side in sides) for sides in texts]
    narrow = [tuple(side.astype(np.uint16) for side in sides) for sides in texts]
    assert np.array_equal(hash_texts(wide), hash_texts(narrow))


def test_repetitions_are_found_across_chunks_and_the_first_one_stays(monkeypatch):
    monkeypatch.setattr(filtering, "_CHUNK", 7)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 60, (200, 2)).tolist()
    examples = [(i, text("x" * (1 + a // 6), "y" * (1 + b // 6))) for i, (a, b) in enumerate(drawn)]
    first = {}
    for number, sides in examples:
        first.setdefault(tuple(map(len, sides)), number)
    dropped = Counter()
    kept = [n for n, _ in filtered(examples, Filter(), Hashes(), dropped)]
    assert kept == sorted(first.values())
    assert dropped == {"duplicate": 200 - len(first)}


def test_an_excluded_text_is_found_on_any_side_and_empty_ones_exclude_nothing():
    excluded = Hashes()
    hash_sides([text("ab", ""), text("cd")], excluded)
    assert len(excluded) == 2
    examples = list(enumerate([text("x", "ab"), text("cd", "y"), text("", "z"), text("cdab", "q")]))
    dropped = Counter()
    kept = filtered(examples, Filter(), excluded, dropped)
    assert [n for n, _ in kept] == [2, 3] and dropped == {"excluded": 2}


@pytest.mark.parametrize("sizes, kept", [((1, 13), True), ((1, 14), False), ((30, 100), True)])
def test_the_ratio_is_mild_with_short_sentences(sizes, kept):
    example = text(*("x" * size for size in sizes))
    dropped = Counter()
    assert bool(list(filtered([(0, example)], Filter(), Hashes(), dropped))) == kept
    assert dropped == ({} if kept else {"length ratio": 1})


def test_text_in_one_language_is_neither_deduplicated_nor_compared():
    examples = [(i, text("ab")) for i in range(3)]
    assert list(filtered(examples, Filter(), Hashes(), Counter())) == examples
