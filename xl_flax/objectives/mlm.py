"""Masked language modelling: predict tokens that were hidden (Devlin et al. 2019, BERT, §3.1).

Shapes: Batch, Length, K prediction slots of a row, D = width, V = vocabulary.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import gin
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import doc

from xl_flax.data.stream import Stream
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.flops import encoder_flops, mlm_head_flops
from xl_flax.models.heads import MLM_HEAD, HeadSettings, Model, mlm_prediction
from xl_flax.objectives.base import Batch, Inputs, LogName, Loss, Mean, Objective, row_keys
from xl_flax.objectives.masking import mask_buffers, mask_rows
from xl_flax.ops.cross_entropy import SlotLoss, chunk_size, linear_cross_entropy
from xl_flax.ops.languages import language_rows, language_sums
from xl_flax.parallel.rules import constrain, local_shape
from xl_flax.settings import PHASES, Phases, Positive, Rate, Share

DROPOUT_SITE = 2  # what a row's key is folded with, beside those of masking

Rates = Annotated[
    Rate | Phases[Rate],
    doc(f"a number more than 0 and less than 1, or {PHASES.format('such a number')}"),
]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class MaskedLM(Objective):
    """Masked language modelling on packed rows.

    Raises:
      UserError: a setting that makes no sense.
    """

    rate: Rates = 0.15
    """Share of the tokens to predict, or phases [(first row, share), ...] at absolute row counts.
    A batch has the rate of its first row; each rate has its own number of slots and compiles its
    own step."""
    mask: Share = 0.8  # share of the predicted tokens that become the mask token
    random: Share = 0.1  # share that become a random token; the rest stays as it is
    whole_words: bool = False  # all pieces of a word or none
    same_language_random: bool = False  # draw random tokens among those of the row's language
    logits_mib: Positive = 256  # memory for the logits that exist at once, per device
    name: LogName = "mlm"

    metrics: ClassVar[Mapping[str, Mean]] = {
        "loss": Mean("loss", by_language=True),
        "accuracy": Mean("correct", "predicted", by_language=True),
        "fill": Mean("tokens", "positions", on_console=False),
        "overflow": Mean("overflow", "masked", on_console=False),
    }
    free_fields: ClassVar[frozenset[str]] = Objective.free_fields | {"logits_mib"}

    def __post_init__(self):
        super().__post_init__()
        if self.mask + self.random > 1:
            self.fail(
                f"mask = {self.mask} and random = {self.random} are shares of the predicted "
                "tokens: their sum cannot exceed 1"
            )

    @property
    def phases(self) -> list[tuple[int, float]]:
        """The rate as phases [(first row, rate), ...]."""
        if isinstance(self.rate, int | float):
            return [(0, float(self.rate))]
        return [(int(first), float(rate)) for first, rate in self.rate]

    def phase_at(self, row: int) -> float:
        """The rate of a batch that begins at this row of the stream."""
        return [rate for first, rate in self.phases if first <= row][-1]

    def at_phase(self, phase: float) -> "MaskedLM":
        """With this rate only."""
        return dataclasses.replace(self, rate=phase)

    def heads(self, stream: Stream) -> Mapping[str, HeadSettings]:
        """The MLM head."""
        del stream
        return {MLM_HEAD: {}}

    def check(self, stream: Stream) -> None:
        """Raises UserError if examples have several texts: MLM alone must not see translations."""
        if stream.num_texts > 1:
            raise UserError(
                f"objective {self.name!r} reads text of one language at a time, but the examples "
                f"of {', '.join(stream.tasks[:3])} have {stream.num_texts} texts; train on "
                "translations with TranslationLM, or name a mixture of single texts"
            )

    def buffers(
        self, vocabulary: Vocabulary, stream: Stream, languages: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Those of `mask_buffers`, and the rows of the encoder's language table.

        Raises:
          UserError: a language without a token to draw.
        """
        mask = mask_buffers(
            vocabulary,
            stream,
            same_language_random=self.same_language_random,
            whole_words=self.whole_words,
        )
        return mask | {"language_rows": language_rows(stream.languages, languages)}

    # ---- Hooks for objectives that differ in one point

    def encoder_inputs(self, batch: Batch, keys_B: jax.Array, inputs: Inputs) -> Batch:
        """The rows as the encoder reads them, before they are masked.

        Returns:
          tokens, segment_ids, positions int32[B, L], and token_languages int32, broadcastable to
          [B, L].
        """
        del keys_B, inputs
        return batch | {"token_languages": batch["languages"]}

    def slot_weights(self, slots: Mapping[str, jax.Array], inputs: Inputs) -> jax.Array:
        """The weight of each slot's cross-entropy, float32[B, K]: 1 where a token is predicted.

        The loss of a batch is its weighted mean. A subclass may weight languages or tokens.

        Args:
          slots: filled bool[B, K], is there a token to predict; tokens int32[B, K], that token;
            languages int32[B, K], an index into `inputs.stream.languages`.
          inputs: as of `loss`.
        """
        del inputs
        return slots["filled"].astype(jnp.float32)

    # ---- The loss

    def loss(self, model: Model, batch: Batch, inputs: Inputs) -> Loss:
        """Cross-entropies of the masked tokens, in nats.

        A row's masks and dropout depend on the objective's key and the row's id only.

        Args:
          model: encoder with an MLM head.
          batch: tokens, segment_ids, positions int32[B, L]; languages int32[B, texts]; row_id
            int32[B].
          inputs: with the rate as `phase`, since the number of slots follows from it.

        Returns:
          Sums: count (weights of the slots), predicted (tokens of other weight than 0), correct (of
          these), masked
          (selected tokens, before overflow), overflow (selected, but without a slot), tokens (real
          ones, special tokens included), positions (B · L); language_loss, language_count,
          language_correct and language_predicted, [languages], of which the loss is not weighted.
        """
        keys_B = row_keys(inputs.key, batch["row_id"])
        batch = self.encoder_inputs(batch, keys_B, inputs)
        shape = batch["tokens"].shape
        languages_BxL = jnp.broadcast_to(batch["token_languages"], shape)
        chosen, corrupted_BxL = mask_rows(
            *(keys_B, batch, languages_BxL, inputs.buffers),
            *(inputs.phase, self.mask, self.random),
        )
        dropout_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, DROPOUT_SITE)
        hidden_BxLxD = model.encoder(
            corrupted_BxL,
            segment_ids=batch["segment_ids"],
            positions=batch["positions"],
            languages=inputs.buffers["language_rows"][languages_BxL],
            dropout_keys=dropout_keys_B if inputs.train else None,
        )
        # Only the slots meet the head. Empty ones read the row's last token and weigh nothing.
        at_BxK = jnp.minimum(chosen.positions_K, shape[1] - 1)
        slots = {
            "filled": chosen.filled_K,
            "tokens": jnp.take_along_axis(batch["tokens"], at_BxK, axis=1),
            "languages": jnp.take_along_axis(languages_BxL, at_BxK, axis=1),
        }
        weights_BxK = self.slot_weights(slots, inputs)
        result = self._predict(model, hidden_BxLxD, at_BxK, slots, weights_BxK, inputs)
        # A slot of weight 0 is not computed: it counts neither as right nor as wrong.
        predicted_BxK = (slots["filled"] & (weights_BxK != 0)).astype(jnp.float32)
        filled = slots["filled"].sum(dtype=jnp.float32)
        overflow = chosen.overflow.sum().astype(jnp.float32)
        sums = {
            "count": weights_BxK.sum(),
            "predicted": predicted_BxK.sum(),
            "correct": result.correct_BxK.sum(),
            "masked": filled + overflow,
            "overflow": overflow,
            "tokens": jnp.sum(batch["segment_ids"] != 0, dtype=jnp.float32),
            "positions": jnp.float32(math.prod(shape)),
            **language_sums(
                len(inputs.stream.languages),
                slots["languages"],
                loss=result.loss_BxK,
                count=predicted_BxK,
                correct=result.correct_BxK,
                predicted=predicted_BxK,
            ),
        }
        return Loss(result.total, sums)

    def _predict(
        self,
        model: Model,
        hidden_BxLxD: jax.Array,
        at_BxK: jax.Array,
        slots: Mapping[str, jax.Array],
        weights_BxK: jax.Array,
        inputs: Inputs,
    ) -> SlotLoss:
        """The head on the slots' states, and its loss, in chunks that fit the memory."""
        hidden_BxKxD = jnp.take_along_axis(hidden_BxLxD, at_BxK[..., None], axis=1)
        head, table_VxD, bias_V = mlm_prediction(model)
        rows, length, _ = hidden_BxLxD.shape
        # How many blocks of rows lie on different devices, and how much of the logits on one.
        local_rows, local_vocab = local_shape(("batch", "vocab"), (rows, table_VxD.shape[0]))
        expected = _usual_slots(inputs.phase, local_rows, length)
        expected = min(expected, at_BxK.shape[1] * local_rows)
        return linear_cross_entropy(
            constrain(head.features(hidden_BxKxD), ("batch", None, None)),
            table_VxD,
            bias_V,
            slots["tokens"],
            weights_BxK,
            chunk=chunk_size(expected, 4 * local_vocab, self.logits_mib),
            shards=rows // local_rows,
        )

    def loop_turns(self, rows: int, length: int, vocabulary: int) -> float:
        """Chunks of logits after the first one."""
        slots = _usual_slots(max(rate for _, rate in self.phases), rows, length)
        return math.ceil(slots / chunk_size(slots, 4 * vocabulary, self.logits_mib)) - 1

    def flops(self, encoder: EncoderConfig, stream: Stream, two_passes: bool) -> dict[str, float]:
        """One pass through the encoder, and the head on the targets of the highest rate."""
        del two_passes
        targets = max(rate for _, rate in self.phases)
        return encoder_flops(encoder, stream.length) | mlm_head_flops(encoder, targets)

    def description(self) -> dict[str, Any]:
        """As of every objective, with the rate as phases."""
        return super().description() | {"rate": [list(phase) for phase in self.phases]}


def _usual_slots(rate: float, rows: int, length: int) -> float:
    """Predicted tokens of some rows.

    A row's number is a token, or half a word, from its mean. Two such deviations above the mean of
    all rows: seldom is another chunk needed for a few slots.
    """
    return rate * length * rows + 2 * math.sqrt(rows)
