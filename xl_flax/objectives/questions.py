"""Question answering: where in a context the answer to a question begins and ends.

Shapes: Batch, Length, E examples (or windows of one) per row.
"""

import dataclasses
from typing import Any, ClassVar

import gin
import jax
import jax.numpy as jnp
import numpy as np

from xl_flax.models.heads import Model
from xl_flax.objectives.base import Batch, Inputs, LogName, Loss
from xl_flax.objectives.classification import Classification
from xl_flax.ops.segments import JoinedRows, present_examples
from xl_flax.settings import Name

NEVER = np.finfo(np.float32).min  # the score of a token of another example


@gin.configurable
@dataclasses.dataclass(frozen=True)
class QuestionAnswering(Classification):
    """Start and end of an answer, as BERT on SQuAD v1.1 (Devlin et al. 2019, §4.2).

    Each is a softmax over the tokens of [CLS] question [SEP] context [SEP]; the loss is the mean of
    both cross-entropies. A window of a context that does not hold the whole answer points to [CLS],
    as in BERT's code. `accuracy` is that of starts and ends. The language is the context's.
    """

    feature: Name = "answer"
    name: LogName = "question"

    label_kind: ClassVar[str] = "span"
    fixed_labels: ClassVar[tuple[str, ...]] = ("start", "end")

    def head_settings(self) -> dict[str, Any]:
        """A head on each token."""
        return super().head_settings() | {"pooling": "tokens"}

    def loss(self, model: Model, batch: Batch, inputs: Inputs) -> Loss:
        """The cross-entropies of starts and ends, each of weight 1/2."""
        scores_BxLx2, rows = self.scores(model, batch, inputs)
        stream = inputs.stream
        segments_E = jnp.arange(1, stream.examples_per_row + 1)
        own_BxExL = rows.segment_ids[:, None] == segments_E[:, None]
        present_BxE = present_examples(
            batch["segment_ids"], stream.examples_per_row, stream.num_texts
        )
        targets_BxEx2 = _targets(batch[self.feature], own_BxExL, rows)
        targets_BxEx2 = jnp.where(present_BxE[..., None], targets_BxEx2, -1)
        scores_Bx1x2xL = scores_BxLx2.swapaxes(1, 2)[:, None]
        scores_BxEx2xL = jnp.where(own_BxExL[:, :, None], scores_Bx1x2xL, NEVER)
        weights_BxE = batch.get("weight", jnp.ones(present_BxE.shape))
        weights_BxEx2 = jnp.broadcast_to(weights_BxE[..., None] / 2, targets_BxEx2.shape)
        languages_BxEx2 = jnp.broadcast_to(batch["languages"][:, -1:, None], targets_BxEx2.shape)
        return self.label_loss(
            scores_BxEx2xL, targets_BxEx2, weights_BxEx2, languages_BxEx2, batch, inputs
        )


def _targets(answer_BxEx2: jax.Array, own_BxExL: jax.Array, rows: JoinedRows) -> jax.Array:
    """Columns of each start and end in the joined rows, [CLS] where there is no answer."""
    moved_BxL = jnp.argsort(rows.source, axis=1)  # from columns of the batch
    places = jnp.maximum(answer_BxEx2, 0)
    found_BxEx2 = jnp.take_along_axis(moved_BxL[:, None], places, axis=2)
    return jnp.where(answer_BxEx2 >= 0, found_BxEx2, own_BxExL.argmax(axis=2)[..., None])
