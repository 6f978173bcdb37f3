"""Translation language modelling: how pairs are put side by side, and what is masked."""

import types

import jax
import numpy as np
import pytest
from flax import nnx

from xl_flax.data.stream import Rows
from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.objectives.base import Inputs
from xl_flax.objectives.mlm import MaskedLM
from xl_flax.objectives.tlm import TranslationLM

VOCAB, PAD, CLS, SEP, MASK, LENGTH = 96, 0, 2, 3, 4, 18
LANGUAGES = ("aa", "de", "fi", "sw")  # of the run; the stream has the last three
VOCABULARY = types.SimpleNamespace(
    special=types.SimpleNamespace(mask=MASK, sep=SEP, pad=PAD),
    special_mask=lambda: np.arange(VOCAB) < 5,
)
KEYS = jax.random.split(jax.random.key(0), 48)


def stream(sides=2, groups=2):
    return types.SimpleNamespace(
        num_texts=sides,
        examples_per_row=groups,
        tasks=("pairs",),
        languages=LANGUAGES[1:],
        features={},
    )


def objective(**settings):
    return TranslationLM(rows=Rows("pairs", LENGTH), batch_size=4, **settings)


def arranged(batch, sides=2, **settings):
    """The first row of a batch, arranged with each of many keys: arrays [keys, L]."""
    tlm = objective(**settings)
    buffers = tlm.buffers(VOCABULARY, stream(sides), LANGUAGES)
    many = {name: np.repeat(value[:1], len(KEYS), axis=0) for name, value in batch.items()}

    @jax.jit
    def join(batch, keys, buffers):
        return tlm.encoder_inputs(batch, keys, Inputs(None, stream(sides), buffers))

    joined = jax.device_get(join(many, KEYS, buffers))
    return {
        name: joined[name] for name in ("tokens", "segment_ids", "positions", "token_languages")
    }


def segment(row, number):
    """One segment of an arranged row as lists, by name."""
    at = np.flatnonzero(row["segment_ids"] == number)
    assert (np.diff(at) == 1).all()
    return {name: row[name][at].tolist() for name in row}


def expected_segment(texts, languages, order, reset, double):
    tokens, positions, spoken = [], [], []
    for rank, side in enumerate(order):
        opening = [CLS] if rank == 0 else [SEP] if double else []
        part = [*opening, *texts[side], SEP]
        positions += range(len(part)) if reset else range(len(tokens), len(tokens) + len(part))
        tokens += part
        spoken += [languages[side]] * len(part)
    return {"tokens": tokens, "positions": positions, "token_languages": spoken}


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("double", [True, False])
def test_both_orders_come_and_nothing_is_lost(pack_rows, reset, double):
    texts = [[10, 11], [20], [12], [21, 22, 23]]
    batch = pack_rows([texts], length=LENGTH)
    batch["languages"] = np.array([[2, 0]], np.int32)
    found = arranged(batch, reset_positions=reset, double_separator=double)
    seen = []
    for i in range(len(KEYS)):
        row = {name: value[i] for name, value in found.items()}
        used = np.count_nonzero(row["segment_ids"])
        assert used == (15 if double else 13)
        assert not row["segment_ids"][used:].any() and not row["positions"][used:].any()
        assert (row["tokens"][used:] == PAD).all()
        orders = []
        for group in (0, 1):
            mine = segment(row, group + 1)
            del mine["segment_ids"]
            own = texts[2 * group : 2 * group + 2]
            fitting = [
                order
                for order in ((0, 1), (1, 0))
                if mine == expected_segment(own, (2, 0), order, reset, double)
            ]
            assert fitting, mine
            orders += fitting
        seen.append(tuple(orders))
    assert len(set(seen)) == 4  # each group draws its own order
    first = np.mean([orders[0] == (0, 1) for orders in seen])
    assert 0.25 < first < 0.75


def test_three_sides_come_in_all_orders(pack_rows):
    texts = [[10, 11], [20], [30, 31, 32]]
    batch = pack_rows([texts], sides=3, length=LENGTH)
    found = arranged(batch, sides=3, reset_positions=False)
    rows = [segment({name: value[i] for name, value in found.items()}, 1) for i in range(len(KEYS))]
    assert len({tuple(row["tokens"]) for row in rows}) == 6
    for row in rows:
        assert sorted(row["tokens"]) == sorted([CLS, 10, 11, 20, 30, 31, 32, SEP, SEP, SEP])
        assert row["positions"] == list(range(10))


