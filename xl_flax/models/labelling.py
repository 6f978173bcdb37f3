"""The scores of a head on rows of examples, as objectives train it and evaluations read it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xl_flax.models.heads import Model
from xl_flax.ops.segments import JoinedRows, join_texts

Batch = dict[str, jax.Array]


class Reading(NamedTuple):
    """How examples are read; all but the arrays is static."""

    num_texts: int  # texts of an example, joined to one segment: [CLS] a [SEP] b [SEP]
    examples_per_row: int
    sep_id: jax.Array
    pad_id: jax.Array
    language_rows: jax.Array  # int32[languages of the stream], rows of the encoder's language table
    double_separator: bool = False  # </s></s> between texts, as in XLM-R


def head_scores(
    model: Model, head: str, batch: Batch, reading: Reading, dropout_keys: Any = None
) -> tuple[jax.Array, JoinedRows]:
    """What a head says of rows of examples.

    Args:
      model: with this head.
      head: its name.
      batch: as the rows of a stream or of held-out text.
      reading: how.
      dropout_keys: a key for each row; None: without dropout.

    Returns:
      What the head returns, as float32[B, E, C] of examples or [B, L, C] of tokens; and the rows
      as the encoder read them. With several texts in an example the tokens have other columns there
      than in the batch: features of tokens and spans must follow "source".
    """
    rows = joined_rows(batch, reading)
    has_types = model.encoder.config.token_types > 1
    hidden_BxLxD = model.encoder(
        rows.tokens,
        segment_ids=rows.segment_ids,
        positions=rows.positions,
        token_types=jnp.minimum(rows.text_rank, 1) if has_types else None,
        languages=reading.language_rows[rows.token_languages],
        dropout_keys=dropout_keys,
    )
    return model.heads[head](hidden_BxLxD, rows.segment_ids, reading.examples_per_row), rows


def joined_rows(batch: Batch, reading: Reading) -> JoinedRows:
    """Rows whose examples are one segment each, texts in their order."""
    shape, num_texts = batch["tokens"].shape, reading.num_texts
    if num_texts == 1:
        return JoinedRows(
            batch["tokens"],
            batch["segment_ids"],
            batch["positions"],
            token_languages=jnp.broadcast_to(batch["languages"], shape),
            text_rank=jnp.zeros(shape, jnp.int32),
            source=jnp.broadcast_to(jnp.arange(shape[1]), shape),
        )
    order = (shape[0], reading.examples_per_row, num_texts)
    return join_texts(
        batch,
        jnp.broadcast_to(jnp.arange(num_texts), order),
        sep_id=reading.sep_id,
        pad_id=reading.pad_id,
        reset_positions=False,
        double_separator=reading.double_separator,
    )
