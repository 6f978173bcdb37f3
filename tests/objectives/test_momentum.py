"""The momentum encoder and its queue against direct formulas."""

import functools
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
from xl_flax.objectives.momentum import MomentumContrastive
from xl_flax.ops.segments import text_hashes

ROWS, GROUPS, W, SCALE = 4, 2, 6, 3.0
PLACES = ROWS * GROUPS
LANGUAGES = ("de", "en", "fi")
KEY = jax.random.key(8)


def objective(**settings):
    given = {"scale": SCALE, "queue_size": 3 * PLACES} | settings
    return MomentumContrastive(rows=Rows("pairs", 32), batch_size=ROWS, **given)


def stream(sides=2):
    return types.SimpleNamespace(
        num_texts=sides,
        examples_per_row=GROUPS,
        tasks=("pairs",),
        languages=LANGUAGES[:sides],
        features={},
    )


BUFFERS = {"language_rows": jnp.arange(3)}
STREAM = types.SimpleNamespace(num_texts=2, examples_per_row=GROUPS, languages=LANGUAGES)


@pytest.fixture
def batch(parallel_rows):
    return parallel_rows([2, 1, 0, 2], length=28)[0]


VALID = np.array([1, 1, 1, 0, 0, 0, 1, 1], bool)  # of that batch


