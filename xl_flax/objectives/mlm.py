"""Masked language modelling: predict tokens that were hidden (Devlin et al. 2019, BERT, §3.1)."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np

from xl_flax.data.stream import Rows, Stream
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.models.heads import MLM_HEAD, Model, mlm_prediction
from xl_flax.ops.cross_entropy import chunk_size, linear_cross_entropy
from xl_flax.ops.languages import language_rows, language_sums
from xl_flax.ops.masking import corrupt, select_slots, slot_count
from xl_flax.parallel.rules import constrain, local_shape

MASK_SITE, CORRUPT_SITE, DROPOUT_SITE = range(3)  # what a row's key is folded with


@gin.configurable
@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Masked language modelling on packed rows.

    Raises:
      UserError: rates or shares that are no probabilities, or phases out of order.
    """

    rows: Rows = gin.REQUIRED
    batch_size: int = gin.REQUIRED  # rows per step, on all devices together
    rate: float | Sequence[tuple[int, float]] = 0.15
    """Share of the tokens to predict, or phases [(first row, share), ...] at absolute row counts.
    A batch has the rate of its first row; each rate has its own number of slots and compiles its
    own step."""
    mask: float = 0.8  # share of the predicted tokens that become the mask token
    random: float = 0.1  # share that become a random token; the rest stays as it is
    whole_words: bool = False  # all pieces of a word or none
    same_language_random: bool = False  # draw random tokens among those of the row's language
    logits_mib: float = 256  # memory for the logits that exist at once, per device
    weight: float = 1.0  # of this loss beside other objectives'
    name: str = "mlm"

    heads = {MLM_HEAD: {}}  # noqa: RUF012

    def __post_init__(self):
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise UserError(
                f"MaskedLM.batch_size = {self.batch_size!r}: must be a whole number of rows."
            )
        firsts = [first for first, _ in self.phases]
        if not firsts or firsts[0] != 0 or any(a >= b for a, b in itertools.pairwise(firsts)):
            raise UserError(
                f"MaskedLM.rate has phases at rows {firsts}: they must begin at 0 and ascend."
            )
        for _, rate in self.phases:
            if not 0 < rate < 1:
                raise UserError(f"MaskedLM.rate = {rate} is not between 0 and 1.")
        if min(self.mask, self.random) < 0 or self.mask + self.random > 1:
            raise UserError(
                f"MaskedLM: mask = {self.mask} and random = {self.random} are shares of the "
                "predicted tokens; neither can be negative, and their sum cannot exceed 1."
            )

    @property
    def phases(self) -> list[tuple[int, float]]:
        """The rate as phases [(first row, rate), ...]."""
        if isinstance(self.rate, int | float):
            return [(0, float(self.rate))]
        return [(int(first), float(rate)) for first, rate in self.rate]

    def rate_at(self, row: int) -> float:
        """The rate of a batch that begins at this row of the stream."""
        return [rate for first, rate in self.phases if first <= row][-1]

    def slots(self, length: int, rate: float | None = None) -> int:
        """Prediction slots of a row of `length` tokens at `rate` (default: the highest one)."""
        return slot_count(max(r for _, r in self.phases) if rate is None else rate, length)

    def description(self) -> dict[str, Any]:
        """What a run may not change when it goes on, as JSON can hold it."""
        return {
            "kind": "MaskedLM",
            **self.rows.description(),
            "rate": [list(phase) for phase in self.phases],
            "mask": self.mask,
            "random": self.random,
            "whole_words": self.whole_words,
            "same_language_random": self.same_language_random,
            "weight": self.weight,
        }

    def check_rows(self, stream: Stream) -> None:
        """Raises UserError if rows hold translations: an MLM-only run must not see any aligned."""
        if stream.num_texts > 1:
            raise UserError(
                f"objective {self.name!r} reads text of one language at a time, but "
                f"{', '.join(stream.tasks[:3])} hold translations; train on them with "
                "TranslationLM, or name a mixture of single languages"
            )

    def bind(
        self, vocabulary: Vocabulary, stream: Stream, languages: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The tables that `loss` reads besides the batch.

        Args:
          vocabulary: of the run.
          stream: or another source of rows; its languages are those of the sums, and with
            `same_language_random` its `unigrams` say which tokens each has.
          languages: of the run, in the order of the encoder's language table.

        Returns:
          special bool[V]; mask_id int32[]; random_ids int32[n] and random_ranges
          int32[languages, 2], the part of `random_ids` for each language; languages int32, their
          rows in the language table; word_starts bool[V] with `whole_words`.

        Raises:
          UserError: rows of the wrong kind, or a language without a token to draw.
        """
        self.check_rows(stream)
        special = np.asarray(vocabulary.special_mask())
        if self.same_language_random:
            unigrams = stream.unigrams()
            ids = [np.asarray(unigrams[language][0]) for language in stream.languages]
            ids = [own[~special[own]] for own in ids]
            ends = np.cumsum([0, *map(len, ids)])
            ranges = np.stack([ends[:-1], ends[1:]], axis=1)
        else:
            ids = [np.flatnonzero(~special)]
            ranges = np.tile([0, len(ids[0])], (len(stream.languages), 1))
        for language, (begin, end) in zip(stream.languages, ranges, strict=True):
            if begin == end:
                raise UserError(
                    f"language {language!r} has only special tokens, none to put in place of "
                    "others; check its data, or set MaskedLM.same_language_random = False."
                )
        constants = {
            "special": special,
            "mask_id": np.int32(vocabulary.special.mask),
            "random_ids": np.concatenate(ids).astype(np.int32),
            "random_ranges": ranges.astype(np.int32),
            "languages": language_rows(stream.languages, languages),
        }
        if self.whole_words:
            constants["word_starts"] = np.asarray(vocabulary.word_starts())
        return constants

    def arrange(
        self, batch: dict[str, jax.Array], keys_B: jax.Array, constants: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """The rows as the encoder reads them; "languages" int32, broadcastable to [B, L]."""
        del keys_B, constants
        return batch

    def loss(
        self,
        model: Model,
        batch: dict[str, jax.Array],
        key: jax.Array,
        constants: dict[str, jax.Array],
        rate: float,
        train: bool = True,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sum of the cross-entropies of the masked tokens, in nats, and sums to report.

        A row's masks and dropout depend on `key` and its row id only. Everything is a sum over
        rows, so batches can be cut, accumulated and spread over devices; the mean is
        `loss / count`. Held-out evaluation calls this with one fixed key and `train=False`.

        Args:
          model: encoder with an "mlm" head.
          batch: tokens, segment_ids, positions int32[B, L]; language, row int32[B].
          key: of the run, the same at each step.
          constants: from `bind`.
          rate: share of the tokens to predict; a Python number, since slots follow from it.
          train: with dropout.

        Returns:
          float32[] loss sum, and float32 sums: loss, count (predicted tokens), correct (of those),
          masked (selected tokens, before overflow), overflow (selected but without a slot), tokens
          (real ones, special tokens included), positions (B · L); language_loss, language_count
          and language_correct, [languages].
        """
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["row_id"])
        batch = self.arrange(batch, keys_B, constants)
        tokens_BxL, segments_BxL = batch["tokens"], batch["segment_ids"]
        size, length = tokens_BxL.shape
        slots = self.slots(length, rate)
        language_BxL = jnp.broadcast_to(batch["languages"], (size, length))

        def site(i: int) -> jax.Array:
            return jax.vmap(jax.random.fold_in, (0, None))(keys_B, i)

        def mask_row(mask_key, corrupt_key, tokens_L, segments_L, language_L):
            chosen = select_slots(
                mask_key,
                tokens_L,
                segments_L,
                constants["special"],
                rate,
                slots,
                constants["word_starts"] if self.whole_words else None,
            )
            at_K = jnp.minimum(chosen.positions_K, length - 1)
            corrupted_L = corrupt(
                corrupt_key,
                tokens_L,
                chosen.positions_K,
                constants["mask_id"],
                self.mask,
                self.random,
                constants["random_ids"],
                constants["random_ranges"][language_L[at_K]],
            )
            return chosen, corrupted_L

        chosen, corrupted_BxL = jax.vmap(mask_row)(
            site(MASK_SITE), site(CORRUPT_SITE), tokens_BxL, segments_BxL, language_BxL
        )
        hidden_BxLxD = model.encoder(
            corrupted_BxL,
            segment_ids=segments_BxL,
            positions=batch["positions"],
            languages=constants["languages"][language_BxL],
            dropout_keys=site(DROPOUT_SITE) if train else None,
        )
        # Only the slots meet the head. Empty ones read the row's last token and weigh nothing.
        at_BxK = jnp.minimum(chosen.positions_K, length - 1)
        hidden_BxKxD = jnp.take_along_axis(hidden_BxLxD, at_BxK[..., None], axis=1)
        head, table_VxD, bias_V = mlm_prediction(model)
        # How many blocks of rows lie on different devices, and how much of the logits on one.
        vocab_size = table_VxD.shape[0]
        local_rows, local_vocab = local_shape(("batch", "vocab"), (size, vocab_size))
        # Two standard deviations above the mean: seldom is another chunk needed for a few slots.
        expected = rate * length * local_rows
        expected = min(expected + 2 * math.sqrt(expected), slots * local_rows)
        result = linear_cross_entropy(
            constrain(head.features(hidden_BxKxD), ("batch", None, None)),
            table_VxD,
            bias_V,
            jnp.take_along_axis(tokens_BxL, at_BxK, axis=1),
            chosen.filled_K.astype(jnp.float32),
            chunk=chunk_size(expected, 4 * local_vocab, self.logits_mib),
            groups=size // local_rows,
        )

        count_BxK = chosen.filled_K.astype(jnp.float32)
        sums = {
            "loss": result.total,
            "count": count_BxK.sum(),
            "correct": result.correct_BxK.sum(),
            "masked": count_BxK.sum() + chosen.overflow.sum(),
            "overflow": chosen.overflow.sum().astype(jnp.float32),
            "tokens": jnp.sum(segments_BxL != 0, dtype=jnp.float32),
            "positions": jnp.float32(size * length),
            **language_sums(
                len(constants["languages"]),
                jnp.take_along_axis(language_BxL, at_BxK, axis=1),
                loss=result.loss_BxK,
                count=count_BxK,
                correct=result.correct_BxK,
            ),
        }
        return result.total, sums
