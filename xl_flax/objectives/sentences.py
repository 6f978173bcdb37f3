"""What the contrastive objectives share: sentence vectors of packed rows, and what may be compared.

Shapes: Rows, Length, C groups per row, K sides of a group (translations of one another), N = R · C
groups, W width of a vector.
"""

import jax
import jax.numpy as jnp

from xl_flax.data.stream import Stream
from xl_flax.errors import UserError
from xl_flax.models.heads import Model
from xl_flax.ops.languages import language_sums
from xl_flax.ops.pooling import pool


def check_parallel(name: str, stream: Stream, sides: int | None = None) -> None:
    """Raises UserError unless rows hold translations (of exactly `sides` sides)."""
    if stream.num_texts < 2 or (sides and stream.num_texts != sides):
        found = (
            "text of one language"
            if stream.num_texts == 1
            else f"groups of {stream.num_texts} sides"
        )
        raise UserError(
            f"objective {name!r} needs a mixture of parallel tasks with "
            f"{sides or 'two or more'} sides, but {', '.join(stream.tasks[:3])} "
            f"{'holds' if len(stream.tasks) == 1 else 'hold'} {found}"
        )


def check_candidates(name: str, batch_size: int, stream: Stream) -> None:
    """Raises UserError if a batch has no room for a second group to compare with."""
    if batch_size * stream.examples_per_row < 2:
        raise UserError(
            f"objective {name!r}: a batch of {batch_size} row with at most {stream.examples_per_row} group "
            "has no negatives; raise batch_size or Rows.length"
        )


def encode(
    model: Model,
    head: str,
    batch: dict[str, jax.Array],
    sentences: int,
    languages: jax.Array,
    key: jax.Array,
) -> jax.Array:
    """The vectors float32[R, sentences, W] that a sentence head makes of packed rows.

    Args:
      model: with the head.
      head: its name.
      batch: tokens, segment_ids, positions int32[R, L]; language int32[R, K]; row int32[R].
      sentences: most segments of a row, C · K.
      languages: int32, row of the encoder's language table for each language of the stream.
      key: of dropout; a row's own comes from it and the row's id, so that no mesh changes it.
    """
    module = model.heads[head]
    (hidden_RxLxD,) = model.encoder(
        batch["tokens"],
        segment_ids=batch["segment_ids"],
        positions=batch["positions"],
        languages=languages[token_languages(batch["segment_ids"], batch["languages"])],
        dropout_keys=jax.vmap(jax.random.fold_in, (None, 0))(key, batch["row_id"]),
        layers=(module.layer,),
    )
    return module(pool(hidden_RxLxD, batch["segment_ids"], sentences, module.pooling))


def token_languages(segment_ids_RxL: jax.Array, language_RxK: jax.Array) -> jax.Array:
    """Each token's language, int32[R, L]: segments take turns among the sides."""
    side_RxL = (segment_ids_RxL - 1) % language_RxK.shape[1]
    return jnp.take_along_axis(language_RxK, side_RxL, axis=1)


def valid_groups(segment_ids_RxL: jax.Array, groups: int, sides: int) -> jax.Array:
    """Which of a row's C places hold a group, bool[N]."""
    count_R = segment_ids_RxL.max(axis=1) // sides
    return (jnp.arange(groups) < count_R[:, None]).reshape(-1)


def text_keys(batch: dict[str, jax.Array], groups: int, sides: int) -> jax.Array:
    """A hash of each sentence's tokens, int32[N, K]: equal texts are no negatives of each other."""
    segments_RxL = batch["segment_ids"]
    mixed_RxL = batch["tokens"].astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
    mixed_RxL ^= (batch["positions"].astype(jnp.uint32) + 1) * jnp.uint32(0x85EBCA77)
    mixed_RxL = (mixed_RxL ^ (mixed_RxL >> 15)) * jnp.uint32(0x2C1B3C6D)
    mixed_RxL ^= mixed_RxL >> 13
    number_S = jnp.arange(1, groups * sides + 1)
    mine_RxSxL = segments_RxL[:, None] == number_S[:, None]
    hashes_RxS = jnp.where(mine_RxSxL, mixed_RxL[:, None], 0).sum(axis=2, dtype=jnp.uint32)
    return hashes_RxS.astype(jnp.int32).reshape(-1, sides)


def sentence_sums(
    batch: dict[str, jax.Array],
    languages: int,
    valid_N: jax.Array,
    loss_XxN: jax.Array,
    correct_XxN: jax.Array,
    language_XxN: jax.Array,
) -> dict[str, jax.Array]:
    """What a contrastive objective reports, float32, of X anchors in each of N groups.

    Returns:
      loss, count (anchors), correct, pairs (groups), tokens, positions; language_loss,
      language_count and language_correct, [languages].
    """
    count_XxN = jnp.broadcast_to(valid_N, loss_XxN.shape).astype(jnp.float32)
    values = {"loss": loss_XxN, "count": count_XxN, "correct": correct_XxN}
    return {
        **{name: value.sum() for name, value in values.items()},
        "pairs": valid_N.sum(dtype=jnp.float32),
        "tokens": jnp.sum(batch["segment_ids"] != 0, dtype=jnp.float32),
        "positions": jnp.float32(batch["segment_ids"].size),
        **language_sums(languages, language_XxN, **values),
    }