def draw(seed=0, batches=2):
    """Vectors of a batch, and a queue of three batches into which some have come."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    vectors = {name: normal(ROWS, 2 * GROUPS, W) for name in ("queries", "keys")}
    filled = rng.random((PLACES, 3)) < 0.7
    filled[:, batches:] = False
    carried = {
        "queue": normal(PLACES, 3, W),
        "keys": rng.integers(-(2**31), 2**31, (PLACES, 3, 2), dtype=np.int32),
        "filled": filled,
        "batches": jnp.int32(batches),
    }
    return vectors, carried


def compare(vectors, carried, batch, **settings):
    """Loss sum, sums and what enters; and gradients in the vectors."""

    (total, rest), grads = compiled(**settings)(vectors, carried, batch)
    return jax.device_get((total, *rest, grads))


@functools.cache
def compiled(**settings):
    def loss(vectors, carried, batch):
        inputs = Inputs(KEY, STREAM, BUFFERS, state=carried, encoded=vectors)
        total, sums, entering = objective(**settings).loss(None, batch, inputs)
        return total, (sums | {"loss": total}, entering)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def direct(vectors, carried, side):
    """The loss of each anchor, by brute force; side[n] asks."""
    queries, keys = (vectors[name].reshape(PLACES, 2, W) for name in ("queries", "keys"))
    queue = carried["queue"][np.asarray(carried["filled"])]
    losses = []
    for n in np.flatnonzero(VALID):
        query, key = queries[n, side[n]], keys[n, 1 - side[n]]
        logits = SCALE * np.array([query @ key, *(queue @ query)], np.float64)
        losses.append(np.log(np.exp(logits).sum()) - logits[0])
    return losses


def sides_that_ask(vectors, entering):
    """Found out from which keys enter the queue."""
    keys = vectors["keys"].reshape(PLACES, 2, W)
    is_first = (entering["queue"] == keys[:, 1]).all(-1)
    assert (is_first | (entering["queue"] == keys[:, 0]).all(-1)).all()
    return np.where(is_first, 0, 1)


@pytest.mark.parametrize("query", ["random", "first", "both"])
def test_equals_the_direct_formula(batch, query):
    vectors, carried = draw()
    total, sums, entering, _ = compare(vectors, carried, batch, query=query)
    side = sides_that_ask(vectors, entering)
    if query == "first":
        assert not side.any()
    expected = direct(vectors, carried, side)
    if query == "both":
        expected += direct(vectors, carried, 1 - side)
    np.testing.assert_allclose(total, sum(expected), rtol=1e-5)
    assert sums["count"] == len(expected) and sums["pairs"] == VALID.sum()
    np.testing.assert_allclose(sums["language_loss"].sum(), total, rtol=1e-5)
    np.testing.assert_array_equal(entering["filled"], VALID)


def test_a_copy_in_the_queue_is_no_negative(batch):
    """Nor is the translation of a copy: the keys are those of both texts."""
    vectors, carried = draw(batches=3)
    keys = compare(vectors, carried, batch)[2]["keys"]
    np.testing.assert_array_equal(keys, text_hashes(batch, GROUPS, 2).reshape(-1, 2))
    carried["filled"][:2] = True
    carried["keys"][0, :, 0] = keys[0, 1]  # the first example's second text, as a first one
    carried["keys"][1, :, 1] = keys[0, 1]
    total, *_ = compare(vectors, carried, batch, query="first")
    everything = direct(vectors, carried, np.zeros(PLACES, int))
    carried["filled"][:2] = False
    expected = direct(vectors, carried, np.zeros(PLACES, int))[0] + sum(everything[1:])
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert abs(expected - sum(everything)) > 1e-3


def test_the_side_that_asks_depends_on_the_row_only(parallel_rows):
    batch, _ = parallel_rows([GROUPS] * ROWS, length=28)
    sides = []
    for first in range(0, 40, ROWS):
        vectors, carried = draw(seed=first)
        batch["row_id"] = np.arange(first, first + ROWS, dtype=np.int32)
        entering = compare(vectors, carried, batch)[2]
        sides.append(sides_that_ask(vectors, entering).reshape(ROWS, GROUPS))
    sides = np.concatenate(sides)
    assert 0.25 < sides.mean() < 0.75 and (sides[:, 0] != sides[:, 1]).any()
    rows = np.array([17, 3, 39, 8], np.int32)
    vectors, carried = draw(seed=99)
    entering = compare(vectors, carried, batch | {"row_id": rows})[2]
    again = sides_that_ask(vectors, entering).reshape(ROWS, GROUPS)
    np.testing.assert_array_equal(again, sides[rows])


def test_the_language_that_asks_is_charged(batch):
    vectors, carried = draw()
    _, sums, entering, _ = compare(vectors, carried, batch)
    side = sides_that_ask(vectors, entering)
    language = np.repeat(batch["languages"], GROUPS, axis=0)[np.arange(PLACES), side]
    counted = np.bincount(language[VALID], minlength=3)
    np.testing.assert_array_equal(sums["language_count"], counted)


def test_keys_and_empty_places_get_no_gradient_in_encode_or_compare(batch):
    vectors, carried = draw()
    *_, grads = compare(vectors, carried, batch, query="both")
    queries = grads["queries"].reshape(PLACES, 2, W)
    assert queries[VALID].any(axis=-1).all() and not queries[~VALID].any()


def test_an_empty_queue_teaches_nothing(batch):
    vectors, carried = draw(batches=0)
    total, sums, entering, grads = compare(vectors, carried, batch)
    assert total == 0 and sums["count"] == 0 and entering["filled"].any()
    assert sums["pairs"] == VALID.sum()
    assert all(np.isfinite(g).all() and not g.any() for g in grads.values())


def test_a_loss_can_wait_for_the_full_queue(batch):
    for batches, waits in ((2, True), (3, False), (4, False)):
        vectors, carried = draw(batches=batches)
        total, *_, grads = compare(vectors, carried, batch, wait_full=True)
        assert (total == 0) == waits
        assert grads["queries"].any() != waits


def test_vectors_enter_in_place_of_the_oldest():
    objective_ = objective(momentum=0.75)
    update_state = jax.jit(objective_.update_state)
    carried = {
        "encoder": {"a": jnp.full(3, 2.0)},
        "head": {},
        "queue": jnp.zeros((PLACES, 3, W)),
        "keys": jnp.zeros((PLACES, 3, 2), jnp.int32),
        "filled": jnp.zeros((PLACES, 3), bool),
        "batches": jnp.int32(0),
    }
    rng, entered, slow = np.random.default_rng(0), [], np.full(3, 2.0)
    for step in range(8):
        params = {"encoder": {"a": jnp.full(3, float(step))}, "heads": {"momentum": {}, "mlm": 0}}
        entering = {
            "queue": rng.normal(size=(PLACES, W)).astype(np.float32),
            "keys": rng.integers(0, 99, (PLACES, 2), dtype=np.int32),
            "filled": rng.random(PLACES) < 0.5,
        }
        carried = update_state(carried, params, entering)
        entered.append(entering)
        slow = 0.75 * slow + 0.25 * step
        np.testing.assert_allclose(carried["encoder"]["a"], slow, rtol=1e-6)
        assert carried["batches"] == step + 1
        held = [{k: np.asarray(carried[k][:, i]) for k in entering} for i in range(3)]
        for i, mine in enumerate(held):
            newest = [e for s, e in enumerate(entered) if s % 3 == i][-1:]
            assert mine["filled"].any() == bool(newest)
            for name in entering if newest else ():
                np.testing.assert_array_equal(mine[name], newest[0][name])


# ---- With an encoder

VOCABULARY = types.SimpleNamespace(
    special=types.SimpleNamespace(mask=4, sep=3, pad=0), special_mask=lambda: np.arange(96) < 5
)


def small_model(**settings):
    config = EncoderConfig(
        vocab_size=96, num_layers=2, width=8, num_heads=2, mlp_width=16, max_positions=64,
        scan="unroll", embedding_dropout=0.1,
    )  # fmt: skip
    heads = objective(**settings).heads(STREAM)
    return nnx.split(nnx.jit(lambda: build_model(config, heads, nnx.Rngs(0)))())


def test_keys_come_from_the_follower_and_have_no_gradient(batch):
    settings = {"layer": 1, "projection": "linear", "normalise": False, "width": W}
    momentum = objective(**settings)
    graph, params = small_model(**settings)
    params = nnx.to_pure_dict(params)
    carried = momentum.init_state(params, STREAM)
    assert carried["queue"].shape == (PLACES, 3, W) and not carried["filled"].any()
    slow = carried | {"encoder": jax.tree.map(lambda x: 0.5 * x, carried["encoder"])}

    @jax.jit
    def run(params, carried):
        def total(params, name):
            inputs = Inputs(KEY, STREAM, BUFFERS, state=carried)
            vectors = momentum.encode(nnx.merge(graph, params), batch, inputs)
            return jnp.sum(vectors[name] ** 2), vectors

        (_, vectors), d_queries = jax.value_and_grad(total, has_aux=True)(params, "queries")
        return vectors, d_queries, jax.grad(total, has_aux=True)(params, "keys")[0]

    same, d_queries, d_keys = run(params, carried)
    other, *_ = run(params, slow)
    np.testing.assert_allclose(same["queries"], same["keys"], rtol=1e-5, atol=1e-6)  # dropout too
    np.testing.assert_array_equal(other["queries"], same["queries"])
    assert np.abs(other["keys"] - same["keys"]).max() > 1e-3
    assert not any(leaf.any() for leaf in jax.tree.leaves(d_keys))
    assert d_queries["heads"]["momentum"]["out"].any()
    lengths = np.linalg.norm(same["queries"].reshape(-1, W), axis=-1)
    there = np.repeat(VALID, 2)
    assert lengths[there].std() > 1e-3 and not lengths[~there].any()  # they are not normalised


def test_mixed_and_masked_rows_are_what_is_compared(batch, monkeypatch):
    """A place holds two pairs; tokens are hidden from both encoders, and not from the hashes."""
    seen = []
    monkeypatch.setattr(
        "xl_flax.objectives.sentences.sentence_vectors",
        lambda model, name, batch, inputs, examples: seen.append((batch, examples)) or examples,
    )
    graph, params = small_model(projection=None)
    rates, rows = (0.0, 0.5), {}
    for rate in rates:
        momentum = objective(mixup=True, mask_rate=rate, projection=None)
        buffers = jax.device_put(momentum.buffers(VOCABULARY, STREAM, LANGUAGES))
        carried = momentum.init_state(nnx.to_pure_dict(params), STREAM)
        inputs = Inputs(KEY, STREAM, buffers, state=carried)
        momentum.encode(nnx.merge(graph, params), batch, inputs)
        (rows[rate], places), (other, _) = seen[-2:]
        assert places == 1 and rows[rate]["tokens"] is other["tokens"]
    plain, masked = (np.asarray(rows[rate]["tokens"]) for rate in rates)
    ordinary, hidden = plain >= 5, plain != masked
    assert not hidden[~ordinary].any() and 0.3 < hidden[ordinary].mean() < 0.6
    assert (masked[hidden] == 4).mean() > 0.7
    np.testing.assert_array_equal(np.asarray(rows[0.0]["segment_ids"]).max(axis=1), [2, 2, 0, 2])

    # As many losses as rows, with the hashes of what was not masked.
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    vectors = {name: normal(ROWS, 2, W) for name in ("queries", "keys")}
    queue = {
        "queue": normal(ROWS, 6, W),
        "keys": rng.integers(-(2**31), 2**31, (ROWS, 6, 4), dtype=np.int32),
        "filled": np.ones((ROWS, 6), bool), "batches": jnp.int32(6),
    }  # fmt: skip
    inputs = Inputs(KEY, STREAM, buffers, state=queue, encoded=vectors)
    _, sums, entering = momentum.loss(None, batch, inputs)
    np.testing.assert_array_equal(entering["filled"], [True, True, False, True])
    assert sums["pairs"] == sums["count"] == 3
    hashes = np.sort(text_hashes(batch, GROUPS, 2).reshape(ROWS, 4), axis=1)
    np.testing.assert_array_equal(np.sort(entering["keys"], axis=1)[[0, 3]], hashes[[0, 3]])
    assert set(entering["keys"][1].tolist()) == set(hashes[1].tolist()) - {0}


# ---- Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"query": "last"}, r"MomentumContrastive\.query = 'last'"),
        ({"momentum": 1.0}, r"MomentumContrastive\.momentum = 1\.0"),
        ({"scale": -1.0}, r"MomentumContrastive\.scale = -1"),
        ({"queue_size": 0}, r"MomentumContrastive\.queue_size = 0"),
        ({"microbatches": 0}, r"MomentumContrastive\.microbatches = 0"),
    ],
)
def test_settings_without_a_meaning_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        objective(**settings)


def test_a_queue_smaller_than_the_batch_is_named():
    with pytest.raises(UserError, match=r"'momentum': queue_size = 7 .* 4 rows × 2 = 8 pairs"):
        objective(queue_size=7).check(stream())
    objective(queue_size=8).check(stream())


def test_rows_with_one_pair_cannot_be_mixed():
    one = types.SimpleNamespace(**vars(stream()) | {"examples_per_row": 1, "length": 28})
    with pytest.raises(UserError, match=r"'momentum': mixup .* 28 tokens has place for one"):
        objective(mixup=True).check(one)
    with pytest.raises(UserError, match=r"queue_size = 3 .* 4 rows × 1 = 4 pairs"):
        objective(mixup=True, queue_size=3).check(stream())


@pytest.mark.parametrize("sides", [1, 3])
def test_rows_that_are_no_pairs_are_named(sides):
    with pytest.raises(UserError, match="'momentum' needs .* 2 texts .*, but pairs"):
        objective().check(stream(sides))
