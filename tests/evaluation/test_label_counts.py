"""Accuracy and F1 of labels are scikit-learn's; its classifier learns what pieces say."""

import dataclasses

import numpy as np
import pytest
from sklearn import metrics

from xl_flax.data.features import Example
from xl_flax.errors import UserError
from xl_flax.evaluation.base import NotFiniteError
from xl_flax.evaluation.bootstrap import macro_f1, ratio
from xl_flax.evaluation.classification import check_predicted, label_counts, tf_idf_classifier
from xl_flax.evaluation.predictions import as_text, read_counts, write
from xl_flax.evaluation.results import Result, Row
from xl_flax.models.labelling import best_label

LABELS = ("a", "b", "c", "d")


@pytest.mark.parametrize("seed", range(6))
def test_scores_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    gold, predicted = rng.integers(0, rng.integers(2, 5), (2, 40))
    scored = label_counts(gold, predicted, LABELS)
    assert ratio(scored.counts["accuracy"].sum(0)) == metrics.accuracy_score(gold, predicted)
    assert macro_f1(scored.counts["macro_f1"].sum(0)) == pytest.approx(
        metrics.f1_score(gold, predicted, average="macro"), rel=1e-12
    )
    assert scored.predictions == [LABELS[i] for i in predicted]


def test_examples_without_a_label_do_not_count():
    scored = label_counts(np.array([0, -1, 1]), np.array([0, 0, 0]), LABELS)
    assert scored.counts["accuracy"].sum(axis=0).tolist() == [1, 2]
    expected = metrics.f1_score([0, 1], [0, 0], average="macro")
    assert macro_f1(scored.counts["macro_f1"].sum(0)) == pytest.approx(expected)


def example(number, *texts):
    return Example(number, tuple(np.array(text) for text in texts))


def test_the_classifier_tells_texts_of_a_pair_apart():
    rng, train, gold = np.random.default_rng(0), [], []
    for i in range(260):
        label = i % 2
        one, other = rng.integers(10, 40, (2, 6))
        # Piece 5 stands in the first text under label 0, in the second under label 1.
        texts = [[5, *one], other] if label == 0 else [one, [5, *other]]
        train.append(example(i, *texts))
        gold.append(label)
    classify = tf_idf_classifier(train[:200], np.array(gold[:200]))
    assert (classify(train[200:]) == gold[200:]).mean() > 0.9  # of which chance has half


def test_predictions_are_written_as_xtreme_reads_them(tmp_path):
    scored = label_counts(np.array([0, 1]), np.array([1, 1]), LABELS)
    write(str(tmp_path), 20, "sign", "xnli/test", {"deu": scored, "alpha": scored})
    folder = tmp_path / "predictions" / "20" / "xnli"
    assert (folder / "test-de.tsv").read_text() == "b\nb\n"
    assert (folder / "test-alpha.tsv").exists()
    own = Result("classification", "xnli/test", ("deu",), "accuracy", 0.5, 2, "sign")
    row = Row(checkpoint="c", step=20, **vars(own))
    np.testing.assert_array_equal(read_counts(str(tmp_path), row), scored.counts["accuracy"])
    with pytest.raises(UserError, match="of another evaluation"):
        read_counts(str(tmp_path), dataclasses.replace(row, signature="other"))
    with pytest.raises(UserError, match="is missing"):
        read_counts(str(tmp_path), dataclasses.replace(row, languages=("fra",)))
    assert as_text([["O", "B-X"], ["O"]]) == ("O\nB-X\n\nO\n\n", "tsv")
    assert as_text([{"id": "q", "text": "Äh"}]) == ('{\n "q": "Äh"\n}\n', "json")


def test_scores_that_are_not_finite_are_no_label():
    scores = np.array([[0.0, 2.0], [np.nan, 1.0], [np.inf, 0.0]])
    assert best_label(scores).tolist() == [1, -1, -1]
    with pytest.raises(NotFiniteError, match=r"m/test, step 3: the scores of 2 labels"):
        check_predicted(np.array(best_label(scores)), "m/test, step 3")
