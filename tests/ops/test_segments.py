"""What is known of packed rows of translations: languages, places and equal texts."""

import itertools

import numpy as np
import pytest

from xl_flax.ops import segments


@pytest.mark.parametrize("sides", [2, 3])
def test_tokens_have_the_language_of_their_side(parallel_rows, sides):
    batch, _ = parallel_rows([2, 1, 3], sides)
    spoken = np.asarray(segments.token_languages(batch["segment_ids"], batch["languages"]))
    for row, at in zip(*np.nonzero(batch["segment_ids"]), strict=True):
        side = (batch["segment_ids"][row, at] - 1) % sides
        assert spoken[row, at] == batch["languages"][row, side]


def test_places_are_filled_from_the_first_on(parallel_rows):
    batch, _ = parallel_rows([2, 0, 3], 2)
    valid = np.asarray(segments.present_examples(batch["segment_ids"], 3, 2))
    assert valid.tolist() == [[True, True, False], [False] * 3, [True] * 3]


def test_hashes_are_equal_where_texts_are(pack_rows):
    a, b = np.array([7, 8, 9]), np.array([8, 7, 9])
    texts = [a, b, np.array([7, 8]), np.array([7, 8, 9, 9]), np.array([9]), a]
    batch = pack_rows([texts, texts[::-1]])
    keys = np.asarray(segments.text_hashes(batch, 3, 2)).reshape(-1)
    texts = [*texts, *texts[::-1]]
    for i, j in itertools.combinations(range(12), 2):
        assert (keys[i] == keys[j]) == np.array_equal(texts[i], texts[j]), (i, j)


def test_hashes_of_many_texts_do_not_collide():
    """Texts that differ in one token, or in the order of two."""
    first, second = np.divmod(np.arange(128 * 128, dtype=np.int32), 128)
    tokens = np.stack([np.full_like(first, 2), first, second, np.full_like(first, 3)], axis=1)
    batch = {
        "tokens": tokens.reshape(-1, 8),
        "segment_ids": np.tile(np.repeat([1, 2], 4).astype(np.int32), (len(tokens) // 2, 1)),
        "positions": np.tile(np.arange(4, dtype=np.int32), (len(tokens) // 2, 2)),
    }
    keys = np.asarray(segments.text_hashes(batch, 1, 2)).reshape(-1)
    assert len(np.unique(keys)) >= len(keys) - 2
