from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xl_flax.data import filtering
from xl_flax.data.features import Example, FeatureSpec
from xl_flax.data.filtering import (
    Filter,
    Hashes,
    are_translations,
    filtered,
    hash_each_text,
    hash_texts,
)


def text(*texts):
    return tuple(np.array(list(text.encode())) for text in texts)


def numbered(texts):
    return [Example(i, each) for i, each in enumerate(texts)]


def kept(examples, rules=None, excluded=None, dropped=None, translations=True):
    """The numbers of the examples that a filter keeps."""
    rules, excluded = rules or Filter(), Hashes() if excluded is None else excluded
    dropped = Counter() if dropped is None else dropped
    return [e.number for e in filtered(examples, rules, excluded, dropped, translations)]


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


def test_hashes_tell_texts_and_their_order_apart():
    texts = [text("ab", "c"), text("a", "bc"), text("c", "ab"), text("abc"), text("ab", "c", "")]
    assert len(set(hash_texts(texts).tolist())) == len(texts)
    # The dtype of the tokens does not matter: other sources give other ones.
    wide = [tuple(one.astype(np.int64) for one in each) for each in texts]
    narrow = [tuple(one.astype(np.uint16) for one in each) for each in texts]
    assert np.array_equal(hash_texts(wide), hash_texts(narrow))


def test_repetitions_are_found_across_chunks_and_the_first_one_stays(monkeypatch):
    monkeypatch.setattr(filtering, "_CHUNK", 7)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 60, (200, 2)).tolist()
    examples = numbered(text("x" * (1 + a // 6), "y" * (1 + b // 6)) for a, b in drawn)
    first = {}
    for example in examples:
        first.setdefault(tuple(map(len, example.texts)), example.number)
    dropped = Counter()
    assert kept(examples, dropped=dropped) == sorted(first.values())
    assert dropped == {"duplicate": 200 - len(first)}


def test_an_excluded_text_is_found_in_any_place_and_empty_ones_exclude_nothing():
    excluded = Hashes()
    hash_each_text(numbered([text("ab", ""), text("cd")]), excluded)
    assert len(excluded) == 2
    examples = numbered([text("x", "ab"), text("cd", "y"), text("", "z"), text("cdab", "q")])
    for translations in (True, False):
        dropped = Counter()
        assert kept(examples, None, excluded, dropped, translations) == [2, 3]
        assert dropped == {"excluded": 2}


@pytest.mark.parametrize("sizes, fine", [((1, 13), True), ((1, 14), False), ((30, 100), True)])
def test_the_ratio_is_mild_with_short_sentences(sizes, fine):
    example = text(*("x" * size for size in sizes))
    dropped = Counter()
    assert bool(kept(numbered([example]), dropped=dropped)) == fine
    assert dropped == ({} if fine else {"length ratio": 1})


def test_only_translations_are_deduplicated_and_compared():
    pair = text("a", "b" * 30)
    assert kept(numbered([pair, pair]), translations=False) == [0, 1]
    assert kept(numbered([text("ab")] * 3), translations=False) == [0, 1, 2]
    assert [are_translations(names, {}) for names in (["a"], ["a", "b"], ["a", "a"])] == [
        False,
        True,
        False,
    ]
    assert not are_translations(["a", "b"], {"label": FeatureSpec("example")})
