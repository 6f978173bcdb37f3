import types

import numpy as np
import pytest

from xl_flax.evaluation.unshared import decoded, share_a_string, strings

UNK = 0


def vocabulary(*pieces):
    """One whose id i stands for piece i - 1; 0 is unknown."""
    return types.SimpleNamespace(
        special=types.SimpleNamespace(unk=UNK),
        decode=lambda ids: "".join(pieces[i - 1] for i in ids),
    )


@pytest.mark.parametrize(
    "one, other, shared",
    [
        ("In 1984.", "x 4 y", True),  # one digit is enough
        ("In 1984.", "x 2 y", False),
        ("٣", "3", False),  # another character, as for the encoder
        ("Berlin", "in BERLIN,", True),
        ("Berliner", "berlinese", True),  # inside words
        ("abc", "abc", False),  # three
        ("abcd", "xabcdx", True),
        ("ab cd", "abcd", False),  # not across spaces
        ("ab-cd", "ab-cd", False),  # nor hyphens
        ("Ｎａｍｅ", "name", True),  # wide letters
        ("ﬁnal", "final", True),  # a ligature
        ("STRASSE", "Straße", True),
        ("हिन्दी", "हिन्दू", True),  # vowel signs belong to words
        ("北京大学", "在北京大学里", True),  # no spaces
        ("_____", "_____", False),
        ("", "anything 1", False),
    ],
)
def test_digits_and_four_letters_of_a_word_are_shared(one, other, shared):
    assert (not strings(one).isdisjoint(strings(other))) is shared
    assert (not strings(other).isdisjoint(strings(one))) is shared


def test_sentences_are_compared_with_their_own_translation_only():
    words = vocabulary(" name", " 7", " wort", " mot")
    texts = {
        "deu": [np.array(ids) for ids in ([1, 3], [2, 3], [3], [], [3])],
        "eng": [np.array(ids) for ids in ([4, 1], [4, 2], [4], [], [1])],
        "fra": [np.array(ids) for ids in ([4, 4], [4], [4], [], [3])],
    }
    shared = share_a_string(texts, [("deu", "eng"), ("eng", "fra")], words)
    assert shared["deu", "eng"].tolist() == [True, True, False, False, False]
    assert shared["eng", "fra"].tolist() == [False, False, False, False, False]
    assert list(shared) == [("deu", "eng"), ("eng", "fra")]


def test_unknown_pieces_are_no_string_and_join_none():
    letters = vocabulary("ab", "cd", " ")
    assert decoded([1, UNK, 2], letters) == "ab cd"
    assert strings(decoded(np.array([UNK, UNK, 1, UNK, 2, UNK]), letters)) == set()
    assert strings(decoded([1, 2], letters)) == {"abcd"}
