"""Chunks are seqeval's, whatever is predicted; repairing makes them whole."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import accuracy_score, f1_score

from xl_flax.evaluation.bootstrap import f1, ratio
from xl_flax.evaluation.tagging import Tagged, chunk_counts, repaired

BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
UPOS = ("NOUN", "VERB", "X", "SYM", "SCONJ", "INTJ")


def sentences(labels):
    pair = st.tuples(st.sampled_from(labels), st.sampled_from(labels))
    return st.lists(st.lists(pair, min_size=1, max_size=12), min_size=1, max_size=8)


def scores(drawn, repair=False):
    tagged = [Tagged(*map(list, zip(*sentence, strict=True))) for sentence in drawn]
    counts = chunk_counts(tagged, repair).counts
    return tagged, f1(counts["f1"].sum(axis=0)), ratio(counts["accuracy"].sum(axis=0))


@settings(max_examples=200, deadline=None)
@given(sentences(BIO))
def test_scores_are_seqevals(drawn):
    tagged, f1_value, accuracy = scores(drawn)
    gold, predicted = [t.gold for t in tagged], [t.predicted for t in tagged]
    with warnings.catch_warnings():  # no chunk at all
        warnings.simplefilter("ignore")
        assert abs(f1_value - f1_score(gold, predicted)) < 1e-12
    assert abs(accuracy - accuracy_score(gold, predicted)) < 1e-12


def chunks_of(tags, sentence):
    """Runs of equal tags; each of those that begin with S by itself."""
    groups = itertools.groupby(enumerate(tags), lambda at: (at[1], at[1][0] == "S" and at[0]))
    for (tag, _), places in groups:
        places = [i for i, _ in places]
        yield sentence, tag, places[0], places[-1]


@settings(max_examples=200, deadline=None)
@given(sentences(UPOS))
def test_parts_of_speech_make_chunks_of_equal_neighbours(drawn):
    tagged, f1_value, _ = scores(drawn)
    gold, said = (
        {chunk for i, t in enumerate(tagged) for chunk in chunks_of(t[side], i)} for side in (0, 1)
    )
    assert f1_value == pytest.approx(2 * len(gold & said) / (len(gold) + len(said)))


def test_repair_takes_the_last_type_and_begins_with_b():
    assert repaired(["O", "I-PER", "I-LOC", "O"]) == ["O", "B-LOC", "I-LOC", "O"]
    assert repaired(["B-PER", "B-PER", "I-PER"]) == ["B-PER", "B-PER", "I-PER"]
    assert repaired(["B-LOC", "I-PER", "B-LOC"]) == ["B-PER", "I-PER", "B-LOC"]
    assert repaired(["NOUN", "VERB"]) == ["NOUN", "VERB"]
    assert repaired([]) == []


@given(st.lists(st.sampled_from(BIO), max_size=15))
def test_what_is_repaired_is_consistent(labels):
    fixed = repaired(labels)
    assert repaired(fixed) == fixed
    assert [label == "O" for label in fixed] == [label == "O" for label in labels]
    for before, label in zip(["O", *fixed], fixed, strict=False):
        if label.startswith("I-"):
            assert before[2:] == label[2:]


def test_repairing_changes_scores_only_where_chunks_are_broken():
    whole = [[("B-PER", "B-PER"), ("I-PER", "I-PER"), ("O", "O")]]
    assert scores(whole)[1:] == scores(whole, repair=True)[1:] == (1.0, 1.0)
    broken = [[("B-LOC", "I-PER"), ("I-LOC", "I-LOC")]]
    assert scores(broken)[1] == 0.0
    assert scores(broken, repair=True)[1] == 1.0


def test_counts_are_those_of_sentences():
    counts = chunk_counts([Tagged(["B-PER"], ["B-PER"]), Tagged(["O", "O"], ["O", "B-PER"])], False)
    np.testing.assert_array_equal(counts.counts["f1"], [[1, 1, 1], [0, 1, 0]])
    np.testing.assert_array_equal(counts.counts["accuracy"], [[1, 1], [1, 2]])
    assert counts.predictions == [["B-PER"], ["O", "B-PER"]]
