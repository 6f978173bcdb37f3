"""What a biaffine head says of rows, as the objective trains it and the evaluation reads it."""

from typing import Any

import jax
import jax.numpy as jnp

from xl_flax.models.biaffine import Parse, Words, find_words
from xl_flax.models.heads import Model


def parse_rows(
    model: Model,
    head: str,
    batch: dict[str, jax.Array],
    language_rows: jax.Array,
    dropout_keys: Any = None,
) -> tuple[Words, Parse]:
    """Where the words of rows are, and their scores.

    Args:
      model: with this head.
      head: its name.
      batch: tokens, segment_ids, positions int32[B, L], languages int32[B, 1]; and the feature
        "head" int32[B, L], of which is read where it is not -1: there words begin.
      language_rows: int32[languages], rows of the encoder's language table.
      dropout_keys: a key for each row; None: without dropout.
    """
    shape = batch["tokens"].shape
    hidden_BxLxD = model.encoder(
        batch["tokens"],
        segment_ids=batch["segment_ids"],
        positions=batch["positions"],
        languages=jnp.broadcast_to(language_rows[batch["languages"]], shape),
        dropout_keys=dropout_keys,
    )
    words = find_words(batch["head"] >= 0, batch["positions"])
    return words, model.heads[head](hidden_BxLxD, words, dropout_keys)
