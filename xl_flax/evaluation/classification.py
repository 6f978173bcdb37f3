"""Labels of sentences and of pairs of sentences: topics, inference, paraphrases."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import gin
import jax
import numpy as np

from xl_flax.checkpoints.description import Description
from xl_flax.data.features import Example
from xl_flax.data.layout import Policy
from xl_flax.data.prepare import DatasetSpec
from xl_flax.data.stream import HeldOutRows
from xl_flax.errors import UserError
from xl_flax.evaluation.base import NotFiniteError, Subject
from xl_flax.evaluation.bootstrap import Score, macro_f1, ratio
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.labelled import LabelledEvaluation, Scored
from xl_flax.models.heads import Model
from xl_flax.models.labelling import Batch, Reading, best_label, head_scores
from xl_flax.settings import Name

Guess = Callable[[list[Example]], np.ndarray]  # of each example the number of its label

SHINGLE = 2  # longest sequence of pieces that TF-IDF counts


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ClassificationScores(LabelledEvaluation):
    """Accuracy, and F1 as the mean over labels, of a head on sentences (Hu et al. 2020, XTREME)."""

    head: Name = "sequence"
    feature: Name = "label"  # of the examples: their label

    task: ClassVar[str] = "classification"
    kind: ClassVar[str] = "classification"
    too_long: ClassVar[Policy] = "truncate"
    metrics: ClassVar[Mapping[str, Score]] = {"accuracy": ratio, "macro_f1": macro_f1}
    baseline_names: ClassVar[tuple[str, ...]] = ("majority", "tf-idf")

    @property
    def learners(self) -> Mapping[str, Callable[[list[Example], np.ndarray], Guess]]:
        """What baselines beside "majority" learn from training examples and their labels."""
        return {"tf-idf": tf_idf_classifier}

    def check(self, description: Description, rows: HeldOutRows) -> None:
        """Raises UserError unless the data's labels are the head's."""
        check_labels(self, description, rows, "example")

    def scored(self, subject: Subject, context: Context) -> dict[str, Scored]:
        """The label with the highest score."""
        rows, found = self.rows(context), collections.defaultdict(list)
        for own, predicted_BxE in self.predicted(subject, context, self.predict):
            there = own["example"] >= 0
            task = np.broadcast_to(rows.row_tasks[own["row_id"], None], there.shape)
            for i in np.unique(task):
                mine = there & (task == i)
                columns = (own["example"], own[self.feature], predicted_BxE)
                found[rows.task_names()[i]].append(np.stack([c[mine] for c in columns]))
        labels = rows.features[self.feature].labels
        scored = {}
        for name, parts in sorted(found.items()):
            number, gold, predicted = np.concatenate(parts, axis=1)
            check_predicted(predicted, f"{self._data}, step {subject.description.step}")
            order = np.argsort(number)
            scored[name] = label_counts(gold[order], predicted[order], labels)
        return scored

    def predict(self, model: Model, batch: Batch, reading: Reading) -> jax.Array:
        """The number of each example's label, int32[B, E]."""
        scores_BxExC, _ = head_scores(model, self.head, batch, reading)
        return best_label(scores_BxExC)

    def baseline_scored(self, name: str, context: Context) -> dict[str, Scored]:
        """The most frequent label of the training text; or logistic regression on TF-IDF."""
        train = train_examples(context, self.control_datasets)
        rows, gold = self.rows(context), np.array([int(e.features[self.feature]) for e in train])
        labels = rows.features[self.feature].labels
        if name == "majority":
            most = int(np.bincount(gold[gold >= 0], minlength=len(labels)).argmax())
            guess = functools.partial(_always, most)
        else:
            guess = context.once(
                (name, tuple(self.control_datasets), self.feature),
                lambda: self.learners[name](train, gold),
            )
        scored = {}
        for task, own in zip(rows.tasks, rows.task_names(), strict=True):
            examples = sorted(_of_task(context, self.datasets, task), key=lambda e: e.number)
            answers = np.array([int(e.features[self.feature]) for e in examples])
            scored[own] = label_counts(answers, guess(examples), labels)
        return scored


