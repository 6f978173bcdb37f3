"""Contrastive sentence objectives with the whole batch as negatives, on every mesh.

Shapes: Rows, E examples per row, K texts of an example, N = R · E examples, W width, P pairs of
texts.
"""

import dataclasses
import itertools
import math
from typing import Annotated, Any, Literal

import gin
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval

from xl_flax.data.features import Features
from xl_flax.data.stream import Stream
from xl_flax.errors import UserError
from xl_flax.models.heads import Model
from xl_flax.objectives import sentences
from xl_flax.objectives.base import Batch, Inputs, LogName, Loss
from xl_flax.ops.segments import present_examples, text_hashes
from xl_flax.ops.similarity import log_sum_exps, softplus_sums
from xl_flax.settings import Finite, Natural

LARGEST_SCALE = 100.0  # of a softmax that learns it (Radford et al. 2021, CLIP, §2.5)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Contrastive(sentences.SentenceObjective):
    """Translations are drawn together, all other sentences of the batch pushed away.

    With "softmax" each sentence picks its translation among those of the whole batch, in both
    directions (Feng et al. 2022, LaBSE, eq. 1-2, arXiv:2007.01852; without a margin it is InfoNCE,
    van den Oord et al. 2018). With "sigmoid" every pair of sentences is judged by itself (Zhai et
    al. 2023, SigLIP, algorithm 1). Examples of more than two translations give the mean over
    all ordered pairs of texts (Fazili and Goswami 2026, arXiv:2602.21543).

    Two sentences are no negatives of each other where their examples have a text in common, in
    whatever language and place: with "eng_fin" and "ces_eng" of one verse in a batch, all four
    texts mean the same.

    Raises:
      UserError: a setting without a meaning.
    """

    loss_kind: Literal["softmax", "sigmoid"] = "softmax"
    learn_scale: bool = False
    """Start at `scale` and train it: up to 100, as CLIP does; a sigmoid's, which is always learnt,
    without a limit, as SigLIP does."""
    # Taken from the cosine of translations (LaBSE: 0.3).
    margin: Annotated[float, Interval(ge=0, le=2)] = 0.0
    bias: Finite = -10.0  # initial value of the sigmoid's learnt bias
    decoupled: bool = False
    """Leave the translation out of the denominator (Yeh et al. 2022, decoupled contrastive)."""
    hard_negatives: Natural = 0
    """The last so many texts of an example are hard negatives of the second one: candidates for the
    anchors of the first, but for those that are a text of the anchor's own example."""
    name: LogName = "contrastive"

    def __post_init__(self):
        super().__post_init__()
        if self.loss_kind == "sigmoid" and (self.margin or self.decoupled or self.hard_negatives):
            self.fail("margin, decoupled and hard_negatives belong to loss_kind = 'softmax'")
        if self.loss_kind == "softmax" and self.learn_scale and self.scale > LARGEST_SCALE:
            self.fail(
                f"scale = {self.scale} begins above {LARGEST_SCALE:.0f}, a learnt one's limit"
            )

    def head_settings(self) -> dict[str, Any]:
        """With what is learnt of the similarities."""
        sigmoid = self.loss_kind == "sigmoid"
        return super().head_settings() | {
            "scale": self.scale if self.learn_scale or sigmoid else None,
            "bias": self.bias if sigmoid else None,
        }

    def usual_example(self) -> tuple[int, Features]:
        """A sentence, its translation, and what it must not be taken for."""
        return 2 + self.hard_negatives, {}

    def check(self, stream: Stream) -> None:
        """Raises UserError if there are no translations, or a batch has no negatives."""
        num_texts = 2 + self.hard_negatives if self.hard_negatives else None
        sentences.check_parallel(self.name, stream, num_texts)
        rows = min(size for _, size in self.batch_phases)
        if rows * stream.examples_per_row < 2:
            raise UserError(
                f"objective {self.name!r}: a batch of {rows} row with at most "
                f"{stream.examples_per_row} example has no negatives; raise batch_size or "
                "Rows.length"
            )

    def encode(self, model: Model, batch: Batch, inputs: Inputs) -> jax.Array:
        """The sentence vectors of some rows, float32[R, E · K, W]."""
        examples = inputs.stream.examples_per_row
        return sentences.sentence_vectors(model, self.name, batch, inputs, examples)

    def loss(self, model: Model, batch: Batch, inputs: Inputs) -> Loss:
        """The losses of all anchors; sums as of `sentences.sentence_sums`."""
        examples, num_texts = inputs.stream.examples_per_row, inputs.stream.num_texts
        head = model.heads[self.name]
        scale = self._scale(head)
        valid_N = present_examples(batch["segment_ids"], examples, num_texts).reshape(-1)
        texts_NxK = text_hashes(batch, examples, num_texts).reshape(-1, num_texts)
        vectors_KxNxW = jnp.moveaxis(inputs.encoded.reshape(len(valid_N), num_texts, -1), 1, 0)
        translations = num_texts - self.hard_negatives
        keys_NxK = texts_NxK[:, :translations]  # a vector has those of all that mean the same
        pairs = np.array(list(itertools.combinations(range(translations), 2)))

        def pair_loss(carry, pair):
            a, b = pair
            x, y = vectors_KxNxW[a], vectors_KxNxW[b]
            if self.loss_kind == "sigmoid":
                loss, correct = _sigmoid(x, y, scale, head.bias[...], keys_NxK, valid_N)
            else:
                extra = vectors_KxNxW[translations:].reshape(-1, x.shape[1])
                extra_keys = texts_NxK[:, translations:].T.reshape(-1, 1)
                loss, correct = self._softmax(x, y, scale, keys_NxK, valid_N, extra, extra_keys)
            return carry, (loss, correct)  # each [2, N], anchors of text a and of text b

        _, (loss_Px2xN, correct_Px2xN) = jax.lax.scan(pair_loss, None, pairs)
        language_NxK = jnp.repeat(batch["languages"], examples, axis=0)
        sums = sentences.sentence_sums(
            *(batch, inputs, valid_N),
            *(loss_Px2xN, valid_N, correct_Px2xN, language_NxK.T[pairs]),
        )
        return Loss(loss_Px2xN.sum(), sums)

    def _scale(self, head):
        """The factor of similarities, fixed or learnt."""
        if head.log_scale is None:
            return self.scale
        learnt = head.log_scale[...]
        return jnp.exp(learnt if self.loss_kind == "sigmoid" else _limited(learnt))

    def _softmax(self, x, y, scale, keys, valid, extra, extra_keys):
        """Losses and correct answers [2, N] of both directions."""
        near = log_sum_exps(x, y, scale, keys, keys, valid, valid)
        positive = scale * (jnp.sum(x * y, axis=1) - self.margin)
        rows, row_max = near.rows, near.row_max
        if len(extra):
            every = jnp.tile(valid, len(extra) // len(x))
            more = log_sum_exps(x, extra, scale, keys, extra_keys, valid, every)
            rows, row_max = jnp.logaddexp(rows, more.rows), jnp.maximum(row_max, more.row_max)
        negatives = jnp.stack([rows, near.columns])
        largest = jnp.stack([row_max, near.column_max])
        # An anchor without negatives, as where all sentences are equal, has nothing to learn.
        counts = valid & jnp.isfinite(negatives)
        negatives = jnp.where(counts, negatives, 0.0)
        loss = negatives - positive if self.decoupled else jax.nn.softplus(negatives - positive)
        correct = counts & (positive + scale * self.margin > largest)
        return jnp.where(counts, loss, 0.0), correct.astype(jnp.float32)


@jax.custom_vjp
def _limited(log_scale):
    """At most log 100; from there on only a gradient that makes it smaller has an effect."""
    return jnp.minimum(log_scale, math.log(LARGEST_SCALE))


_limited.defvjp(
    lambda log_scale: (_limited(log_scale), log_scale < math.log(LARGEST_SCALE)),
    lambda below, gradient: (jnp.where(below | (gradient > 0), gradient, 0.0),),
)


def _sigmoid(x, y, scale, bias, keys, valid):
    """Losses and correct answers [2, N]; a pair's loss is shared by its two anchors."""
    sums, largest = softplus_sums(x, y, scale, bias, keys, keys, valid, valid)
    positive = scale * jnp.sum(x * y, axis=1) + bias
    loss = jnp.where(valid, sums + jax.nn.softplus(-positive), 0.0)
    correct = (valid & (positive > largest)).astype(jnp.float32)
    return jnp.stack([loss, loss]), jnp.stack([correct, correct])
