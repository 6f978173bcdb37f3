"""Multiple choice: which of several texts goes with the first one.

Shapes: Batch, E examples per row, K texts of an example, the first one and K - 1 choices.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import gin
import jax.numpy as jnp

from xl_flax.data.features import Features, FeatureSpec
from xl_flax.data.stream import Stream
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import HeadSettings, Model
from xl_flax.models.labelling import choice_scores
from xl_flax.objectives.base import Batch, Inputs, LogName, Loss
from xl_flax.objectives.classification import Classification
from xl_flax.ops.pooling import Pooling
from xl_flax.ops.segments import present_examples


@gin.configurable
@dataclasses.dataclass(frozen=True)
class MultipleChoice(Classification):
    """Which choice is right, as in COPA and XCOPA (Ponti et al. 2020, arXiv:2005.00333, §4).

    The first text is read with each choice, [CLS] first [SEP] choice [SEP], and a head gives one
    score. The loss is the cross-entropy of the right choice in a softmax over an example's scores.
    The example's language is that of its first text.
    """

    pooling: Pooling = "cls"
    name: LogName = "choice"

    label_kind: ClassVar[str] = "example"

    def head_settings(self) -> dict[str, Any]:
        """With the pooling of a sequence's states."""
        return super().head_settings() | {"pooling": self.pooling}

    def usual_example(self) -> tuple[int, Features]:
        """A text and two choices, as XCOPA has them."""
        return 3, {self.feature: FeatureSpec(self.label_kind, labels=("0", "1"))}

    def heads(self, stream: Stream) -> Mapping[str, HeadSettings]:
        """The classification head, which gives one score whatever the labels of the task."""
        del stream
        return {self.name: self.head_settings() | {"labels": ["score"]}}

    def check(self, stream: Stream) -> None:
        """Raises UserError unless examples have two choices or more, and a label for each."""
        super().check(stream)
        labels = stream.features[self.feature].labels
        if stream.num_texts < 3 or len(labels) != stream.num_texts - 1:
            texts = f"{stream.num_texts} texts" if stream.num_texts > 1 else "1 text"
            self.fail(
                f"feature = {self.feature!r}: {', '.join(stream.tasks[:3])} has {texts} in an "
                f"example and {len(labels)} labels ({', '.join(labels[:8])}): needed are a text, "
                "two choices or more, and a label for each choice"
            )

    def loss(self, model: Model, batch: Batch, inputs: Inputs) -> Loss:
        """The cross-entropy of each example's right choice."""
        scores_BxExC = choice_scores(model, self.name, batch, *self.reading(batch, inputs))
        stream = inputs.stream
        present_BxE = present_examples(
            batch["segment_ids"], stream.examples_per_row, stream.num_texts
        )
        labels_BxE = jnp.where(present_BxE, batch[self.feature], -1)
        weights_BxE = batch.get("weight", jnp.ones(labels_BxE.shape))
        languages_BxE = jnp.broadcast_to(batch["languages"][:, :1], labels_BxE.shape)
        return self.label_loss(scores_BxExC, labels_BxE, weights_BxE, languages_BxE, batch, inputs)

    def flops(self, encoder: EncoderConfig, stream: Stream, two_passes: bool) -> dict[str, float]:
        """Of the whole encoder, once for each choice."""
        parts = super().flops(encoder, stream, two_passes)
        return {name: (stream.num_texts - 1) * part for name, part in parts.items()}
