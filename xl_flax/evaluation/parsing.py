"""Dependency parsing: attachment scores of the best trees, language by language.

Shapes: Batch, W places for words of a row, H = 1 + W heads.
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar

import gin
import numpy as np

from xl_flax.checkpoints.description import Description
from xl_flax.data.features import Example
from xl_flax.data.layout import Policy
from xl_flax.data.stream import HeldOutRows
from xl_flax.errors import UserError
from xl_flax.evaluation import trees
from xl_flax.evaluation.base import NotFiniteError, Subject
from xl_flax.evaluation.bootstrap import Score, ratio
from xl_flax.evaluation.classification import train_examples
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.labelled import LabelledEvaluation, Scored
from xl_flax.evaluation.trees import Tree
from xl_flax.models.parsing import parse_rows
from xl_flax.settings import Name

ROOT, UNKNOWN = "root", "dep"  # relations that all treebanks may have


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ParsingScores(LabelledEvaluation):
    """LAS and UAS of a biaffine head on gold words, in the convention of CoNLL 2018.

    LAS is the share of words with the right head and the right universal relation, UAS that of
    words with the right head; punctuation counts (Zeman et al. 2018). The heads of a sentence
    are the tree of the highest score that has one root. A sentence that is longer than a row is cut
    into parts; the roots of later ones are attached to that of the first as "dep". "cut" is the
    share of words in later parts.
    """

    head: Name = "parsing"

    task: ClassVar[str] = "parsing"
    kind: ClassVar[str] = "biaffine"
    too_long: ClassVar[Policy] = "cut"
    metrics: ClassVar[Mapping[str, Score]] = {"las": ratio, "uas": ratio, "cut": ratio}
    baseline_names: ClassVar[tuple[str, ...]] = ("neighbour", "lexicon")

    def check(self, description: Description, rows: HeldOutRows) -> None:
        """Raises UserError unless examples are trees with the head's relations."""
        where = f"{type(self).__name__}: {', '.join(rows.tasks[:3])}"
        missing = [name for name in ("word", "head", "relation") if name not in rows.features]
        if missing or rows.num_texts > 1:
            raise UserError(
                f"{where} must be single sentences with the features 'word', 'head' and "
                "'relation', as tasks.trees.add_tree_task makes them; features are: "
                f"{', '.join(rows.features) or 'none'}"
            )
        labels = rows.features["relation"].labels
        if not {ROOT, UNKNOWN} <= set(labels):
            raise UserError(f"{where}: relations must have {ROOT!r} and {UNKNOWN!r} among them")
        learnt = tuple(description.heads[self.head].get("labels", ()))
        if learnt != labels:
            raise UserError(
                f"{where} has the relations {', '.join(labels)}, but the head {self.head!r} "
                f"predicts {', '.join(map(str, learnt))}: evaluate what it was trained for"
            )

    def scored(self, subject: Subject, context: Context) -> dict[str, Scored]:
        """The best trees.

        Raises:
          NotFiniteError: scores are NaN or infinite.
        """
        rows = self.rows(context)
        root = rows.features["relation"].labels.index(ROOT)

        def predict(model, batch, reading):
            _, parse = parse_rows(model, self.head, batch, reading.language_rows)
            return parse.arcs_BxWxH, model.heads[self.head].best_relations(parse, root)

        # Task -> number of the example -> piece -> (gold, predicted).
        found: dict[int, dict[int, dict[int, tuple[Tree, Tree]]]]
        found = collections.defaultdict(lambda: collections.defaultdict(dict))
        for own, outputs in self.predicted(subject, context, predict):
            for row, example, piece, gold, arcs, best in _parts(own, *outputs):
                if not np.isfinite(arcs).all():
                    raise NotFiniteError(
                        f"{self._data}, step {subject.description.step}: scores of heads are NaN "
                        "or infinite; evaluate an earlier checkpoint"
                    )
                task = int(rows.row_tasks[own["row_id"][row]])
                found[task][example][piece] = gold, trees.decode(arcs, best, root)
        names = rows.task_names()
        return {
            names[task]: self._joined([own[number] for number in sorted(own)], rows)
            for task, own in sorted(found.items())
        }

    def baseline_scored(self, name: str, context: Context) -> dict[str, Scored]:
        """Each word attached to a neighbour, or as the training text most often has it."""
        rows = self.rows(context)
        labels = rows.features["relation"].labels
        root = labels.index(ROOT)
        train = train_examples(context, self.control_datasets)
        if name == "neighbour":
            parse = trees.Neighbours(map(trees.tree_of, train), root)
        else:
            parse = trees.Lexicon(train, root)
        tests: dict[str, list[Example]] = {}
        for spec in self.datasets:
            tests |= context.examples(spec)
        scored = {}
        for task, shown in zip(rows.tasks, rows.task_names(), strict=True):
            examples = sorted(tests[task], key=lambda example: example.number)
            gold, predicted = map(trees.tree_of, examples), map(parse, examples)
            scored[shown] = _scored([*gold], [*predicted], [0] * len(examples), labels)
        return scored

    def _joined(self, sentences: list[dict[int, tuple[Tree, Tree]]], rows: HeldOutRows) -> Scored:
        """Counts of one task's sentences, whose parts are put together."""
        labels, gold, predicted, cut = rows.features["relation"].labels, [], [], []
        for parts in sentences:
            right, said = zip(*(parts[piece] for piece in sorted(parts)), strict=True)
            gold.append(Tree(*(np.concatenate(arrays) for arrays in zip(*right, strict=True))))
            predicted.append(trees.join(said, labels.index(UNKNOWN)))
            cut.append(sum(len(part.heads) for part in right[1:]))
        return _scored(gold, predicted, cut, labels)


def _parts(
    batch: Mapping[str, np.ndarray], arcs_BxWxH: np.ndarray, best_BxWxW: np.ndarray
) -> Iterator[tuple[int, int, int, Tree, np.ndarray, np.ndarray]]:
    """Yields what lies in rows: row, example, piece, the right heads, and the scores of its words.

    In a piece that was cut, the right heads are those in the whole sentence.
    """
    for row, place in np.argwhere(batch["example"] >= 0):
        (columns,) = np.nonzero(batch["head"][row] >= 0)
        (words,) = np.nonzero(batch["segment_ids"][row, columns] == place + 1)
        own = columns[words]
        gold = Tree(batch["head"][row, own], batch["relation"][row, own])
        heads = np.concatenate([[0], 1 + words])
        yield (
            *(int(row), int(batch["example"][row, place]), int(batch["piece"][row, place])),
            gold,
            arcs_BxWxH[row][np.ix_(words, heads)],
            best_BxWxW[row][np.ix_(words, words)],
        )


def _scored(
    gold: list[Tree], predicted: list[Tree], cut: list[int], labels: tuple[str, ...]
) -> Scored:
    said = [
        {"heads": tree.heads.tolist(), "relations": [labels[i] for i in tree.relations]}
        for tree in predicted
    ]
    return Scored(trees.counts(gold, predicted, cut), said)
