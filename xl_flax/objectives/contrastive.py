"""Contrastive sentence objectives with the whole batch as negatives, on every mesh.

Shapes: Rows, C groups per row, K sides of a group, N = R · C groups, W width, P pairs of sides.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np

from xl_flax.data.stream import Rows, Stream
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.models.heads import HeadSettings, Model
from xl_flax.objectives import sentences
from xl_flax.ops.languages import language_rows
from xl_flax.ops.pooling import Pooling
from xl_flax.ops.similarity import log_sum_exps, softplus_sums

LOSSES = ("softmax", "sigmoid")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Contrastive:
    """Translations are drawn together, all other sentences of the batch pushed away.

    With "softmax" each sentence picks its translation among those of the whole batch, in both
    directions (Feng et al. 2022, LaBSE, eq. 1-2, arXiv:2007.01852; without a margin it is InfoNCE,
    van den Oord et al. 2018). With "sigmoid" every pair of sentences is judged by itself (Zhai et
    al. 2023, SigLIP, algorithm 1). Groups of more than two translations give the mean over all
    ordered pairs of sides (Fazili and Goswami 2026, arXiv:2602.21543).

    Sentences with the same tokens as an anchor, or as its translation, are not among its negatives.

    Raises:
      UserError: a setting without a meaning.
    """

    rows: Rows = gin.REQUIRED  # of parallel tasks
    batch_size: int = gin.REQUIRED  # rows per step, on all devices together; each has some groups
    loss_kind: str = "softmax"
    scale: float = 20.0  # of similarities, 1 / temperature
    learn_scale: bool = False  # start at `scale` and train it
    margin: float = 0.0  # taken from the translation's cosine (LaBSE: 0.3)
    bias: float = -10.0  # initial value of the sigmoid's learnt bias
    decoupled: bool = False
    """Leave the translation out of the denominator (Yeh et al. 2022, decoupled contrastive)."""
    hard_negatives: int = 0
    """The last so many sides of a group are hard negatives of the second side: candidates for the
    anchors of the first."""
    pooling: Pooling = "cls"
    layer: int = -1  # whose states are pooled
    projection: str | None = None  # "linear", "mlp" or None
    width: int | None = None  # of the projected vectors; None: the encoder's
    microbatches: int = 1
    """Encode the batch in so many parts, twice, and keep no part's activations (Gao et al. 2021,
    GradCache, arXiv:2101.06983): the same gradient in less memory and a third more time."""
    weight: float = 1.0  # of this loss beside other objectives'
    name: str = "contrastive"

    def __post_init__(self):
        def fail(message: str) -> None:
            raise UserError(f"Contrastive.{message}")

        if self.loss_kind not in LOSSES:
            fail(f"loss_kind = {self.loss_kind!r}: choose 'softmax' or 'sigmoid'")
        if self.loss_kind == "sigmoid" and (self.margin or self.decoupled or self.hard_negatives):
            fail("margin, decoupled and hard_negatives belong to loss_kind = 'softmax'")
        if self.scale <= 0:
            fail(f"scale = {self.scale} must be positive")
        if self.hard_negatives < 0:
            fail(f"hard_negatives = {self.hard_negatives} cannot be negative")
        for name in ("batch_size", "microbatches"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                fail(f"{name} = {value!r} must be a whole number, at least 1")

    @property
    def heads(self) -> Mapping[str, HeadSettings]:
        """The sentence head, named as the objective."""
        sigmoid = self.loss_kind == "sigmoid"
        return {
            self.name: {
                "kind": "sentence",
                "pooling": self.pooling,
                "layer": self.layer,
                "projection": self.projection,
                "width": self.width,
                "scale": self.scale if self.learn_scale or sigmoid else None,
                "bias": self.bias if sigmoid else None,
            }
        }

    def rate_at(self, row: int) -> None:
        """Nothing here changes with the row."""

    def slots(self, length: int) -> int:
        """No token is predicted."""
        return 0

    def description(self) -> dict[str, Any]:
        """What a run may not change when it goes on, as JSON can hold it."""
        kept = ("loss_kind", "scale", "margin", "decoupled", "hard_negatives", "weight")
        return {
            "kind": "Contrastive",
            **self.rows.description(),
            "head": dict(self.heads[self.name]),
            **{name: getattr(self, name) for name in kept},
        }

    def bind(
        self, vocabulary: Vocabulary, stream: Stream, languages: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The tables that `encode` and `compare` read besides the batch.

        Raises:
          UserError: rows without translations, or a batch without negatives.
        """
        sides = 2 + self.hard_negatives if self.hard_negatives else None
        sentences.check_parallel(self.name, stream, sides)
        sentences.check_candidates(self.name, self.batch_size, stream)
        return {
            "languages": language_rows(stream.languages, languages),
            "groups": np.zeros(
                stream.examples_per_row
            ),  # its length is what matters, which is static
        }

    def encode(
        self,
        model: Model,
        batch: dict[str, jax.Array],
        key: jax.Array,
        constants: dict[str, jax.Array],
        carried: Any = None,
    ) -> jax.Array:
        """The sentence vectors of some rows, float32[R, C · K, W]; each row's is its own affair."""
        del carried
        count = len(constants["groups"]) * batch["languages"].shape[1]
        return sentences.encode(model, self.name, batch, count, constants["languages"], key)

    def compare(
        self,
        model: Model,
        vectors_RxSxW: jax.Array,
        batch: dict[str, jax.Array],
        key: jax.Array,
        constants: dict[str, jax.Array],
        carried: Any = None,
    ) -> tuple[jax.Array, dict[str, jax.Array], None]:
        """The loss of a whole batch from its vectors.

        Returns:
          float32[] sum of the losses of all anchors; float32 sums: loss, count (anchors), correct
          (anchors nearest to their translation), pairs (groups), tokens, positions, and
          language_loss, language_count, language_correct [languages]; and nothing to carry on.
        """
        del key, carried
        groups, sides = len(constants["groups"]), batch["languages"].shape[1]
        head = model.heads[self.name]
        scale = self.scale if head.log_scale is None else jnp.exp(head.log_scale[...])
        valid_N = sentences.valid_groups(batch["segment_ids"], groups, sides)
        texts_NxK = sentences.text_keys(batch, groups, sides)
        vectors_KxNxW = jnp.moveaxis(vectors_RxSxW.reshape(len(valid_N), sides, -1), 1, 0)
        translations = sides - self.hard_negatives
        pairs = np.array(list(itertools.combinations(range(translations), 2)))

        def pair_loss(carry, pair):
            a, b = pair
            x, y = vectors_KxNxW[a], vectors_KxNxW[b]
            keys = jnp.stack([jnp.arange(len(x)), texts_NxK[:, a], texts_NxK[:, b]], axis=1)
            if self.loss_kind == "sigmoid":
                loss, correct = _sigmoid(x, y, scale, head.bias[...], keys, valid_N)
            else:
                extra = vectors_KxNxW[translations:].reshape(-1, x.shape[1])
                extra_keys = texts_NxK[:, translations:].T.reshape(-1)
                loss, correct = self._softmax(x, y, scale, keys, valid_N, extra, extra_keys)
            return carry, (loss, correct)  # each [2, N], anchors of side a and of side b

        _, (loss_Px2xN, correct_Px2xN) = jax.lax.scan(pair_loss, None, pairs)
        language_NxK = jnp.repeat(batch["languages"], groups, axis=0)
        language_Px2xN = language_NxK.T[pairs]
        sums = sentences.sentence_sums(
            batch, len(constants["languages"]), valid_N, loss_Px2xN, correct_Px2xN, language_Px2xN
        )
        return sums["loss"], sums, None

    def _softmax(self, x, y, scale, keys, valid, extra, extra_keys):
        """Losses and correct answers [2, N] of both directions."""
        found = log_sum_exps(x, y, scale, keys, keys, valid, valid)
        positive = scale * (jnp.sum(x * y, axis=1) - self.margin)
        rows, row_max = found.rows, found.row_max
        if len(extra):
            mine, theirs = keys[:, 2:], extra_keys[:, None]  # not the translation itself
            every = jnp.tile(valid, len(extra) // len(x))
            more = log_sum_exps(x, extra, scale, mine, theirs, valid, every)
            rows, row_max = jnp.logaddexp(rows, more.rows), jnp.maximum(row_max, more.row_max)
        negatives = jnp.stack([rows, found.columns])
        largest = jnp.stack([row_max, found.column_max])
        # An anchor without negatives, as where all sentences are equal, has nothing to learn.
        counts = valid & jnp.isfinite(negatives)
        negatives = jnp.where(counts, negatives, 0.0)
        loss = negatives - positive if self.decoupled else jax.nn.softplus(negatives - positive)
        correct = counts & (positive + scale * self.margin > largest)
        return jnp.where(counts, loss, 0.0), correct.astype(jnp.float32)


def _sigmoid(x, y, scale, bias, keys, valid):
    """Losses and correct answers [2, N]; a pair's loss is shared by its two anchors."""
    sums, largest = softplus_sums(x, y, scale, bias, keys, keys, valid, valid)
    positive = scale * jnp.sum(x * y, axis=1) + bias
    loss = jnp.where(valid, sums + jax.nn.softplus(-positive), 0.0)
    correct = (valid & (positive > largest)).astype(jnp.float32)
    return jnp.stack([loss, loss]), jnp.stack([correct, correct])
