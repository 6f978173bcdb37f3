"""The masked-LM objective: sums that add up, on any mesh and any cut of the batch."""

import contextlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xl_flax.data.stream import Rows
from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.objectives.base import Inputs
from xl_flax.objectives.mlm import MaskedLM
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.mesh import MeshConfig, make_partitioning

VOCAB, LENGTH, ROWS, RATE = 96, 32, 16, 0.15
KEY = jax.random.key(3)
VOCABULARY = types.SimpleNamespace(
    special=types.SimpleNamespace(mask=4),
    special_mask=lambda: np.arange(VOCAB) < 5,
    word_starts=lambda: np.arange(VOCAB) % 3 > 0,
)
UNIGRAMS = {"de": np.array([2, 10, 11]), "fi": np.array([20, 21, 22]), "sw": np.array([30])}
STREAM = types.SimpleNamespace(
    num_texts=1,
    languages=("de", "fi", "sw"),
    unigrams=lambda: {k: (v, np.ones_like(v)) for k, v in UNIGRAMS.items()},
)


def objective(**settings):
    return MaskedLM(rows=Rows("text", LENGTH), batch_size=ROWS, **settings)


def build():
    config = EncoderConfig(
        vocab_size=VOCAB,
        num_layers=1,
        width=16,
        num_heads=2,
        mlp_width=32,
        max_positions=LENGTH,
        embedding_dropout=0.1,
        mlp_out_dropout=0.1,
    )
    return build_model(config, {"mlm": {}}, nnx.Rngs(0))


@pytest.fixture(scope="module")
def model():
    """Graph and parameters, whose token table is large enough for losses that differ."""
    graph, params = nnx.split(nnx.jit(build)())
    params = nnx.to_pure_dict(params)
    params["encoder"]["embeddings"]["tokens"] *= 20
    return graph, params


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    segments = np.ones((ROWS, LENGTH), np.int32)
    segments[:, 20:] = 2
    segments[::3, 28:] = 0
    tokens = np.where(segments, rng.integers(5, VOCAB, segments.shape), 0).astype(np.int32)
    positions = np.tile(np.r_[:20, :12].astype(np.int32), (ROWS, 1))
    language = (np.arange(ROWS)[:, None] % 2).astype(np.int32)  # nothing in Swahili
    row = np.arange(100, 100 + ROWS, dtype=np.int32)
    names = ("tokens", "segment_ids", "positions", "languages", "row_id")
    return dict(zip(names, (tokens, segments, positions, language, row), strict=True))


def evaluate(model, batch, partitioning=None, gradient=True, train=True, rate=RATE, **settings):
    """((loss, sums), gradients), or (loss, sums)."""
    graph, params = model
    mlm = objective(**settings)
    buffers = mlm.buffers(VOCABULARY, STREAM, STREAM.languages)

    def loss(params, batch, key, buffers):
        inputs = Inputs(key, STREAM, buffers, phase=rate, train=train)
        with contextlib.nullcontext() if partitioning is None else partitioning.activate():
            result = mlm.loss(nnx.merge(graph, params), batch, inputs)
        return result.total, result.sums | {"loss": result.total}

    step = jax.jit(jax.value_and_grad(loss, has_aux=True) if gradient else loss)
    return jax.tree.map(np.asarray, step(params, batch, KEY, buffers))


def check(got, expected, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max()))


@pytest.fixture(scope="module")
def whole(model, batch):
    return evaluate(model, batch)


def test_sums_agree_with_each_other(whole, batch):
    (loss, sums), _ = whole
    assert loss == sums["loss"] > 0
    assert sums["tokens"] == (batch["segment_ids"] != 0).sum()
    assert sums["positions"] == ROWS * LENGTH
    assert sums["masked"] == sums["count"] + sums["overflow"]
    assert 0.08 < sums["count"] / sums["tokens"] < 0.25
    for name in ("loss", "count", "correct"):
        np.testing.assert_allclose(sums[f"language_{name}"].sum(), sums[name], rtol=1e-5)
        assert sums[f"language_{name}"][2] == 0
    assert sums["language_count"][:2].min() > 0


def test_parts_of_a_batch_add_up(whole, model, batch):
    graph, params = model
    mlm = objective()
    buffers = jax.device_put(mlm.buffers(VOCABULARY, STREAM, STREAM.languages))

    @jax.jit
    def step(params, batch):
        def loss(params):
            inputs = Inputs(KEY, STREAM, buffers, phase=RATE)
            total, sums, _ = mlm.loss(nnx.merge(graph, params), batch, inputs)
            return total, sums | {"loss": total}

        return jax.value_and_grad(loss, has_aux=True)(params)

    parts = [step(params, {k: v[i::4] for k, v in batch.items()}) for i in range(4)]
    check(jax.tree.map(lambda *x: sum(x), *parts), whole)


@pytest.mark.parametrize("ici", [(8, 1, 1), (2, 2, 2)])
def test_same_on_eight_devices(whole, model, batch, ici):
    partitioning = make_partitioning(MeshConfig(ici=ici))
    graph, params = model
    shardings = params_lib.abstract(build).shardings(partitioning)
    spread = jax.device_put(batch, partitioning.sharding(("batch",)))
    check(evaluate((graph, jax.device_put(params, shardings)), spread, partitioning), whole)


