"""Which tokens are masked, and what becomes of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xl_flax.ops.masking import corrupt, select_slots, slot_count

VOCAB, LENGTH, ROWS = 200, 128, 512
SPECIAL = jnp.arange(VOCAB) < 5
MASK_ID = 4


@pytest.fixture(scope="module")
def rows():
    """Two examples with specials in each row, then padding."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    segments = np.zeros((ROWS, LENGTH), np.int32)
    segments[:, :60], segments[:, 60:120] = 1, 2
    tokens[:, [0, 60]], tokens[:, [59, 119]], tokens[:, 120:] = 2, 3, 0
    return tokens, segments


def select(rows, rate, slots, word_starts=None, seed=0):
    keys = jax.random.split(jax.random.key(seed), ROWS)
    one = functools.partial(
        select_slots, special_V=SPECIAL, rate=rate, slots=slots, word_starts_V=word_starts
    )
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys, *rows))


def chosen_mask(slots):
    mask = np.zeros((ROWS, LENGTH + 1), bool)
    np.put_along_axis(mask, slots.positions_K, True, axis=1)
    return mask[:, :LENGTH]


def test_slots_are_as_many_as_a_row_needs_in_eights():
    assert [slot_count(0.15, n) for n in (512, 128, 64, 32)] == [80, 24, 16, 8]
    assert [slot_count(0.15, n, whole_words=True) for n in (512, 128, 64, 32)] == [88, 32, 24, 16]
    assert slot_count(0.3, 128) == slot_count(0.25, 160) == 40
    assert slot_count(0.99, 127) == 127


def test_every_ordinary_token_is_selected_at_the_rate_and_no_other(rows):
    tokens, segments = rows
    mask = chosen_mask(select(rows, 0.15, 128))
    ordinary = (segments != 0) & ~np.asarray(SPECIAL)[tokens]
    assert not mask[~ordinary].any()
    # ROWS draws at each place: within five standard deviations, everywhere.
    share = mask.mean(0)[ordinary[0]]
    assert np.abs(share - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / ROWS)
    assert abs(share.mean() - 0.15) < 0.005


def test_overflow_is_counted_and_falls_everywhere_alike(rows):
    everything, few = select(rows, 0.3, 128), select(rows, 0.3, 32)
    assert everything.overflow.sum() == 0
    selected = everything.filled_K.sum(1)
    np.testing.assert_array_equal(few.overflow, np.maximum(selected - 32, 0))
    np.testing.assert_array_equal(few.filled_K.sum(1), np.minimum(selected, 32))
    mask = chosen_mask(few)
    assert not (mask & ~chosen_mask(everything)).any()
    first, second = mask[:, :60].mean(), mask[:, 60:120].mean()
    assert abs(first - second) < 0.01  # a cut by position would leave the second half short


def test_slots_are_in_order_and_empty_ones_point_past_the_row(rows):
    slots = select(rows, 0.15, 24)
    assert (np.diff(slots.positions_K, axis=1) >= 0).all()
    np.testing.assert_array_equal(slots.filled_K, slots.positions_K < LENGTH)


def test_a_row_has_its_share_to_within_a_token(rows):
    chosen = select(rows, 0.15, slot_count(0.15, LENGTH))
    ordinary = (rows[1] != 0) & ~np.asarray(SPECIAL)[rows[0]]
    exact = 0.15 * ordinary.sum(1)
    assert np.abs(chosen.filled_K.sum(1) - exact).max() < 1
    assert chosen.filled_K.mean() * chosen.filled_K.shape[1] == pytest.approx(
        exact.mean(), rel=0.01
    )
    assert chosen.overflow.sum() == 0


