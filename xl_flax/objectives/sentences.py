"""What the objectives on sentence vectors share: their settings, vectors, checks and sums.

Shapes: Rows, Length, E examples per row, K texts of an example (translations of one another),
N = R · E examples, W width of a vector.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from xl_flax.data.features import Features
from xl_flax.data.stream import Stream
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import HeadSettings, Model
from xl_flax.objectives.base import Batch, Inputs, Mean, Objective, encoding_flops, row_keys
from xl_flax.ops.languages import language_rows, language_sums
from xl_flax.ops.pooling import Pooling, pool
from xl_flax.ops.segments import token_languages
from xl_flax.settings import Count, LayerNumber, Positive


@dataclasses.dataclass(frozen=True)
class SentenceObjective(Objective):
    """An objective that compares sentence vectors of one head, named as the objective.

    Raises:
      UserError: a setting that makes no sense.
    """

    scale: Positive = 20.0  # of similarities, 1 / temperature
    pooling: Pooling = "cls"
    layer: LayerNumber = -1  # whose states are pooled
    projection: Literal["linear", "affine", "tanh", "mlp"] | None = None  # see `SentenceHead`
    width: Count | None = None  # of the projected vectors; None: the encoder's

    compares_rows: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Mean]] = {
        "loss": Mean("loss", by_language=True),
        "accuracy": Mean("correct", by_language=True),
        "fill": Mean("tokens", "positions", on_console=False),
        "pairs": Mean("pairs", "steps", on_console=False),  # examples that a step compares
    }

    def head_settings(self) -> dict[str, Any]:
        """The settings of the sentence head."""
        return {
            "kind": "sentence",
            "pooling": self.pooling,
            "layer": self.layer,
            "projection": self.projection,
            "width": self.width,
        }

    def usual_example(self) -> tuple[int, Features]:
        """A sentence and its translation."""
        return 2, {}

    def heads(self, stream: Stream) -> Mapping[str, HeadSettings]:
        """The sentence head, named as the objective."""
        del stream
        return {self.name: self.head_settings()}

    def buffers(
        self, vocabulary: Vocabulary, stream: Stream, languages: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The rows of the encoder's language table, int32, by language of the stream."""
        del vocabulary
        return {"language_rows": language_rows(stream.languages, languages)}

    def flops(self, encoder: EncoderConfig, stream: Stream, two_passes: bool) -> dict[str, float]:
        """One pass through the layers below the head; with two passes, one more forward."""
        return encoding_flops(encoder, stream.length, (self.layer,), two_passes)


def check_parallel(name: str, stream: Stream, num_texts: int | None = None) -> None:
    """Raises UserError unless examples have texts of one meaning (exactly `num_texts` of them)."""
    labelled = [feature for feature, spec in stream.features.items() if spec.labels]
    if labelled:
        raise UserError(
            f"objective {name!r} takes the texts of an example for translations or paraphrases, "
            f"but those of {', '.join(stream.tasks[:3])} carry the labels {labelled[0]!r}: name "
            "a mixture of parallel tasks, or train on labels with SequenceClassification"
        )
    if stream.num_texts < 2 or (num_texts and stream.num_texts != num_texts):
        have = (
            "text of one language"
            if stream.num_texts == 1
            else f"examples of {stream.num_texts} texts"
        )
        raise UserError(
            f"objective {name!r} needs a mixture of parallel tasks with "
            f"{num_texts or 'two or more'} texts in an example, but "
            f"{', '.join(stream.tasks[:3])} {'holds' if len(stream.tasks) == 1 else 'hold'} {have}"
        )


def sentence_vectors(
    model: Model, head: str, batch: Batch, inputs: Inputs, examples: int
) -> jax.Array:
    """The vectors float32[R, E · K, W] that a sentence head makes of packed rows.

    Args:
      model: with the head.
      head: its name.
      batch: tokens, segment_ids, positions int32[R, L]; languages int32[R, K]; row_id int32[R].
      inputs: of the objective; dropout follows from its key and the rows' ids, so that no mesh
        changes it.
      examples: E, places of a row.
    """
    module = model.heads[head]
    languages_RxL = token_languages(batch["segment_ids"], batch["languages"])
    (hidden_RxLxD,) = model.encoder(
        batch["tokens"],
        segment_ids=batch["segment_ids"],
        positions=batch["positions"],
        languages=inputs.buffers["language_rows"][languages_RxL],
        dropout_keys=row_keys(inputs.key, batch["row_id"]) if inputs.train else None,
        layers=(module.layer,),
    )
    texts = examples * inputs.stream.num_texts
    return module(pool(hidden_RxLxD, batch["segment_ids"], texts, module.pooling))


def sentence_sums(
    batch: Batch,
    inputs: Inputs,
    pairs: jax.Array,
    loss_XxN: jax.Array,
    counts_XxN: jax.Array,
    correct_XxN: jax.Array,
    language_XxN: jax.Array,
) -> dict[str, jax.Array]:
    """What an objective on sentence vectors reports, float32, of X anchors in each of N examples.

    Args:
      batch: of all rows.
      inputs: of the objective.
      pairs: bool[N], which places hold an example.
      loss_XxN: float32.
      counts_XxN: bool, which anchors have something to learn.
      correct_XxN: float32, 1 where the translation is nearest.
      language_XxN: int32, the anchor's language in the stream.

    Returns:
      count (anchors), correct, pairs (examples), tokens, positions; language_loss, language_count
      and language_correct, [languages].
    """
    counts_XxN = jnp.broadcast_to(counts_XxN, loss_XxN.shape).astype(jnp.float32)
    values = {"loss": loss_XxN, "count": counts_XxN, "correct": correct_XxN}
    return {
        "count": counts_XxN.sum(),
        "correct": correct_XxN.sum(),
        "pairs": pairs.sum(dtype=jnp.float32),
        "tokens": jnp.sum(batch["segment_ids"] != 0, dtype=jnp.float32),
        "positions": jnp.float32(batch["segment_ids"].size),
        **language_sums(len(inputs.stream.languages), language_XxN, **values),
    }