def check_labels(
    evaluation: LabelledEvaluation, description: Description, rows: HeldOutRows, kind: str
) -> None:
    """Raises UserError unless examples have the feature, and its labels are those of the head."""
    feature = evaluation.feature
    where = f"{type(evaluation).__name__}: {', '.join(rows.tasks[:3])}"
    spec = rows.features.get(feature)
    if spec is None or spec.kind != kind or not spec.labels:
        there = ", ".join(f"{k} ({s.kind})" for k, s in rows.features.items()) or "none"
        raise UserError(
            f"{where} must have the feature {feature!r}, labels of kind {kind!r}; features are: "
            f"{there}"
        )
    labels = tuple(description.heads[evaluation.head].get("labels", ()))
    if labels != tuple(spec.labels):
        raise UserError(
            f"{where} has the labels {', '.join(spec.labels)}, but the head "
            f"{evaluation.head!r} predicts {', '.join(map(str, labels))}: evaluate what it was "
            "trained for"
        )


def check_predicted(predicted: np.ndarray, where: str) -> None:
    """Raises NotFiniteError where `best_label` found no label."""
    if (predicted < 0).any():
        raise NotFiniteError(
            f"{where}: the scores of {(predicted < 0).sum():,} labels are not finite; evaluate an "
            "earlier checkpoint, and train with a lower learning rate"
        )


def label_counts(gold: np.ndarray, predicted: np.ndarray, labels: tuple[str, ...]) -> Scored:
    """Counts for accuracy and for F1 by label; examples without a label (-1) do not count."""
    known = gold >= 0
    right = known & (gold == predicted)
    classes = np.arange(len(labels))
    is_gold, is_said = (x[:, None] == classes for x in (gold, np.where(known, predicted, -1)))
    by_class = np.stack([is_gold & is_said, is_said, is_gold], axis=-1)
    return Scored(
        {
            "accuracy": np.stack([right, known], axis=-1).astype(np.float64),
            "macro_f1": by_class.reshape(len(gold), -1).astype(np.float64),
        },
        [labels[i] for i in predicted],
    )


def tf_idf_classifier(train: list[Example], gold: np.ndarray) -> Guess:
    """Learns labels from which pieces, and which pairs of neighbours, stand in which text.

    It knows nothing of how languages correspond: what it gets right in another language it gets by
    shared strings. scikit-learn's `TfidfVectorizer` and `LogisticRegression` as they come.

    Args:
      train: examples with pieces; those of the second text are other words than the first's.
      gold: int[n], their labels; -1 for none.

    Returns:
      A function from examples to their labels, int[n].
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise UserError(
            "the baseline tf-idf needs scikit-learn: pip install 'xl-flax[eval]', or "
            "--gin.EvaluateConfig.controls=False"
        ) from None

    def words(example: Example) -> list[str]:
        return [
            " ".join([str(k), *map(str, text[i : i + size])])
            for k, text in enumerate(example.texts)
            for size in range(1, SHINGLE + 1)
            for i in range(len(text) + 1 - size)
        ]

    vectorizer = TfidfVectorizer(analyzer=words, sublinear_tf=True)
    features = vectorizer.fit_transform([e for e, y in zip(train, gold, strict=True) if y >= 0])
    model = LogisticRegression(max_iter=1000).fit(features, gold[gold >= 0])
    return lambda examples: model.predict(vectorizer.transform(examples))


def train_examples(context: Context, specs: Sequence[DatasetSpec]) -> list[Example]:
    """The examples of some mixtures, those of a task that several have once."""
    tasks = {task: own for spec in specs for task, own in context.examples(spec).items()}
    return [example for own in tasks.values() for example in own]


def _of_task(context: Context, specs: list[Any], task: str) -> list[Example]:
    for spec in specs:
        if task in (there := context.examples(spec)):
            return there[task]
    raise KeyError(task)


def _always(label: int, examples: list[Example]) -> np.ndarray:
    return np.full(len(examples), label)