@pytest.mark.parametrize("sizes", [(1, 2, 1, 3, 8, 1), (1, 45, 2, 1, 3, 20)])
@pytest.mark.parametrize("length", [32, 128])
def test_no_whole_word_is_lost_in_short_rows(length, sizes):
    """The same words in every row: each has the same chance, however long, and finds its slots."""
    sizes = np.tile(sizes, length // 16)
    word = np.repeat(np.arange(sizes.size), sizes)[:length]
    tokens = np.where(np.diff(word, prepend=-1) > 0, 10, 11).astype(np.int32)
    draws = 4000
    one = functools.partial(
        select_slots,
        tokens_L=tokens,
        segment_ids_L=np.ones(length, np.int32),
        special_V=SPECIAL,
        rate=0.15,
        slots=slot_count(0.15, length, whole_words=True),
        word_starts_V=jnp.arange(VOCAB) == 10,
    )
    slots = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), draws))
    assert slots.overflow.sum() == 0
    at = np.asarray(slots.positions_K)
    share = np.bincount(at[at < length], minlength=length) / draws
    assert np.abs(share - 0.15).max() < 4.5 * np.sqrt(0.15 * 0.85 / draws)
    counts = np.asarray(slots.filled_K).sum(1)
    assert np.abs(counts - 0.15 * length).max() <= 8
    assert counts.mean() == pytest.approx(0.15 * length, rel=0.02)


@pytest.mark.parametrize("slots", [128, 16])
def test_pieces_of_a_word_share_their_fate(rows, slots):
    tokens, segments = rows
    word_starts = np.arange(VOCAB) % 2 == 0
    chosen = select(rows, 0.15, slots, jnp.asarray(word_starts))
    mask = chosen_mask(chosen)
    ordinary = (segments != 0) & ~np.asarray(SPECIAL)[tokens]
    inside = ordinary & ~word_starts[tokens]
    inside[:, 0] = False
    inside[:, 1:] &= ordinary[:, :-1] & (segments[:, 1:] == segments[:, :-1])
    run = np.zeros(ROWS, int)
    for inside_now in inside.T:  # from 0 again after eight pieces, where a long word is cut
        run = np.where(inside_now, run + 1, 0)
        inside_now &= run % 8 != 0
    previous = np.roll(mask, 1, axis=1)
    np.testing.assert_array_equal(mask[inside], previous[inside])
    # The others are drawn afresh: as often selected after a selected token as after another.
    fresh = ordinary & ~inside
    if slots == 128:
        assert abs(mask[ordinary].mean() - 0.15) < 0.01
        assert abs(mask[fresh & previous].mean() - 0.15) < 0.04
    else:
        assert chosen.overflow.sum() > 0


def test_a_word_ends_with_its_example():
    # All pieces continue a word; two examples without any special token between them.
    tokens, segments = np.full((ROWS, 8), 7, np.int32), np.array([[1] * 4 + [2] * 4] * ROWS)
    keys = jax.random.split(jax.random.key(0), ROWS)
    one = functools.partial(
        select_slots, special_V=SPECIAL, rate=0.3, slots=8, word_starts_V=jnp.zeros(VOCAB, bool)
    )
    filled = np.asarray(jax.jit(jax.vmap(one))(keys, tokens, segments).positions_K)
    outcomes = {tuple(row[row < 8]) for row in filled}
    assert outcomes == {(), (0, 1, 2, 3), (4, 5, 6, 7)}


def test_masked_random_and_kept_have_their_shares(rows):
    tokens, _ = rows
    slots = select(rows, 0.15, 24)
    keys = jax.random.split(jax.random.key(1), ROWS)
    ids = jnp.arange(5, VOCAB)
    ranges = jnp.array([[0, 10], [10, 195]])[np.arange(ROWS) % 2]
    new = jax.jit(jax.vmap(corrupt, (0, 0, 0, None, None, None, None, 0)))(
        keys, tokens, slots.positions_K, MASK_ID, 0.8, 0.1, ids, ranges
    )
    new, chosen = np.asarray(new), chosen_mask(slots)
    np.testing.assert_array_equal(new[~chosen], tokens[~chosen])
    before, after = tokens[chosen], new[chosen]
    is_mask, kept = after == MASK_ID, after == before
    assert abs(is_mask.mean() - 0.8) < 0.02
    assert abs(kept.mean() - 0.1) < 0.015
    assert abs((~is_mask & ~kept).mean() - 0.1) < 0.015
    # Random tokens come from the row's own range and fill it.
    language = np.broadcast_to((np.arange(ROWS) % 2)[:, None], chosen.shape)[chosen]
    drawn = [after[~is_mask & ~kept & (language == i)] for i in range(2)]
    assert set(drawn[0]) == set(range(5, 15))
    assert drawn[1].min() >= 15 and drawn[1].max() < VOCAB and len(set(drawn[1])) > 120
