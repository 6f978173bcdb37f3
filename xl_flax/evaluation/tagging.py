"""Labels of words: named entities and parts of speech."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import gin
import numpy as np

from xl_flax.checkpoints.description import Description
from xl_flax.data.features import Example
from xl_flax.data.layout import Policy
from xl_flax.data.stream import HeldOutRows
from xl_flax.errors import UserError
from xl_flax.evaluation.base import Subject
from xl_flax.evaluation.bootstrap import Score, f1, ratio
from xl_flax.evaluation.classification import check_labels, check_predicted, train_examples
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.labelled import LabelledEvaluation, Scored
from xl_flax.models.labelling import best_label, head_scores
from xl_flax.settings import Name


@gin.configurable
@dataclasses.dataclass(frozen=True)
class TaggingScores(LabelledEvaluation):
    """F1 of chunks, and accuracy of words, each by its first piece (Devlin et al. 2019, §5.3).

    Chunks are seqeval's, which are conlleval's: an I-X that follows no chunk of its type begins
    one. Tags without a prefix, as parts of speech, make chunks of equal neighbours; this is the
    score of XTREME for them (Hu et al. 2020, with the seqeval of then: see `with_prefixes`).
    Sentences longer than a row are predicted in parts.
    """

    head: Name = "tokens"
    feature: Name = "label"  # of the tokens: a word's label at its first piece, -1 elsewhere
    # As Conneau, Wu et al. (2020) do: a chunk of several types gets the type of its last word.
    repair: bool = False

    task: ClassVar[str] = "tagging"
    kind: ClassVar[str] = "classification"
    too_long: ClassVar[Policy] = "cut"
    metrics: ClassVar[Mapping[str, Score]] = {"f1": f1, "accuracy": ratio}
    baseline_names: ClassVar[tuple[str, ...]] = ("most frequent",)

    def check(self, description: Description, rows: HeldOutRows) -> None:
        """Raises UserError unless the data's labels are the head's."""
        check_labels(self, description, rows, "token")
        if rows.num_texts > 1:
            raise UserError(
                f"TaggingScores: examples of {', '.join(rows.tasks[:3])} have {rows.num_texts} "
                "texts; words are tagged in tasks of one text"
            )
        if "word" not in rows.features:
            raise UserError(
                f"TaggingScores: {', '.join(rows.tasks[:3])} must have the feature 'word', the "
                "number of each token's word: see tasks/labelled.py, add_word_task"
            )

    def settings(self) -> dict[str, Any]:
        """How chunks are made."""
        return {"chunks": "seqeval" + (",repaired" if self.repair else "")}

    def scored(self, subject: Subject, context: Context) -> dict[str, Scored]:
        """The label with the highest score, of each word."""
        rows, found = self.rows(context), collections.defaultdict(list)

        def predict(model, batch, reading):
            scores_BxLxC, _ = head_scores(model, self.head, batch, reading)
            return best_label(scores_BxLxC)

        for own, predicted_BxL in self.predicted(subject, context, predict):
            first_BxL = own[self.feature] >= 0
            row, _ = np.nonzero(first_BxL)
            place = own["segment_ids"][first_BxL] - 1
            columns = (
                rows.row_tasks[own["row_id"][row]],
                own["example"][row, place],
                own["word"][first_BxL],
                own[self.feature][first_BxL],
                predicted_BxL[first_BxL],
            )
            found["all"].append(np.stack(columns))
        labels = rows.features[self.feature].labels
        task, example, word, gold, predicted = np.concatenate(found["all"], axis=1)
        check_predicted(predicted, f"{self._data}, step {subject.description.step}")
        scored = {}
        for i, name in enumerate(rows.task_names()):
            mine = np.flatnonzero(task == i)
            mine = mine[np.lexsort((word[mine], example[mine]))]
            ends = np.flatnonzero(np.diff(example[mine])) + 1
            sentences = [
                Tagged(_names(labels, gold[of]), _names(labels, predicted[of]))
                for of in np.split(mine, ends)
            ]
            scored[name] = chunk_counts(sentences, self.repair)
        return dict(sorted(scored.items()))

    def baseline_scored(self, name: str, context: Context) -> dict[str, Scored]:
        """Each word's most frequent label in the training text; of others that of all words."""
        of_word: dict[tuple[int, ...], collections.Counter] = collections.defaultdict(
            collections.Counter
        )
        for example in train_examples(context, self.control_datasets):
            for pieces, label in _words(example, self.feature):
                of_word[pieces][label] += 1
        every = sum(of_word.values(), collections.Counter())
        usual = {pieces: labels.most_common(1)[0][0] for pieces, labels in of_word.items()}
        default = every.most_common(1)[0][0]
        rows, scored = self.rows(context), {}
        labels = rows.features[self.feature].labels
        there = {k: e for spec in self.datasets for k, e in context.examples(spec).items()}
        for task, own in zip(rows.tasks, rows.task_names(), strict=True):
            sentences = []
            for example in sorted(there[task], key=lambda e: e.number):
                words = list(_words(example, self.feature))
                guesses = [usual.get(pieces, default) for pieces, _ in words]
                gold = [label for _, label in words]
                sentences.append(Tagged(_names(labels, gold), _names(labels, guesses)))
            scored[own] = chunk_counts(sentences, self.repair)
        return dict(sorted(scored.items()))


