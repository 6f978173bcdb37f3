"""Inference pairs and passages: right labels, right spans, and no way out for a bag of words."""

import collections

import numpy as np
import pytest

from xl_flax.data.synthetic.inference import LABELS, inference_pair
from xl_flax.data.synthetic.language import FAMILY
from xl_flax.data.synthetic.passages import passage

ALPHA, DELTA = FAMILY["alpha"], FAMILY["delta"]


def deeds(sentence) -> list[tuple]:
    """(subject, verb, object) of each clause in words, and whether it is negated; from the tree."""
    found = []
    for i, (upos, relation) in enumerate(zip(sentence.upos, sentence.relations, strict=True)):
        if upos == "VERB" and relation in ("root", "conj"):
            mine = {
                sentence.relations[j]: sentence.words[j]
                for j, head in enumerate(sentence.heads)
                if head == i + 1
            }
            found.append((mine["nsubj"], sentence.words[i], mine["obj"], "advmod" in mine))
    return found


def test_labels_follow_from_the_roles():
    labels = collections.Counter()
    for i in range(600):
        pair = inference_pair(ALPHA, "test", i)
        premise = {(s, v, o) for s, v, o, _ in deeds(pair.premise)}
        ((s, v, o, negated),) = deeds(pair.hypothesis)
        if (s, v, o) in premise:
            label = "contradiction" if negated else "entailment"
        elif (o, v, s) in premise:
            label = "entailment" if negated else "contradiction"
        else:
            label = "neutral"
        assert pair.label == label
        labels[label] += 1
    assert set(labels) == set(LABELS) and min(labels.values()) > 150


def test_pairs_mean_the_same_in_every_language_and_may_cross_languages():
    for i in range(50):
        a, b = inference_pair(ALPHA, "test", i), inference_pair(DELTA, "test", i)
        cross = inference_pair(ALPHA, "test", i, DELTA)
        assert (a.label, a.premise.meaning) == (b.label, b.premise.meaning)
        assert (cross.premise, cross.hypothesis) == (a.premise, b.hypothesis)


def bag_of_words(pairs) -> np.ndarray:
    """Presence of each word in the premise, in the hypothesis and in both, and a constant."""
    vocabulary = {w for p in pairs for s in (p.premise, p.hypothesis) for w in s.words}
    ids = {w: i for i, w in enumerate(sorted(vocabulary))}
    features = np.zeros((len(pairs), 3, len(ids)), np.float32)
    for row, pair in zip(features, pairs, strict=True):
        premise, hypothesis = ([ids[w] for w in s.words] for s in (pair.premise, pair.hypothesis))
        row[0, premise] = 1
        row[1, hypothesis] = 1
        row[2, list({*premise} & {*hypothesis})] = 1
    flat = features.reshape(len(pairs), -1)
    return np.c_[flat, np.ones(len(pairs), np.float32)]


def logistic_regression(x, y, classes: int, steps: int = 150) -> np.ndarray:
    """Multinomial, by gradient descent with momentum."""
    weights, momentum = np.zeros((x.shape[1], classes), np.float32), 0.0
    targets = np.eye(classes, dtype=np.float32)[y]
    for _ in range(steps):
        p = np.exp(x @ weights)
        momentum = 0.9 * momentum + x.T @ (p / p.sum(1, keepdims=True) - targets) / len(x)
        weights -= 0.5 * momentum
    return weights


@pytest.mark.parametrize("name", ["alpha", "delta"])
def test_a_bag_of_words_cannot_tell_the_labels_apart(name):
    pairs = [inference_pair(FAMILY[name], "train", i) for i in range(6000)]
    x, labels = bag_of_words(pairs), np.array([LABELS.index(p.label) for p in pairs])
    weights = logistic_regression(x[:4500], labels[:4500], 3)
    assert np.mean((x[4500:] @ weights).argmax(1) == labels[4500:]) < 0.37
    # the same classifier does learn what words can tell: whether the hypothesis is negated
    negated = np.array(["PART" in p.hypothesis.upos for p in pairs]).astype(int)
    weights = logistic_regression(x[:4500], negated[:4500], 2)
    assert np.mean((x[4500:] @ weights).argmax(1) == negated[4500:]) > 0.99


@pytest.mark.parametrize("name", FAMILY)
def test_answers_are_spans_of_the_passage(name):
    for i in range(100):
        told = passage(FAMILY[name], "test", i)
        assert told.text == " ".join(s.text for s in told.sentences)
        assert len(told.questions) == 6
        for question in told.questions:
            assert told.text[question.start : question.end] == question.answer
            evidence = told.sentences[question.evidence]
            start = sum(len(s.text) + 1 for s in told.sentences[: question.evidence])
            inside = (question.start - start, question.end - start)
            assert inside[0] in [first for first, _ in evidence.offsets]
            assert inside[1] in [last for _, last in evidence.offsets]


def test_roles_decide_between_two_sentences_with_the_same_words():
    """Whoever is asked about stands in two sentences with the verb: overlap finds one in two."""
    right = total = 0
    for i in range(300):
        told = passage(ALPHA, "test", i)
        for question in told.questions:
            known = set(question.sentence.words)
            if "where" in _asked(question):
                continue
            overlap = [len(known & set(s.words)) for s in told.sentences]
            best = [j for j, n in enumerate(overlap) if n == max(overlap)]
            assert question.evidence in best
            right += 1 / len(best)
            total += 1
    assert right / total < 0.52


def _asked(question) -> set[str]:
    return {
        "where" if u == "ADV" else "who" for u in question.sentence.upos if u in ("ADV", "PRON")
    }


def test_questions_may_be_asked_in_another_language():
    here, there = passage(ALPHA, "test", 5), passage(ALPHA, "test", 5, DELTA)
    assert here.text == there.text
    for a, b in zip(here.questions, there.questions, strict=True):
        assert (a.answer, a.start) == (b.answer, b.start)
        assert a.sentence.meaning == b.sentence.meaning and b.sentence.language == "delta"
