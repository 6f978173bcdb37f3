"""What the objectives that mask their rows share: the arrays they need, and the masks of a batch.

Shapes: Batch, Length, K prediction slots of a row, V = vocabulary.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from xl_flax.data.stream import Stream
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.objectives.base import Batch
from xl_flax.ops.masking import Slots, corrupt, select_slots, slot_count

MASK_SITE, CORRUPT_SITE = range(2)  # what a row's key is folded with


def mask_buffers(
    vocabulary: Vocabulary,
    stream: Stream,
    *,
    same_language_random: bool = False,
    whole_words: bool = False,
) -> dict[str, np.ndarray]:
    """The constant arrays that `mask_rows` reads.

    Args:
      vocabulary: of the run.
      stream: the rows that will be masked.
      same_language_random: draw random tokens among those of the token's language.
      whole_words: mask all pieces of a word or none.

    Returns:
      special bool[V]; mask_id int32[]; random_ids int32[n] and random_ranges int32[languages, 2],
      the part of `random_ids` for each language of the stream; word_starts bool[V] with
      `whole_words`.

    Raises:
      UserError: a language without a token to draw.
    """
    special = np.asarray(vocabulary.special_mask())
    if same_language_random:
        unigrams = stream.unigrams()
        ids = [np.asarray(unigrams[language][0]) for language in stream.languages]
        ids = [own[~special[own]] for own in ids]
        ends = np.cumsum([0, *map(len, ids)])
        ranges = np.stack([ends[:-1], ends[1:]], axis=1)
    else:
        ids = [np.flatnonzero(~special)]
        ranges = np.tile([0, len(ids[0])], (len(stream.languages), 1))
    for language, (begin, end) in zip(stream.languages, ranges, strict=True):
        if begin == end:
            raise UserError(
                f"language {language!r} has only special tokens, none to put in place of others; "
                "check its data, or set same_language_random = False"
            )
    buffers = {
        "special": special,
        "mask_id": np.int32(vocabulary.special.mask),
        "random_ids": np.concatenate(ids).astype(np.int32),
        "random_ranges": ranges.astype(np.int32),
    }
    if whole_words:
        buffers["word_starts"] = np.asarray(vocabulary.word_starts())
    return buffers


def mask_rows(
    keys_B: jax.Array,
    batch: Batch,
    languages_BxL: jax.Array,
    buffers: Mapping[str, jax.Array],
    rate: float,
    mask: float = 0.8,
    random: float = 0.1,
) -> tuple[Slots, jax.Array]:
    """Chooses tokens of each row and hides them (Devlin et al. 2019, BERT, §3.1).

    Args:
      keys_B: the rows' keys.
      batch: tokens and segment_ids int32[B, L].
      languages_BxL: int32, indices into the stream's languages.
      buffers: what `mask_buffers` made.
      rate: share of the tokens to choose.
      mask: share of these that become the mask token.
      random: share that become a random token; the rest stays as it is.

    Returns:
      The slots [B, K], and the tokens int32[B, L] as the encoder is to read them.
    """
    length = batch["tokens"].shape[1]
    words_V = buffers.get("word_starts")
    count = slot_count(rate, length, words_V is not None)

    def mask_row(key, tokens_L, segments_L, languages_L):
        mask_key, corrupt_key = (jax.random.fold_in(key, s) for s in (MASK_SITE, CORRUPT_SITE))
        chosen = select_slots(
            *(mask_key, tokens_L, segments_L, buffers["special"], rate, count, words_V)
        )
        at_K = jnp.minimum(chosen.positions_K, length - 1)
        ranges_Kx2 = buffers["random_ranges"][languages_L[at_K]]
        corrupted_L = corrupt(
            *(corrupt_key, tokens_L, chosen.positions_K, buffers["mask_id"]),
            *(mask, random, buffers["random_ids"], ranges_Kx2),
        )
        return chosen, corrupted_L

    return jax.vmap(mask_row)(keys_B, batch["tokens"], batch["segment_ids"], languages_BxL)