def test_an_empty_row_stays_empty(pack_rows):
    batch = pack_rows([[[10]] * 4], length=LENGTH)
    for name in ("tokens", "segment_ids", "positions"):
        batch[name] = np.zeros_like(batch[name])
    found = arranged(batch)
    assert not found["segment_ids"].any() and (found["tokens"] == PAD).all()


# ---- With an encoder


@pytest.fixture(scope="module")
def model():
    config = EncoderConfig(
        vocab_size=VOCAB, num_layers=1, width=16, num_heads=2, mlp_width=16, languages=4,
        max_positions=LENGTH, scan="unroll", init_std=0.5,
    )  # fmt: skip
    return nnx.jit(lambda: build_model(config, {"mlm": {}}, nnx.Rngs(0)))()


@pytest.fixture(scope="module")
def read(model):
    """read(batch) -> what the encoder is given and gives, the loss, and sums."""
    tlm = objective(mask=1.0, random=0.0)

    class Spy:
        embeddings = model.encoder.embeddings

        def __call__(self, tokens, **kwargs):
            hidden = model.encoder(tokens, **kwargs)
            seen.update(tokens=tokens, hidden=hidden, **kwargs)
            return hidden

    seen = {}

    @jax.jit
    def run(batch, buffers):
        spied = types.SimpleNamespace(encoder=Spy(), heads=model.heads)
        inputs = Inputs(jax.random.key(1), stream(), buffers, phase=0.5, train=False)
        loss, sums, _ = tlm.loss(spied, batch, inputs)
        kept = ("tokens", "hidden", "segment_ids", "languages")
        return {name: seen[name] for name in kept}, loss, sums

    buffers = tlm.buffers(VOCABULARY, stream(), LANGUAGES)
    return lambda batch: jax.device_get(run(batch, buffers))


def repeated(batch):
    """Sixteen rows with the same text, which are masked differently."""
    batch = {name: np.repeat(value, 16, axis=0) for name, value in batch.items()}
    return batch | {"row_id": np.arange(16, dtype=np.int32)}


@pytest.fixture
def batch(pack_rows):
    batch = repeated(pack_rows([[[10, 11, 12], [13, 14, 15]]], length=LENGTH))
    batch["languages"] = np.tile(np.array([[1, 0], [2, 1]], np.int32), (8, 1))
    return batch


def test_both_sides_are_masked_and_languages_are_rows_of_the_table(read, batch):
    given, loss, sums = read(batch)
    masked = given["tokens"] == MASK
    assert np.isfinite(loss) and sums["count"] == masked.sum()
    for row, language in enumerate(batch["languages"]):
        used = given["segment_ids"][row] != 0
        assert set(given["languages"][row][used]) == set(language + 1)  # "aa" is row 0
    counts = np.bincount(given["languages"][masked], minlength=4)
    assert counts[0] == 0
    np.testing.assert_array_equal(sums["language_count"], counts[1:])
    both = [len(set(given["languages"][row][masked[row]])) == 2 for row in range(16)]
    assert sum(both) > 8


def test_a_side_is_seen_from_the_other_but_not_from_its_neighbours(read, pack_rows):
    texts = [[10, 11], [20], [12], [21, 22, 23]]
    base, changed = (
        repeated(pack_rows([[first, *texts[1:]]], length=LENGTH)) for first in ([10, 11], [30, 11])
    )
    (given, *_), (other, *_) = read(base), read(changed)
    moved = np.abs(given["hidden"] - other["hidden"]).max(axis=-1) > 1e-6
    seen = moved.any(axis=1)  # elsewhere the changed token was masked
    assert 3 < seen.sum() < 13
    np.testing.assert_array_equal(moved[seen], given["segment_ids"][seen] == 1)


def test_languages_change_what_the_encoder_reads(read, batch):
    other = batch | {"languages": 2 - batch["languages"]}
    given, elsewhere = (read(b)[0]["hidden"] for b in (batch, other))
    assert np.abs(given - elsewhere).max() > 1e-3


# ---- Bad input


def test_rows_of_the_wrong_kind_are_named():
    with pytest.raises(UserError, match="'tlm' needs .*parallel.*pairs holds text of one language"):
        objective().check(stream(sides=1, groups=0))
    mlm = MaskedLM(rows=Rows("pairs", LENGTH), batch_size=4)
    with pytest.raises(
        UserError, match="'mlm' reads text of one language.*pairs have 2 texts.*TranslationLM"
    ):
        mlm.check(stream())
