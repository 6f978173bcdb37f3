"""Sentence contrast with a momentum encoder and a queue of its vectors as negatives.

Shapes: Rows, E examples per row, N = R · E examples, W width, Q batches in the queue.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import gin
import jax
import jax.numpy as jnp
from flax import nnx

from xl_flax.data.stream import Stream
from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.flops import encoder_flops
from xl_flax.models.heads import Model
from xl_flax.objectives import sentences
from xl_flax.objectives.base import Batch, Inputs, LogName, Loss, Objective, row_keys
from xl_flax.ops.similarity import log_sum_exps
from xl_flax.settings import Count, Fraction

SWAP_SITE = 1  # what the objective's key is folded with; rows fold in their ids


@gin.configurable
@dataclasses.dataclass(frozen=True)
class MomentumContrastive(sentences.SentenceObjective):
    """A sentence picks its translation among the queue (He et al. 2020, MoCo, arXiv:1911.05722).

    As post-pretraining alignment (Pan et al. 2021, PPA, arXiv:2010.12547: a random side is the
    query) and as InfoXLM's XlCo (Chi et al. 2021, arXiv:2007.07834: the states of a middle layer,
    one projection, products that are not normalised). Keys come from an encoder whose parameters
    follow the trained ones: θ_k ← m θ_k + (1 - m) θ_q.

    A vector of the queue is no negative where its example and the query's have a text in common.

    Raises:
      UserError: a setting without a meaning.
    """

    batch_size: Count = gin.REQUIRED  # one size for the whole run
    queue_size: Count = gin.REQUIRED
    """Vectors in the queue; rounded down to whole batches, each with a place for every example."""
    momentum: Fraction = 0.999
    query: Literal["random", "both", "first"] = "random"
    """Which text asks: a "random" one of each pair (PPA), "both", or the "first" one always."""
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
        batch = self.batch_size * stream.examples_per_row
        if self.queue_size < batch:
            raise UserError(
                f"objective {self.name!r}: queue_size = {self.queue_size} is smaller than a batch, "
                f"which has places for {self.batch_size} rows × {stream.examples_per_row} = "
                f"{batch} pairs"
            )

    def init_state(self, params: Any, stream: Stream) -> dict[str, Any]:
        """The momentum encoder, and an empty queue.

        Returns:
          encoder, head: copies of parameters; queue float32[N, Q, W], keys int32[N, Q, 2] (of the
          vectors' examples), filled bool[N, Q]; batches int32[], how many have entered.
        """
        count = self.batch_size * stream.examples_per_row
        size = self.queue_size // count
        head = params["heads"][self.name]
        own = params["encoder"]["embeddings"]["tokens"].shape[1]
        width = head["out"].shape[1] if "out" in head else own
        return {
            "encoder": jax.tree.map(jnp.copy, params["encoder"]),
            "head": jax.tree.map(jnp.copy, head),
            "queue": jnp.zeros((count, size, width)),
            "keys": jnp.zeros((count, size, 2), jnp.int32),
            "filled": jnp.zeros((count, size), bool),
            "batches": jnp.zeros((), jnp.int32),
        }

    def state_axes(self, axes: Any) -> dict[str, Any]:
        """Copies lie as their parameters do, the queue as the batch."""
        return {
            "encoder": axes["encoder"],
            "head": axes["heads"][self.name],
            "queue": ("batch", None, None),
            "keys": ("batch", None, None),
            "filled": ("batch", None),
            "batches": (),
        }

    def encode(self, model: Model, batch: Batch, inputs: Inputs) -> dict[str, jax.Array]:
        """Queries and keys float32[R, 2 E, W] of some rows; keys have no gradient."""
        params = nnx.to_pure_dict(nnx.state(model))
        params |= {
            "encoder": inputs.state["encoder"],
            "heads": params["heads"] | {self.name: inputs.state["head"]},
        }
        follower = nnx.merge(nnx.graphdef(model), params)
        return {
            "queries": sentences.sentence_vectors(model, self.name, batch, inputs),
            "keys": sentences.sentence_vectors(follower, self.name, batch, inputs),
        }

    def loss(self, model: Model, batch: Batch, inputs: Inputs) -> Loss:
        """The loss of a whole batch against the queue; an empty queue teaches nothing.

        Returns:
          Sums as of `sentences.sentence_sums`, of queries; as the state's update the keys that are
          to enter the queue.
        """
        del model
        examples, state = inputs.stream.examples_per_row, inputs.state
        valid_N = sentences.valid_examples(batch, inputs)
        queries, keys = (
            jnp.moveaxis(inputs.encoded[name].reshape(len(valid_N), 2, -1), 1, 0)
            for name in ("queries", "keys")
        )
        # Rows' coins depend on their ids only, so no mesh and no cut changes them.
        coins = row_keys(jax.random.fold_in(inputs.key, SWAP_SITE), batch["row_id"])
        swap_N = jax.vmap(lambda k: jax.random.bernoulli(k, shape=(examples,)))(coins).reshape(-1)
        if self.query == "first":
            swap_N = jnp.zeros_like(swap_N)
        query_text_N = swap_N.astype(jnp.int32)  # which text asks

        def take(vectors_2xNxW: jax.Array, text_N: jax.Array) -> jax.Array:
            return jnp.where(text_N[:, None] == 1, vectors_2xNxW[1], vectors_2xNxW[0])

        queue_MxW = state["queue"].reshape(-1, state["queue"].shape[-1])
        queue_keys_Mx2 = state["keys"].reshape(-1, 2)
        filled_M = state["filled"].reshape(-1)
        text_keys_Nx2 = sentences.text_keys(batch, inputs)

        def anchor_losses(query_NxW: jax.Array, key_NxW: jax.Array) -> tuple[jax.Array, ...]:
            positive = self.scale * jnp.sum(query_NxW * key_NxW, axis=1)
            # The queue stays where it is and the few queries travel: they are y.
            reduced = log_sum_exps(
                *(queue_MxW, query_NxW, self.scale),
                *(queue_keys_Mx2, text_keys_Nx2),
                *(filled_M, valid_N),
            )
            counts = valid_N & jnp.isfinite(reduced.columns)  # nothing queued: nothing to learn
            if self.wait_full:
                counts &= state["batches"] >= state["queue"].shape[1]
            negatives = jnp.where(counts, reduced.columns, 0.0)
            losses = jnp.where(counts, jax.nn.softplus(negatives - positive), 0.0)
            return losses, counts, (counts & (positive > reduced.column_max)).astype(jnp.float32)

        both = self.query == "both"
        directions = [query_text_N, 1 - query_text_N] if both else [query_text_N]
        results = [anchor_losses(take(queries, text), take(keys, 1 - text)) for text in directions]
        loss_DxN, counts_DxN, correct_DxN = map(jnp.stack, zip(*results, strict=True))
        language_2xN = jnp.repeat(batch["languages"], examples, axis=0).T
        language_DxN = jnp.stack([jnp.where(text == 1, *language_2xN[::-1]) for text in directions])
        sums = sentences.sentence_sums(
            *(batch, inputs, valid_N), *(loss_DxN, counts_DxN, correct_DxN, language_DxN)
        )
        entering = {
            "queue": take(keys, 1 - query_text_N),
            "keys": text_keys_Nx2,
            "filled": valid_N,
        }
        return Loss(loss_DxN.sum(), sums, jax.lax.stop_gradient(entering))

    def update_state(self, state: dict[str, Any], params: Any, update: Any) -> dict[str, Any]:
        """Parameters follow, keys enter the queue in place of the oldest."""

        def follow(slow: jax.Array, fast: jax.Array) -> jax.Array:
            return self.momentum * slow + (1 - self.momentum) * fast

        place = state["batches"] % state["queue"].shape[1]
        entered = {name: state[name].at[:, place].set(new) for name, new in update.items()}
        return entered | {
            "encoder": jax.tree.map(follow, state["encoder"], params["encoder"]),
            "head": jax.tree.map(follow, state["head"], params["heads"][self.name]),
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
