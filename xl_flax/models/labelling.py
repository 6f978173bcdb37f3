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
    scores = _scores(model, head, rows, reading, dropout_keys)
    return scores, rows


def choice_scores(
    model: Model, head: str, batch: Batch, reading: Reading, dropout_keys: Any = None
) -> jax.Array:
    """A score of each choice, read behind the first text: [CLS] first [SEP] choice [SEP].

    A row is encoded once for each choice, without the other choices of its examples.

    Args:
      model: with this head, which gives one score.
      head: its name.
      batch: as the rows of a stream or of held-out text, of examples with K texts.
      reading: how.
      dropout_keys: a key for each row; None: without dropout.

    Returns:
      float32[B, E, K - 1].
    """
    (rows_B, length), num_texts = batch["tokens"].shape, reading.num_texts
    text_BxL = (batch["segment_ids"] - 1) % num_texts
    ranks = (rows_B, reading.examples_per_row, num_texts)

    def with_choice(choice: int) -> JoinedRows:
        kept_BxL = (text_BxL == 0) | (text_BxL == choice)
        segments_BxL = jnp.where(kept_BxL, batch["segment_ids"], 0)
        rank_K = (jnp.arange(num_texts) == choice).astype(jnp.int32)
        return _joined(
            batch | {"segment_ids": segments_BxL}, jnp.broadcast_to(rank_K, ranks), reading
        )

    every = [with_choice(choice) for choice in range(1, num_texts)]
    # Those of one row are neighbours, so that rows stay on their devices.
    stacked = jax.tree.map(lambda *own: jnp.stack(own, 1).reshape(-1, length), *every)
    if dropout_keys is not None:
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        dropout_keys = jax.vmap(fold, (0, None))(dropout_keys, jnp.arange(len(every))).reshape(-1)
    scores = _scores(model, head, stacked, reading, dropout_keys)
    return scores.reshape(rows_B, len(every), reading.examples_per_row).swapaxes(1, 2)


def _scores(
    model: Model, head: str, rows: JoinedRows, reading: Reading, dropout_keys: Any
) -> jax.Array:
    has_types = model.encoder.config.token_types > 1
    hidden_BxLxD = model.encoder(
        rows.tokens,
        segment_ids=rows.segment_ids,
        positions=rows.positions,
        token_types=jnp.minimum(rows.text_rank, 1) if has_types else None,
        languages=reading.language_rows[rows.token_languages],
        dropout_keys=dropout_keys,
    )
    return model.heads[head](hidden_BxLxD, rows.segment_ids, reading.examples_per_row)


def best_label(scores_xC: jax.Array) -> jax.Array:
    """The number of the highest score, int32[...]; -1 where a score is NaN or infinite."""
    finite_x = jnp.isfinite(scores_xC).all(axis=-1)
    return jnp.where(finite_x, scores_xC.argmax(axis=-1), -1)


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
    return _joined(batch, jnp.broadcast_to(jnp.arange(num_texts), order), reading)


def _joined(batch: Batch, rank_BxExK: jax.Array, reading: Reading) -> JoinedRows:
    return join_texts(
        batch,
        rank_BxExK,
        sep_id=reading.sep_id,
        pad_id=reading.pad_id,
        reset_positions=False,
        double_separator=reading.double_separator,
    )
