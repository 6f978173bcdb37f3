"""What is known of packed rows of translations: languages, places and equal texts."""

import itertools

import jax
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


def texts_of(row):
    """The segments of a row, each as a list of tokens."""
    count = row["segment_ids"].max()
    return [row["tokens"][row["segment_ids"] == s + 1].tolist() for s in range(count)]


def test_mixed_examples_are_two_of_a_row_in_each_language(pack_rows):
    """In all partnerships and orders; the last of an odd number is left alone."""
    row = [[10], [20, 21], [11, 12], [22], [13], [23]]  # 10 translates 20 21, and so on
    batch = pack_rows([row, row[:2], row[:4], []], length=20)
    many = {name: np.repeat(value, 40, axis=0) for name, value in batch.items()}
    keys = jax.random.split(jax.random.key(0), 160)
    mix = jax.jit(lambda keys, batch: segments.mix_examples(keys, batch, 3, sep_id=3, pad_id=0))
    mixed, members = jax.device_get(mix(keys, many))
    assert members.shape == (160, 2, 2)
    orders = set()
    for i in range(160):
        count = len([row, row[:2], row[:4], []][i // 40]) // 2
        texts = texts_of({name: mixed[name][i] for name in ("tokens", "segment_ids")})
        assert len(texts) == 2 * -(-count // 2)
        used = []
        for place in range(len(texts) // 2):
            pair = members[i, place].tolist()
            alone = pair[0] == pair[1]
            assert alone == (2 * place + 1 == count)
            used += pair[:1] if alone else pair
            both = []
            for side in range(2):
                first, second = (row[2 * e + side] for e in pair)
                straight, swapped = (
                    [2, *a, 3, *b, 3] for a, b in ((first, second), (second, first))
                )
                expected = [[2, *first, 3]] if alone else [straight, swapped]
                text = texts[2 * place + side]
                both.append(expected.index(text))
                at = mixed["segment_ids"][i] == 2 * place + side + 1
                assert mixed["positions"][i][at].tolist() == list(range(len(text)))
            if not alone:
                orders.add((count, frozenset(pair), *both))
        assert sorted(used) == list(range(count))
    assert len(orders) == 3 * 4 + 4
