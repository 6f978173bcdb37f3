"""Classification of sequences and of tokens, with labels that the examples carry.

Shapes: Batch, Length, E examples per row, K texts of an example, D = width, C labels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax

from xl_flax.data.features import Features, FeatureSpec
from xl_flax.data.stream import Stream
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.models.heads import HeadSettings, Model
from xl_flax.models.labelling import Reading, head_scores
from xl_flax.objectives.base import Batch, Inputs, LogName, Loss, Mean, Objective, row_keys
from xl_flax.ops.languages import language_rows, language_sums
from xl_flax.ops.pooling import Pooling
from xl_flax.ops.segments import JoinedRows, present_examples
from xl_flax.settings import Name


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Cross-entropy of a classification head, named as the objective.

    The texts of an example are read as one segment, [CLS] a [SEP] b [SEP]. Examples without a label
    (-1) do not count; a feature "weight" of the examples weights their losses.

    Raises:
      UserError: a setting that makes no sense.
    """

    feature: Name = "label"  # of the examples: which one to predict
    dense: Literal["tanh", "gelu", "gelu_norm"] | None = None  # of the head, before the scores
    double_separator: bool = False  # </s></s> between texts, as in XLM-R

    label_kind: ClassVar[str]  # kind of the feature
    fixed_labels: ClassVar[tuple[str, ...]] = ()  # of the head, if they are not the feature's
    metrics: ClassVar[Mapping[str, Mean]] = {
        "loss": Mean("loss", by_language=True),
        "accuracy": Mean("correct", "labels", by_language=True),
        "fill": Mean("tokens", "positions", on_console=False),
    }

    def head_settings(self) -> dict[str, Any]:
        """The settings of the head, but for its labels."""
        # ModernBERT's map has no bias.
        bias = {"dense_bias": False} if self.dense == "gelu_norm" else {}
        return {"kind": "classification", "dense": self.dense, **bias}

    def usual_example(self) -> tuple[int, Features]:
        """Two texts, or one where words are labelled, with as many labels as XNLI or PAN-X has."""
        count = 0 if self.fixed_labels else 3 if self.label_kind == "example" else 7
        labels = tuple(map(str, range(count)))
        texts = 1 if self.label_kind == "token" else 2
        return texts, {self.feature: FeatureSpec(self.label_kind, labels=labels)}

    def heads(self, stream: Stream) -> Mapping[str, HeadSettings]:
        """The classification head with the labels of the task."""
        labels = list(self.fixed_labels or stream.features[self.feature].labels)
        return {self.name: self.head_settings() | {"labels": labels}}

    def check(self, stream: Stream) -> None:
        """Raises UserError unless examples have this feature, with labels."""
        spec = stream.features.get(self.feature)
        named = spec is not None and (spec.labels or self.fixed_labels)
        if not named or spec.kind != self.label_kind:
            features = ", ".join(f"{k} ({s.kind})" for k, s in stream.features.items()) or "none"
            raise UserError(
                f"objective {self.name!r} predicts the feature {self.feature!r}, labels of kind "
                f"{self.label_kind!r}, but the features of {', '.join(stream.tasks[:3])} are: "
                f"{features}"
            )

        weight = stream.features.get("weight")
        if weight is not None and weight.kind != "example":
            raise UserError(
                f"objective {self.name!r}: the feature 'weight' of {', '.join(stream.tasks[:3])} "
                f"is of kind {weight.kind!r}; it weights examples, so its kind must be 'example'"
            )

    def buffers(
        self, vocabulary: Vocabulary, stream: Stream, languages: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Ids of the separator and of padding, and rows of the encoder's language table."""
        return {
            "sep_id": np.int32(vocabulary.special.sep),
            "pad_id": np.int32(vocabulary.special.pad),
            "language_rows": language_rows(stream.languages, languages),
        }

    def scores(self, model: Model, batch: Batch, inputs: Inputs) -> tuple[jax.Array, JoinedRows]:
        """The head's scores, float32[B, E, C] or of tokens [B, L, C], and the rows it was given."""
        return head_scores(model, self.name, batch, *self.reading(batch, inputs))

    def reading(self, batch: Batch, inputs: Inputs) -> tuple[Reading, jax.Array | None]:
        """How examples are read, and the rows' keys for dropout, None where none is."""
        reading = Reading(
            inputs.stream.num_texts,
            inputs.stream.examples_per_row,
            *(inputs.buffers[name] for name in ("sep_id", "pad_id", "language_rows")),
            self.double_separator,
        )
        return reading, row_keys(inputs.key, batch["row_id"]) if inputs.train else None

    def label_loss(
        self,
        scores_xC: jax.Array,
        labels_x: jax.Array,
        weights_x: jax.Array,
        languages_x: jax.Array,
        batch: Batch,
        inputs: Inputs,
    ) -> Loss:
        """Weighted cross-entropies in nats, with sums for the metrics.

        Args:
          scores_xC: float32, of every place that may have a label.
          labels_x: int32, -1 where there is none.
          weights_x: float32.
          languages_x: int32, indices into the stream's languages.
          batch: of the objective.
          inputs: of the objective.
        """
        labelled_x = (labels_x >= 0).astype(jnp.float32)
        losses_x = labelled_x * optax.softmax_cross_entropy_with_integer_labels(
            scores_xC, jnp.maximum(labels_x, 0)
        )
        correct_x = labelled_x * (scores_xC.argmax(axis=-1) == labels_x)
        weights_x = weights_x * labelled_x
        values = {"loss": losses_x, "count": labelled_x, "correct": correct_x, "labels": labelled_x}
        sums = {
            "count": weights_x.sum(),
            "labels": labelled_x.sum(),
            "correct": correct_x.sum(),
            "tokens": jnp.sum(batch["segment_ids"] != 0, dtype=jnp.float32),
            "positions": jnp.float32(batch["segment_ids"].size),
            **language_sums(len(inputs.stream.languages), languages_x, **values),
        }
        return Loss(jnp.sum(weights_x * losses_x), sums)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SequenceClassification(Classification):
    """A label for each example, a sentence or a pair as in NLI (Devlin et al. 2019, BERT, §4)."""

    pooling: Pooling | Literal["scores"] = "cls"  # "scores" for the mean of tokens' scores
    name: LogName = "sequence"

    label_kind: ClassVar[str] = "example"

    def head_settings(self) -> dict[str, Any]:
        """With the pooling of a sequence's states."""
        return super().head_settings() | {"pooling": self.pooling}

    def loss(self, model: Model, batch: Batch, inputs: Inputs) -> Loss:
        """The cross-entropy of each example's label; its language is that of its first text."""
        scores_BxExC, _ = self.scores(model, batch, inputs)
        labels_BxE, stream = batch[self.feature], inputs.stream
        present_BxE = present_examples(
            batch["segment_ids"], stream.examples_per_row, stream.num_texts
        )
        labels_BxE = jnp.where(present_BxE, labels_BxE, -1)
        weights_BxE = batch.get("weight", jnp.ones(labels_BxE.shape))
        languages_BxE = jnp.broadcast_to(batch["languages"][:, :1], labels_BxE.shape)
        return self.label_loss(scores_BxExC, labels_BxE, weights_BxE, languages_BxE, batch, inputs)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class TokenClassification(Classification):
    """A label for each word, at its first piece (Devlin et al. 2019, BERT, §5.3), or each token."""

    name: LogName = "tokens"

    label_kind: ClassVar[str] = "token"

    def head_settings(self) -> dict[str, Any]:
        """A head on each token."""
        return super().head_settings() | {"pooling": "tokens"}

    def loss(self, model: Model, batch: Batch, inputs: Inputs) -> Loss:
        """The cross-entropy of each token that has a label; an example's weight is its tokens'."""
        scores_BxLxC, rows = self.scores(model, batch, inputs)
        labels_BxL = jnp.take_along_axis(batch[self.feature], rows.source, axis=1)
        labels_BxL = jnp.where(rows.segment_ids != 0, labels_BxL, -1)
        weights_BxL = jnp.ones(labels_BxL.shape)
        if "weight" in batch:
            example_BxL = jnp.maximum(rows.segment_ids - 1, 0)
            weights_BxL = jnp.take_along_axis(batch["weight"], example_BxL, axis=1)
        languages_BxL = rows.token_languages
        return self.label_loss(scores_BxLxC, labels_BxL, weights_BxL, languages_BxL, batch, inputs)
