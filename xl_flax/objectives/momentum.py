"""Sentence contrast with a momentum encoder and a queue of its vectors as negatives.

Shapes: Rows, E examples per row (of two pairs each with `mixup`), N = R · E examples, W width, Q
batches in the queue, H hashes of an example's texts.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xl_flax.data.stream import Stream
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.flops import encoder_flops
from xl_flax.models.heads import Model
from xl_flax.objectives import sentences
from xl_flax.objectives.base import Batch, Inputs, LogName, Loss, Objective, row_keys
from xl_flax.objectives.masking import mask_buffers, mask_rows
from xl_flax.ops.segments import mix_examples, present_examples, text_hashes, token_languages
from xl_flax.ops.similarity import log_sum_exps
from xl_flax.settings import Count, Fraction

SWAP_SITE, MIX_SITE, MASK_SITE = 1, 2, 3  # what the key is folded with; rows fold in their ids


@gin.configurable
@dataclasses.dataclass(frozen=True)
class MomentumContrastive(sentences.SentenceObjective):
    """A sentence picks its translation among the queue (He et al. 2020, MoCo, arXiv:1911.05722).

    As post-pretraining alignment (Pan et al. 2021, PPA, arXiv:2010.12547: a random side is the
    query) and as InfoXLM's XlCo (Chi et al. 2021, arXiv:2007.07834: the states of a middle layer,
    one projection, products that are not normalised, masked and mixed inputs). Keys come from an
    encoder whose parameters follow the trained ones: θ_k ← m θ_k + (1 - m) θ_q.

    A vector of the queue is no negative where its example and the query's have a text in common.

    Raises:
      UserError: a setting without a meaning.
    """

    batch_size: Count = gin.REQUIRED  # one size for the whole run
    queue_size: Count = gin.REQUIRED
    """Places for vectors in the queue, rounded down to whole batches. Each row has as many as the
    fullest row needs, so that those of others stay empty in part: fewer negatives than places."""
    momentum: Fraction = 0.999
    query: Literal["random", "both", "first"] = "random"
    """Which text asks: a "random" one of each pair (PPA, InfoXLM), "both", or the "first" one."""
    mask_rate: Fraction = 0.0
    """Share of the tokens that are hidden, as masked language modelling hides them (InfoXLM: 0.15),
    from the trained encoder and from the other one."""
    mixup: bool = False
    """Join pairs two by two, so that a query is two sentences and its key their translations, in
    the same order or in the other (InfoXLM: mixup contrast)."""
    wait_full: bool = False  # no loss before the queue is full (InfoXLM)
    normalise: bool = True  # compare by cosine; False: by product (InfoXLM)
    projection: Literal["linear", "affine", "tanh", "mlp"] | None = "mlp"
    name: LogName = "momentum"

    # The queue has a place for each example of a batch.
    free_fields: ClassVar[frozenset[str]] = Objective.free_fields - {"batch_size"}

    def head_settings(self) -> dict[str, Any]:
        """With the normalisation of the vectors."""
        return super().head_settings() | {"normalise": self.normalise}

    def check(self, stream: Stream) -> None:
        """Raises UserError if examples are no pairs, or the queue is smaller than a batch."""
        sentences.check_parallel(self.name, stream, 2)
        if self.mixup and stream.examples_per_row < 2:
            raise UserError(
                f"objective {self.name!r}: mixup joins pairs of a row, but a row of "
                f"{stream.length} tokens has place for one; raise Rows.length"
            )
        places = self._places(stream)
        batch = self.batch_size * places
        if self.queue_size < batch:
            raise UserError(
                f"objective {self.name!r}: queue_size = {self.queue_size} is smaller than a batch, "
                f"which has places for {self.batch_size} rows × {places} = {batch} pairs"
            )

    def buffers(
        self, vocabulary: Vocabulary, stream: Stream, languages: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """As of every objective on sentence vectors, and what masking and mixing read."""
        buffers = super().buffers(vocabulary, stream, languages)
        if self.mask_rate:
            buffers |= mask_buffers(vocabulary, stream)
        if self.mixup:
            special = vocabulary.special
            buffers |= {"sep_id": np.int32(special.sep), "pad_id": np.int32(special.pad)}
        return buffers

    def _head(self, params: Any) -> Any:
        """The head's part of a tree like the parameters', of which there is none without layers."""
        return params.get("heads", {}).get(self.name, {})

    def _places(self, stream: Stream) -> int:
        """E, places of a row for examples."""
        return -(-stream.examples_per_row // 2) if self.mixup else stream.examples_per_row

    def init_state(self, params: Any, stream: Stream) -> dict[str, Any]:
        """The momentum encoder, and an empty queue.

        Returns:
          encoder, head: copies of parameters; queue float32[N, Q, W], keys int32[N, Q, H] (of the
          vectors' examples), filled bool[N, Q]; batches int32[], how many have entered.
        """
        count = self.batch_size * self._places(stream)
        size = self.queue_size // count
        head = self._head(params)
        own = params["encoder"]["embeddings"]["tokens"].shape[1]
        width = head["out"].shape[1] if "out" in head else own
        return {
            "encoder": jax.tree.map(jnp.copy, params["encoder"]),
            "head": jax.tree.map(jnp.copy, head),
            "queue": jnp.zeros((count, size, width)),
            "keys": jnp.zeros((count, size, 4 if self.mixup else 2), jnp.int32),
            "filled": jnp.zeros((count, size), bool),
            "batches": jnp.zeros((), jnp.int32),
        }

    def state_axes(self, axes: Any) -> dict[str, Any]:
        """Copies lie as their parameters do, the queue as the batch."""
        return {
            "encoder": axes["encoder"],
            "head": self._head(axes),
            "queue": ("batch", None, None),
            "keys": ("batch", None, None),
            "filled": ("batch", None),
            "batches": (),
        }

    def encode(self, model: Model, batch: Batch, inputs: Inputs) -> dict[str, jax.Array]:
        """Queries and keys float32[R, 2 E, W] of some rows; keys have no gradient."""
        batch, _ = self._rows(batch, inputs)
        if self.mask_rate:
            keys_R = row_keys(jax.random.fold_in(inputs.key, MASK_SITE), batch["row_id"])
            languages_RxL = token_languages(batch["segment_ids"], batch["languages"])
            _, tokens_RxL = mask_rows(keys_R, batch, languages_RxL, inputs.buffers, self.mask_rate)
            batch |= {"tokens": tokens_RxL}
        params = nnx.to_pure_dict(nnx.state(model))
        params["encoder"] = inputs.state["encoder"]
        if self._head(params):
            params["heads"] = params["heads"] | {self.name: inputs.state["head"]}
        follower = nnx.merge(nnx.graphdef(model), params)
        places = self._places(inputs.stream)
        vectors = (
            sentences.sentence_vectors(m, self.name, batch, inputs, places)
            for m in (model, follower)
        )
        return dict(zip(("queries", "keys"), vectors, strict=True))

    def _rows(self, batch: Batch, inputs: Inputs) -> tuple[Batch, jax.Array]:
        """The rows as they are compared, before masking; hashes of their texts int32[R, E, H]."""
        examples = inputs.stream.examples_per_row
        hashes_RxEx2 = text_hashes(batch, examples, 2)
        if not self.mixup:
            return batch, hashes_RxEx2
        # What rows draw depends on their ids only, so no mesh and no cut changes it.
        keys_R = row_keys(jax.random.fold_in(inputs.key, MIX_SITE), batch["row_id"])
        ids = {name: inputs.buffers[name] for name in ("sep_id", "pad_id")}
        mixed, members_RxEx2 = mix_examples(keys_R, batch, examples, **ids)
        hashes_RxEx2x2 = jax.vmap(lambda hashes, members: hashes[members])(
            hashes_RxEx2, members_RxEx2
        )
        return mixed, hashes_RxEx2x2.reshape(*members_RxEx2.shape[:2], 4)

    def loss(self, model: Model, batch: Batch, inputs: Inputs) -> Loss:
        """The loss of a whole batch against the queue; an empty queue teaches nothing.

        Returns:
          Sums as of `sentences.sentence_sums`, of queries; as the state's update the keys that are
          to enter the queue.
        """
        del model
        places, state = self._places(inputs.stream), inputs.state
        rows, hashes_RxExH = self._rows(batch, inputs)
        hashes_NxH = hashes_RxExH.reshape(-1, hashes_RxExH.shape[-1])
        valid_N = present_examples(rows["segment_ids"], places, 2).reshape(-1)
        queries, keys = (
            jnp.moveaxis(inputs.encoded[name].reshape(len(valid_N), 2, -1), 1, 0)
            for name in ("queries", "keys")
        )
        coins = row_keys(jax.random.fold_in(inputs.key, SWAP_SITE), batch["row_id"])
        swap_N = jax.vmap(lambda k: jax.random.bernoulli(k, shape=(places,)))(coins).reshape(-1)
        if self.query == "first":
            swap_N = jnp.zeros_like(swap_N)
        query_text_N = swap_N.astype(jnp.int32)  # which text asks

        def take(vectors_2xNxW: jax.Array, text_N: jax.Array) -> jax.Array:
            return jnp.where(text_N[:, None] == 1, vectors_2xNxW[1], vectors_2xNxW[0])

        def anchor_losses(query_NxW: jax.Array, key_NxW: jax.Array) -> tuple[jax.Array, ...]:
            positive = self.scale * jnp.sum(query_NxW * key_NxW, axis=1)
            negatives, largest = self._queued(query_NxW, hashes_NxH, valid_N, state)
            counts = valid_N & jnp.isfinite(negatives)  # nothing queued: nothing to learn
            if self.wait_full:
                counts &= state["batches"] >= state["queue"].shape[1]
            negatives = jnp.where(counts, negatives, 0.0)
            losses = jnp.where(counts, jax.nn.softplus(negatives - positive), 0.0)
            return losses, counts, (counts & (positive > largest)).astype(jnp.float32)

        both = self.query == "both"
        directions = [query_text_N, 1 - query_text_N] if both else [query_text_N]
        results = [anchor_losses(take(queries, text), take(keys, 1 - text)) for text in directions]
        loss_DxN, counts_DxN, correct_DxN = map(jnp.stack, zip(*results, strict=True))
        language_2xN = jnp.repeat(batch["languages"], places, axis=0).T
        language_DxN = jnp.stack([jnp.where(text == 1, *language_2xN[::-1]) for text in directions])
        sums = sentences.sentence_sums(
            *(batch, inputs, valid_N), *(loss_DxN, counts_DxN, correct_DxN, language_DxN)
        )
        entering = {
            "queue": take(keys, 1 - query_text_N),
            "keys": hashes_NxH,
            "filled": valid_N,
        }
        return Loss(loss_DxN.sum(), sums, jax.lax.stop_gradient(entering))

    def _queued(self, query_NxW, hashes_NxH, valid_N, state):
        """Log-sum-exp and maximum over the queue for each query, float32[N]."""
        queue_MxW = state["queue"].reshape(-1, state["queue"].shape[-1])
        # The queue stays where it is and the few queries travel: they are y.
        reduced = log_sum_exps(
            *(queue_MxW, query_NxW, self.scale),
            *(state["keys"].reshape(len(queue_MxW), -1), hashes_NxH),
            *(state["filled"].reshape(-1), valid_N),
        )
        return reduced.columns, reduced.column_max

    def update_state(self, state: dict[str, Any], params: Any, update: Any) -> dict[str, Any]:
        """Parameters follow, keys enter the queue in place of the oldest."""

        def follow(slow: jax.Array, fast: jax.Array) -> jax.Array:
            return self.momentum * slow + (1 - self.momentum) * fast

        place = state["batches"] % state["queue"].shape[1]
        entered = {name: state[name].at[:, place].set(new) for name, new in update.items()}
        return entered | {
            "encoder": jax.tree.map(follow, state["encoder"], params["encoder"]),
            "head": jax.tree.map(follow, state["head"], self._head(params)),
            "batches": state["batches"] + 1,
        }

    def flops(self, encoder: EncoderConfig, stream: Stream, two_passes: bool) -> dict[str, float]:
        """As of every objective on sentence vectors, and the momentum encoder's forward pass.

        There is one, also where rows are encoded twice: keys have no gradient to compute.
        """
        forward = encoder_flops(encoder, stream.length, (self.layer,), backward=False)
        return super().flops(encoder, stream, two_passes) | {
            "momentum encoder": sum(forward.values())
        }
