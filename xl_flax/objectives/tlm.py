"""Translation language modelling: MLM on translations side by side (Conneau and Lample 2019, §3.3).

Shapes: Batch, Length, C groups per row, K sides.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np

from xl_flax.data.stream import Stream
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.objectives.mlm import MaskedLM
from xl_flax.objectives.sentences import check_parallel

ORDER_SITE = 3  # what a row's key is folded with, beside MaskedLM's sites


@gin.configurable
@dataclasses.dataclass(frozen=True)
class TranslationLM(MaskedLM):
    """Masked language modelling on packed pairs, in which each side sees the other.

    The sides of a group (`Rows` of parallel tasks) become one segment, [CLS] a [SEP] b [SEP], in an
    order that is drawn anew each time the row comes; all of them are masked.
    """

    reset_positions: bool = True  # count from 0 in each sentence (XLM); else on (PPA, LaBSE)
    double_separator: bool = False  # </s></s> between sentences, as in XLM-R
    name: str = "tlm"

    def description(self) -> dict[str, Any]:
        """What a run may not change when it goes on, as JSON can hold it."""
        return super().description() | {
            "kind": "TranslationLM",
            "reset_positions": self.reset_positions,
            "double_separator": self.double_separator,
        }

    def check_rows(self, stream: Stream) -> None:
        """Raises UserError unless rows hold translations."""
        check_parallel(self.name, stream)

    def bind(
        self, vocabulary: Vocabulary, stream: Stream, languages: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """As `MaskedLM.bind`, with what puts pairs side by side."""
        return super().bind(vocabulary, stream, languages) | {
            "sep_id": np.int32(vocabulary.special.sep),
            "pad_id": np.int32(vocabulary.special.pad),
            "groups": np.zeros(stream.examples_per_row),
        }

    def arrange(
        self, batch: dict[str, jax.Array], keys_B: jax.Array, constants: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Joins the sides of each group in random order; "language" becomes one id per token."""
        groups, sides = len(constants["groups"]), batch["languages"].shape[1]
        length = batch["tokens"].shape[1]

        def row(key, tokens_L, segments_L, positions_L, language_K):
            lots_CxK = jax.random.uniform(key, (groups, sides))
            rank_CxK = jnp.argsort(jnp.argsort(lots_CxK, axis=1), axis=1)
            group_L, side_L = jnp.divmod(jnp.maximum(segments_L - 1, 0), sides)
            rank_L = rank_CxK[group_L, side_L]
            later_L = (positions_L == 0) & (rank_L > 0)  # [CLS] of a side that is not the first
            kept_L = segments_L != 0
            if self.double_separator:
                tokens_L = jnp.where(later_L & kept_L, constants["sep_id"], tokens_L)
            else:
                kept_L &= ~later_L
            place_L = (group_L * sides + rank_L) * length + positions_L
            order_L = jnp.argsort(jnp.where(kept_L, place_L, jnp.iinfo(jnp.int32).max))
            kept_L = kept_L[order_L]
            segments_L = jnp.where(kept_L, group_L[order_L] + 1, 0)
            if self.reset_positions:
                dropped_L = 0 if self.double_separator else rank_L[order_L] > 0
                positions_L = positions_L[order_L] - dropped_L
            else:
                index_L = jnp.arange(length)
                begins_L = segments_L != jnp.pad(segments_L, (1, 0))[:-1]
                positions_L = index_L - jax.lax.cummax(jnp.where(begins_L, index_L, 0))
            return {
                "tokens": jnp.where(kept_L, tokens_L[order_L], constants["pad_id"]),
                "segment_ids": segments_L,
                "positions": jnp.where(kept_L, positions_L, 0),
                "languages": language_K[side_L[order_L]],
            }

        keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, ORDER_SITE)
        arrays = (batch[name] for name in ("tokens", "segment_ids", "positions", "languages"))
        return jax.vmap(row)(keys_B, *arrays)
