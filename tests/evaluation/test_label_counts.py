"""Accuracy and F1 of labels are scikit-learn's; its classifier learns what pieces say."""

import numpy as np
import pytest
from sklearn import metrics

from xl_flax.data.features import Example
from xl_flax.evaluation.bootstrap import macro_f1, ratio
from xl_flax.evaluation.classification import label_counts, tf_idf_classifier
from xl_flax.evaluation.predictions import as_text, read_counts, write

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
    write(str(tmp_path), 20, "xnli/test", {"deu": scored, "alpha": scored})
    folder = tmp_path / "predictions" / "20" / "xnli"
    assert (folder / "test-de.tsv").read_text() == "b\nb\n"
    assert (folder / "test-alpha.tsv").exists()
    counts = read_counts(str(tmp_path), 20, "xnli/test", "deu", "accuracy")
    np.testing.assert_array_equal(counts, scored.counts["accuracy"])
    assert as_text([["O", "B-X"], ["O"]]) == ("O\nB-X\n\nO\n\n", "tsv")
    assert as_text([{"id": "q", "text": "Äh"}]) == ('{\n "q": "Äh"\n}\n', "json")