def test_small_chunks_change_nothing(whole, model, batch):
    check(evaluate(model, batch, logits_mib=8 * 4 * VOCAB / 2**20), whole)


def test_padding_rows_count_for_nothing(model, batch):
    padded = {k: np.concatenate([v, np.zeros_like(v)]) for k, v in batch.items()}
    padded["row_id"][ROWS:] = -1
    got, expected = (evaluate(model, b, gradient=False, train=False) for b in (padded, batch))
    assert got[1].pop("positions") == 2 * expected[1].pop("positions")
    check(got, expected)


def test_held_out_loss_is_the_naive_one(model, batch):
    """With no corruption and without dropout, against logits of every position."""
    graph, params = model
    settings = {"mask": 0, "random": 0, "rate": 0.5}
    _, sums = evaluate(model, batch, gradient=False, train=False, **settings)
    merged = nnx.merge(graph, params)
    hidden = merged.encoder(
        batch["tokens"], segment_ids=batch["segment_ids"], positions=batch["positions"]
    )
    head = merged.heads["mlm"]
    logits = head.features(hidden) @ merged.encoder.embeddings.tokens[...].T + head.bias[...]
    log_probs = jax.nn.log_softmax(logits)
    losses = -np.asarray(jnp.take_along_axis(log_probs, batch["tokens"][..., None], -1))[..., 0]
    # Which half is masked is for the objective to know; its mean is near that of all tokens.
    everything = losses[batch["segment_ids"] != 0]
    error = everything.std() / np.sqrt(sums["count"])
    assert abs(sums["loss"] / sums["count"] - everything.mean()) < 4 * error
    assert error < 0.2 * everything.mean()


def test_rows_with_the_same_tokens_are_masked_differently(model, batch):
    """The same text comes again in every epoch, under other row ids."""
    same = {k: np.repeat(v[:1], ROWS, axis=0) for k, v in batch.items()}
    same["languages"] = np.arange(ROWS, dtype=np.int32)[:, None] % 2
    _, alike = evaluate(model, same, gradient=False, train=False)
    assert alike["language_loss"][0] == alike["language_loss"][1]
    same["row_id"] = batch["row_id"]
    _, sums = evaluate(model, same, gradient=False, train=False)
    assert sums["language_loss"][0] != sums["language_loss"][1]


@pytest.mark.parametrize("settings", [{"whole_words": True}, {"same_language_random": True}])
def test_options_change_the_loss(whole, model, batch, settings):
    loss, sums = evaluate(model, batch, gradient=False, **settings)
    assert np.isfinite(loss) and loss != whole[0][0]
    assert 0.05 < sums["count"] / sums["tokens"] < 0.3


def test_random_tokens_of_a_language_are_its_own_without_specials():
    buffers = objective(same_language_random=True).buffers(VOCABULARY, STREAM, STREAM.languages)
    ids, ranges = buffers["random_ids"], buffers["random_ranges"]
    parts = [ids[begin:end].tolist() for begin, end in ranges]
    assert parts == [[10, 11], [20, 21, 22], [30]]
    everything = objective().buffers(VOCABULARY, STREAM, STREAM.languages)
    assert everything["random_ids"].tolist() == list(range(5, VOCAB))
    assert everything["random_ranges"].tolist() == [[0, VOCAB - 5]] * 3


def test_a_language_without_tokens_is_named():
    stream = types.SimpleNamespace(
        num_texts=1,
        languages=("de", "yo"),
        unigrams=lambda: {"de": ([7], [1]), "yo": ([1], [1])},
    )
    with pytest.raises(UserError, match="'yo'"):
        objective(same_language_random=True).buffers(VOCABULARY, stream, stream.languages)


def test_rate_follows_phases_of_rows():
    mlm = objective(rate=[(0, 0.3), (1000, 0.15)])
    assert [mlm.phase_at(row) for row in (0, 999, 1000, 10**9)] == [0.3, 0.3, 0.15, 0.15]


@pytest.mark.parametrize(
    "settings",
    [
        {"rate": 0.0},
        {"rate": [(10, 0.1)]},
        {"rate": [(0, 0.1), (0, 0.2)]},
        {"mask": 0.9, "random": 0.2},
        {"mask": -0.1},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UserError, match="MaskedLM"):
        objective(**settings)


def test_slots_of_weight_zero_are_counted_nowhere(model, batch):
    """A language that counts for nothing has no loss and no accuracy, instead of perfect ones."""

    class OnlyFinnish(MaskedLM):
        def slot_weights(self, slots, inputs):
            return (slots["filled"] & (slots["languages"] == 1)).astype(jnp.float32)

    graph, params = model
    mlm = OnlyFinnish(rows=Rows("text", LENGTH), batch_size=ROWS)
    buffers = jax.device_put(mlm.buffers(VOCABULARY, STREAM, STREAM.languages))
    inputs = Inputs(KEY, STREAM, buffers, phase=0.4)
    _, sums, _ = jax.jit(lambda p: mlm.loss(nnx.merge(graph, p), batch, inputs))(params)
    assert sums["language_count"][0] == sums["language_predicted"][0] == 0
    assert sums["count"] == sums["predicted"] == sums["language_count"][1] > 0
    assert sums["masked"] > sums["predicted"]
