"""Translation language modelling: MLM on translations side by side (Conneau and Lample 2019, §3.3).

Shapes: Batch, E examples per row, K texts of an example.
"""

import dataclasses
from collections.abc import Sequence

import gin
import jax
import jax.numpy as jnp
import numpy as np

from xl_flax.data.features import Features
from xl_flax.data.stream import Stream
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.objectives.base import Batch, Inputs, LogName
from xl_flax.objectives.mlm import MaskedLM
from xl_flax.objectives.sentences import check_parallel
from xl_flax.ops.segments import join_texts

ORDER_SITE = 3  # what a row's key is folded with, beside MaskedLM's sites


@gin.configurable
@dataclasses.dataclass(frozen=True)
class TranslationLM(MaskedLM):
    """Masked language modelling on packed pairs, in which each text sees the other.

    The texts of an example (`Rows` of parallel tasks) become one segment, [CLS] a [SEP] b [SEP], in
    an order that is drawn anew each time the row comes; all of them are masked.
    """

    reset_positions: bool = True  # count from 0 in each text (XLM), else on (PPA, LaBSE)
    double_separator: bool = False  # </s></s> between texts, as in XLM-R
    name: LogName = "tlm"

    def usual_example(self) -> tuple[int, Features]:
        """A sentence and its translation."""
        return 2, {}

    def check(self, stream: Stream) -> None:
        """Raises UserError unless rows hold translations."""
        check_parallel(self.name, stream)

    def buffers(
        self, vocabulary: Vocabulary, stream: Stream, languages: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """As `MaskedLM.buffers`, with the tokens that stand between texts and behind them."""
        return super().buffers(vocabulary, stream, languages) | {
            "sep_id": np.int32(vocabulary.special.sep),
            "pad_id": np.int32(vocabulary.special.pad),
        }

    def encoder_inputs(self, batch: Batch, keys_B: jax.Array, inputs: Inputs) -> Batch:
        """Joins the texts of each example in random order."""
        shape = inputs.stream.examples_per_row, inputs.stream.num_texts

        def draw_order(key: jax.Array) -> jax.Array:
            lots_ExK = jax.random.uniform(key, shape)
            return jnp.argsort(jnp.argsort(lots_ExK, axis=1), axis=1)

        keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, ORDER_SITE)
        joined = join_texts(
            batch,
            jax.vmap(draw_order)(keys_B),
            sep_id=inputs.buffers["sep_id"],
            pad_id=inputs.buffers["pad_id"],
            reset_positions=self.reset_positions,
            double_separator=self.double_separator,
        )
        return joined._asdict()