class Tagged(NamedTuple):
    """The labels of one sentence's words."""

    gold: list[str]
    predicted: list[str]


def chunk_counts(sentences: Sequence[Tagged], repair: bool) -> Scored:
    """Counts of chunks that were found, predicted and gold, and of right words, by sentence."""
    get_entities = _seqeval()
    chunks, words, said = [], [], []
    for gold, predicted in sentences:
        own = repaired(predicted) if repair else predicted
        right, guessed = (set(get_entities(with_prefixes(tags))) for tags in (gold, own))
        chunks.append((len(right & guessed), len(guessed), len(right)))
        words.append((sum(map(str.__eq__, gold, own)), len(gold)))
        said.append(own)
    counts = {"f1": np.array(chunks, np.float64), "accuracy": np.array(words, np.float64)}
    return Scored(counts, said)


def with_prefixes(labels: Sequence[str]) -> list[str]:
    """Labels as seqeval takes them: NOUN becomes I-NOUN.

    seqeval 0.0.12, the newest when XTREME was published, took the first letter of a label for its
    prefix and the whole for its type. So SYM and SCONJ, which begin as S- does, are chunks of one
    word each, and other equal neighbours are one chunk. seqeval 1.2 also takes the first letter
    away from the type; then X, of which nothing is left, is confused with O.
    """
    return [
        label
        if label == "O" or label[:2] in ("B-", "I-", "E-", "S-")
        else f"{label[0] if label[0] in 'BIES' else 'I'}-{label}"
        for label in labels
    ]


def repaired(labels: Sequence[str]) -> list[str]:
    """A sequence whose chunks all begin with B- and have one type, that of their last word.

    An I-X behind O begins a chunk. Labels that are neither O, B-X nor I-X stay as they are.
    """
    fixed = list(labels)
    i = 0
    while i < len(fixed):
        if fixed[i][:2] not in ("B-", "I-"):
            i += 1
            continue
        end = i + 1
        while end < len(fixed) and fixed[end].startswith("I-"):
            end += 1
        kind = fixed[end - 1][2:]
        fixed[i:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - i - 1)]
        i = end
    return fixed


def _words(example: Example, feature: str) -> Iterator[tuple[tuple[int, ...], int]]:
    """The pieces and the label of each word that has one."""
    ((tokens,), (words,), (labels,)) = (
        example.texts,
        example.features["word"],
        example.features[feature],
    )
    ends = np.flatnonzero(np.diff(words)) + 1
    for pieces, own in zip(np.split(tokens, ends), np.split(labels, ends), strict=True):
        if len(own) and own[0] >= 0:
            yield tuple(pieces.tolist()), int(own[0])


def _names(labels: Sequence[str], numbers: Sequence[int]) -> list[str]:
    return [labels[i] for i in numbers]


def _seqeval() -> Any:
    try:
        from seqeval.metrics.sequence_labeling import get_entities
    except ImportError:
        raise UserError("TaggingScores needs seqeval: pip install 'xl-flax[eval]'") from None
    return get_entities
