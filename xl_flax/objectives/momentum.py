"""Sentence contrast with a momentum encoder and a queue of its vectors as negatives.

Shapes: Rows, C groups per row, N = R · C groups, W width, Q batches in the queue.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xl_flax.data.stream import Rows, Stream
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.models.heads import HeadSettings, Model
from xl_flax.objectives import sentences
from xl_flax.ops.languages import language_rows
from xl_flax.ops.pooling import Pooling
from xl_flax.ops.similarity import log_sum_exps

SIDES = ("random", "both", "first")
SWAP_SITE = 1  # what the run's key is folded with; rows fold in their ids


@gin.configurable
@dataclasses.dataclass(frozen=True)
class MomentumContrastive:
    """A sentence picks its translation among the queue (He et al. 2020, MoCo, arXiv:1911.05722).

    As post-pretraining alignment (Pan et al. 2021, PPA, arXiv:2010.12547: a random side is the
    query) and as InfoXLM's XlCo (Chi et al. 2021, arXiv:2007.07834: the states of a middle layer,
    one projection, products that are not normalised). Keys come from an encoder whose parameters
    follow the trained ones: θ_k ← m θ_k + (1 - m) θ_q.

    Raises:
      UserError: a setting without a meaning.
    """

    rows: Rows = gin.REQUIRED  # of pairs
    batch_size: int = gin.REQUIRED  # rows per step, on all devices together
    queue_size: int = gin.REQUIRED
    """Vectors in the queue; rounded down to whole batches, each with a place for every group."""
    momentum: float = 0.999
    scale: float = 20.0  # of similarities, 1 / temperature
    query: str = "random"
    """Which side asks: a "random" one of each pair (PPA), "both", or the "first" one always."""
    wait_full: bool = False  # no loss before the queue is full (InfoXLM)
    normalise: bool = True  # compare by cosine; False: by product (InfoXLM)
    pooling: Pooling = "cls"
    layer: int = -1  # whose states are pooled
    projection: str | None = "mlp"  # "linear", "mlp" or None
    width: int | None = None  # of the projected vectors; None: the encoder's
    microbatches: int = 1  # see Contrastive.microbatches
    weight: float = 1.0  # of this loss beside other objectives'
    name: str = "momentum"

    def __post_init__(self):
        def fail(message: str) -> None:
            raise UserError(f"MomentumContrastive.{message}")

        if self.query not in SIDES:
            fail(f"query = {self.query!r}: choose 'random', 'both' or 'first'")
        if not 0 <= self.momentum < 1:
            fail(f"momentum = {self.momentum} must be in [0, 1)")
        if self.scale <= 0:
            fail(f"scale = {self.scale} must be positive")
        for name in ("batch_size", "queue_size", "microbatches"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                fail(f"{name} = {value!r} must be a whole number, at least 1")

    @property
    def heads(self) -> Mapping[str, HeadSettings]:
        """The sentence head, named as the objective."""
        return {
            self.name: {
                "kind": "sentence",
                "pooling": self.pooling,
                "layer": self.layer,
                "projection": self.projection,
                "width": self.width,
                "normalise": self.normalise,
            }
        }

    def rate_at(self, row: int) -> None:
        """Nothing here changes with the row."""

    def slots(self, length: int) -> int:
        """No token is predicted."""
        return 0

    def description(self) -> dict[str, Any]:
        """What a run may not change when it goes on, as JSON can hold it."""
        kept = ("batch_size", "queue_size", "momentum", "scale", "query", "wait_full", "weight")
        return {
            "kind": "MomentumContrastive",
            **self.rows.description(),
            "head": dict(self.heads[self.name]),
            **{name: getattr(self, name) for name in kept},
        }

    def bind(
        self, vocabulary: Vocabulary, stream: Stream, languages: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The tables that `encode` and `compare` read besides the batch.

        Raises:
          UserError: rows that are no pairs, or a queue smaller than a batch.
        """
        sentences.check_parallel(self.name, stream, 2)
        batch = self.batch_size * stream.examples_per_row
        if self.queue_size < batch:
            raise UserError(
                f"objective {self.name!r}: queue_size = {self.queue_size} is smaller than a batch, "
                f"which has places for {self.batch_size} rows × {stream.examples_per_row} = {batch} pairs"
            )
        return {
            "languages": language_rows(stream.languages, languages),
            "groups": np.zeros(stream.examples_per_row),
        }

    def carry(self, params: Any, constants: Mapping[str, Any]) -> dict[str, Any]:
        """What the steps hand on: the momentum encoder, and an empty queue.

        Returns:
          encoder, head: copies of parameters; queue float32[N, Q, W], filled bool[N, Q]; batches
          int32[], how many have entered.
        """
        count = self.batch_size * len(constants["groups"])
        size = self.queue_size // count
        head = params["heads"][self.name]
        own = params["encoder"]["embeddings"]["tokens"].shape[1]
        width = head["out"].shape[1] if "out" in head else own
        return {
            "encoder": jax.tree.map(jnp.copy, params["encoder"]),
            "head": jax.tree.map(jnp.copy, head),
            "queue": jnp.zeros((count, size, width)),
            "filled": jnp.zeros((count, size), bool),
            "batches": jnp.zeros((), jnp.int32),
        }

    def encode(
        self,
        model: Model,
        batch: dict[str, jax.Array],
        key: jax.Array,
        constants: dict[str, jax.Array],
        carried: dict[str, Any],
    ) -> dict[str, jax.Array]:
        """Queries and keys float32[R, 2 C, W] of some rows; keys have no gradient."""
        count, languages = 2 * len(constants["groups"]), constants["languages"]
        params = nnx.to_pure_dict(nnx.state(model))
        params |= {
            "encoder": carried["encoder"],
            "heads": params["heads"] | {self.name: carried["head"]},
        }
        follower = nnx.merge(nnx.graphdef(model), params)
        return {
            "queries": sentences.encode(model, self.name, batch, count, languages, key),
            "keys": sentences.encode(follower, self.name, batch, count, languages, key),
        }

    def compare(
        self,
        model: Model,
        vectors: dict[str, jax.Array],
        batch: dict[str, jax.Array],
        key: jax.Array,
        constants: dict[str, jax.Array],
        carried: dict[str, Any],
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        """The loss of a whole batch against the queue.

        Returns:
          float32[] loss sum; sums as those of `Contrastive.compare`, of queries; the keys that are
          to enter the queue.
        """
        del model
        groups = len(constants["groups"])
        valid_N = sentences.valid_groups(batch["segment_ids"], groups, 2)
        queries, keys = (
            jnp.moveaxis(vectors[name].reshape(len(valid_N), 2, -1), 1, 0)
            for name in ("queries", "keys")
        )
        # Rows' coins depend on their ids only, so no mesh and no cut changes them.
        coins = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(key, SWAP_SITE), batch["row_id"]
        )
        swap_N = jax.vmap(lambda k: jax.random.bernoulli(k, shape=(groups,)))(coins).reshape(-1)
        if self.query == "first":
            swap_N = jnp.zeros_like(swap_N)
        side_N = swap_N.astype(jnp.int32)  # which side is the query

        def take(vectors_2xNxW: jax.Array, side_N: jax.Array) -> jax.Array:
            return jnp.where(side_N[:, None] == 1, vectors_2xNxW[1], vectors_2xNxW[0])

        queue_MxW = carried["queue"].reshape(-1, carried["queue"].shape[-1])
        filled_M = carried["filled"].reshape(-1)
        no_keys = lambda n: jnp.zeros((n, 0), jnp.int32)  # noqa: E731

        def loss(query_NxW: jax.Array, key_NxW: jax.Array) -> tuple[jax.Array, jax.Array]:
            positive = self.scale * jnp.sum(query_NxW * key_NxW, axis=1)
            # The queue stays where it is and the few queries travel: they are y.
            found = log_sum_exps(
                *(queue_MxW, query_NxW, self.scale),
                *(no_keys(len(queue_MxW)), no_keys(len(query_NxW))),
                *(filled_M, valid_N),
            )
            counts = valid_N & jnp.isfinite(found.columns)  # nothing queued: nothing to learn
            if self.wait_full:
                counts &= carried["batches"] >= carried["queue"].shape[1]
            negatives = jnp.where(counts, found.columns, 0.0)
            losses = jnp.where(counts, jax.nn.softplus(negatives - positive), 0.0)
            return losses, (counts & (positive > found.column_max)).astype(jnp.float32)

        directions = [side_N, 1 - side_N] if self.query == "both" else [side_N]
        results = [loss(take(queries, s), take(keys, 1 - s)) for s in directions]
        loss_DxN, correct_DxN = map(jnp.stack, zip(*results, strict=True))
        language_2xN = jnp.repeat(batch["languages"], groups, axis=0).T
        language_DxN = jnp.stack([jnp.where(s == 1, *language_2xN[::-1]) for s in directions])
        sums = sentences.sentence_sums(
            batch, len(constants["languages"]), valid_N, loss_DxN, correct_DxN, language_DxN
        )
        entering = {"queue": take(keys, 1 - side_N), "filled": valid_N}
        return sums["loss"], sums, jax.lax.stop_gradient(entering)

    def advance(self, carried: dict[str, Any], params: Any, entering: Any) -> dict[str, Any]:
        """After an update: parameters follow, keys enter the queue in place of the oldest."""

        def follow(slow: jax.Array, fast: jax.Array) -> jax.Array:
            return self.momentum * slow + (1 - self.momentum) * fast

        place = carried["batches"] % carried["queue"].shape[1]
        return {
            "encoder": jax.tree.map(follow, carried["encoder"], params["encoder"]),
            "head": jax.tree.map(follow, carried["head"], params["heads"][self.name]),
            "queue": carried["queue"].at[:, place].set(entering["queue"]),
            "filled": carried["filled"].at[:, place].set(entering["filled"]),
            "batches": carried["batches"] + 1,
        }
