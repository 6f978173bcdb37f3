"""Multiple choice: which of several texts goes with the first one."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import ClassVar

import gin
import jax
import numpy as np

from xl_flax.checkpoints.description import Description
from xl_flax.data.features import Example
from xl_flax.data.stream import HeldOutRows
from xl_flax.errors import UserError
from xl_flax.evaluation.bootstrap import Score, ratio
from xl_flax.evaluation.classification import ClassificationScores, Guess
from xl_flax.models.heads import Model
from xl_flax.models.labelling import Batch, Reading, best_label, choice_scores
from xl_flax.settings import Name


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ChoiceAccuracy(ClassificationScores):
    """Share of examples whose right choice gets the highest score (XCOPA: Ponti et al. 2020)."""

    head: Name = "choice"

    task: ClassVar[str] = "multiple_choice"
    metrics: ClassVar[Mapping[str, Score]] = {"accuracy": ratio}
    baseline_names: ClassVar[tuple[str, ...]] = ("majority", "overlap")

    @property
    def learners(self) -> Mapping[str, Callable[[list[Example], np.ndarray], Guess]]:
        """Pieces in common, of which training text says how rare they are."""
        return {"overlap": overlap}

    def check(self, description: Description, rows: HeldOutRows) -> None:
        """Raises UserError unless examples have a label for each choice, and the head one score."""
        spec, texts = rows.features.get(self.feature), rows.num_texts
        where = f"{type(self).__name__}: {', '.join(rows.tasks[:3])}"
        if spec is None or spec.kind != "example" or not 1 < len(spec.labels) == texts - 1:
            raise UserError(
                f"{where} must have the feature {self.feature!r}, of each example a text and its "
                f"choices' labels: two choices or more; there are {texts} texts and the features "
                + (", ".join(f"{k} ({len(s.labels)} labels)" for k, s in rows.features.items()))
            )
        if (scores := len(description.heads[self.head].get("labels", ()))) != 1:
            raise UserError(
                f"{where}: the head {self.head!r} gives {scores} scores, and must give one: "
                "evaluate a head that MultipleChoice trained"
            )

    def predict(self, model: Model, batch: Batch, reading: Reading) -> jax.Array:
        """The number of the choice with the highest score, int32[B, E]."""
        return best_label(choice_scores(model, self.head, batch, reading))


def overlap(train: list[Example], gold: np.ndarray) -> Guess:
    """Chooses the text whose pieces are most those of the first: the largest cosine of TF-IDF.

    Piece counts times ln((1 + n) / (1 + df)) + 1, df of n training texts have the piece. Of equal
    ones the first.

    Args:
      train: examples with pieces.
      gold: not used; their labels.
    """
    del gold
    texts = [np.unique(text) for example in train for text in example.texts]
    pieces, df = np.unique(np.concatenate(texts), return_counts=True)
    idf = dict(zip(pieces.tolist(), np.log((1 + len(texts)) / (1 + df)) + 1, strict=True))
    weigh = functools.partial(_weights, idf, np.log(1 + len(texts)) + 1)

    def cosine(x: Mapping[int, float], y: Mapping[int, float]) -> float:
        norms = [sum(w * w for w in side.values()) for side in (x, y)]
        return sum(w * y.get(k, 0.0) for k, w in x.items()) / max(np.sqrt(np.prod(norms)), 1e-12)

    def guess(examples: list[Example]) -> np.ndarray:
        sides = [[weigh(text) for text in example.texts] for example in examples]
        return np.array([np.argmax([cosine(x, y) for y in choices]) for x, *choices in sides])

    return guess


def _weights(idf: Mapping[int, float], unseen: float, text: np.ndarray) -> dict[int, float]:
    """The weight of each piece of a text."""
    pieces, counts = np.unique(text, return_counts=True)
    pairs = zip(pieces.tolist(), counts.tolist(), strict=True)
    return {piece: count * idf.get(piece, unseen) for piece, count in pairs}
