"""Contrastive objectives in the step: two passes as one, eight devices as one, beside MLM."""

import dataclasses
import functools
import importlib.util
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from xl_flax.data.stream import Rows
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.objectives.contrastive import Contrastive
from xl_flax.objectives.mlm import MaskedLM
from xl_flax.objectives.momentum import MomentumContrastive
from xl_flax.objectives.tlm import TranslationLM
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.mesh import MeshConfig, make_partitioning
from xl_flax.training import state as state_lib
from xl_flax.training.feeds import all_heads
from xl_flax.training.step import make_train_step

BENCHMARK = Path(__file__).parents[1] / "benchmarks/contrastive_memory.py"
ROWS, LENGTH, GROUPS, VOCAB, STEPS = 32, 16, 2, 64, 3
KEY, LANGUAGES = jax.random.key(1), ("de", "en")
CONFIG = EncoderConfig(
    vocab_size=VOCAB, num_layers=1, width=16, num_heads=2, mlp_width=16, max_positions=LENGTH,
    embedding_dropout=0.1, mlp_out_dropout=0.1, init_std=0.2, scan="unroll",
)  # fmt: skip
VOCABULARY = types.SimpleNamespace(
    special=types.SimpleNamespace(mask=4, sep=3, pad=0),
    special_mask=lambda: np.arange(VOCAB) < 5,
)


def stream(sides):
    groups = GROUPS if sides > 1 else 0
    return types.SimpleNamespace(
        num_texts=sides, examples_per_row=groups, tasks=("t",), languages=LANGUAGES, features={}
    )


def contrasts(microbatches=1):
    """An in-batch and a queue objective; two steps fill the queue."""
    common = {"rows": Rows("pairs", LENGTH), "batch_size": ROWS, "microbatches": microbatches}
    return (
        Contrastive(**common, scale=10.0, margin=0.2, learn_scale=True, projection="linear"),
        MomentumContrastive(
            **common,
            queue_size=2 * ROWS,
            momentum=0.9,
            weight=0.5,
            width=8,
            mask_rate=0.3,
            mixup=True,
        ),
    )


def batch_of(step, sides):
    """Rows of two pairs of sentences of one or two words, some with one pair only."""
    rng = np.random.default_rng(step)
    segments = np.zeros((ROWS, LENGTH), np.int32)
    positions = np.zeros_like(segments)
    tokens = np.zeros_like(segments)
    for row in range(ROWS):
        at = 0
        for segment in range(1, 3 if row % 5 == 0 else 5):
            size = int(rng.integers(3, 5))
            part = slice(at, at + size)
            tokens[row, part] = [2, *rng.integers(5, VOCAB, size - 2), 3]
            segments[row, part], positions[row, part] = segment, np.arange(size)
            at += size
    language = np.tile(np.arange(2, dtype=np.int32), (ROWS, 1))
    return {
        "tokens": tokens,
        "segment_ids": segments,
        "positions": positions,
        "languages": language if sides > 1 else language[:, :1],
        "row_id": np.arange(ROWS, dtype=np.int32) + step * ROWS,
    }


@functools.cache
def prepare(ici, objectives, accumulate, divided):
    """Step, abstract model, a function that makes the state of step 0, buffers, sharding."""
    mesh = MeshConfig(ici=ici, optimizer=divided)
    partitioning = make_partitioning(mesh, jax.devices()[: int(np.prod(ici))])
    streams = {o.name: stream(sides(o)) for o in objectives}
    heads = all_heads(objectives, streams)
    build = lambda: build_model(CONFIG, heads, nnx.Rngs(0))  # noqa: E731
    abstract = params_lib.abstract(build)
    optimizer = optax.sgd(0.5)
    layout = state_lib.layout(abstract, optimizer, partitioning, objectives, streams)
    step = make_train_step(
        abstract,
        objectives,
        streams,
        optimizer,
        lambda count: 0.5,
        partitioning,
        layout,
        accumulate,
    )
    buffers = {o.name: o.buffers(VOCABULARY, streams[o.name], LANGUAGES) for o in objectives}
    params = jax.device_get(params_lib.create(build, partitioning))

    def fresh():
        mine = jax.device_put(params, abstract.shardings(partitioning))
        return state_lib.fresh(mine, optimizer, layout, objectives, streams)

    buffers = jax.device_put(buffers, partitioning.sharding(()))
    return step, fresh, buffers, partitioning.sharding(("batch",))


def sides(objective):
    return 1 if objective.name == "mlm" else 2


@functools.cache
def run(ici=(1, 1, 1), microbatches=1, accumulate=1, objectives=None, spoil=(), divided=()):
    """Trains a few steps by gradient descent.

    Returns the state, the metrics of each step, and what was carried before the last.
    """
    objectives = objectives or contrasts(microbatches)
    step, fresh, buffers, sharding = prepare(ici, objectives, accumulate, divided)
    state, history = fresh(), []
    phases = tuple(o.phase_at(0) for o in objectives)
    for i in range(STEPS):
        batches = {o.name: jax.device_put(batch_of(i, sides(o)), sharding) for o in objectives}
        if i in spoil:
            state.params["encoder"]["embeddings"]["tokens"] *= jnp.nan
        before = jax.device_get(state.objectives)
        state, metrics = step(state, batches, buffers, KEY, phases)
        history.append(jax.device_get(metrics))
    return state, history, before


def check(got, expected, tolerance=1e-4):
    (state, history, _), (expected_state, expected_history, _) = got, expected
    for a, b in zip(history, expected_history, strict=True):
        for name in ("contrastive", "momentum"):
            for key in ("loss", "count", "correct", "pairs", "language_loss"):
                np.testing.assert_allclose(
                    a[name][key], b[name][key], rtol=1e-4, atol=1e-4, err_msg=f"{name} {key}"
                )
        np.testing.assert_allclose(a["step"]["grad_norm"], b["step"]["grad_norm"], rtol=1e-4)
    mine, theirs = (
        dict(params_lib.flat({"params": s.params, "carried": s.objectives}))
        for s in (state, expected_state)
    )
    assert mine.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_allclose(
            mine[path], value, rtol=tolerance, atol=tolerance * np.abs(value).max(), err_msg=path
        )


def test_the_queue_and_the_follower_move():
    state, history, _ = run()
    carried = state.objectives["momentum"]
    assert carried["batches"] == STEPS and carried["queue"].shape == (ROWS, 2, 8)
    assert carried["filled"].all() and carried["keys"].shape == (ROWS, 2, 4)
    filled = np.asarray(carried["queue"])[np.asarray(carried["filled"])]
    np.testing.assert_allclose(np.linalg.norm(filled, axis=-1), 1, rtol=1e-4)
    assert history[0]["momentum"]["loss"] == 0 < history[1]["momentum"]["loss"]
    _, fresh, *_ = prepare((1, 1, 1), contrasts(), 1, ())
    start, fast, slow = (
        p["encoder"]["embeddings"]["tokens"] for p in (fresh().params, state.params, carried)
    )
    assert 0 < np.abs(slow - start).max() < 0.5 * np.abs(fast - start).max()


@pytest.mark.parametrize(("microbatches", "accumulate"), [(4, 1), (2, 2)])
def test_two_passes_equal_one(microbatches, accumulate):
    check(run(microbatches=microbatches, accumulate=accumulate), run())


def test_the_limit_of_a_learnt_scale_judges_the_gradient_of_the_whole_batch():
    learnt = []
    for microbatches, accumulate in ((1, 1), (2, 2)):
        objective = dataclasses.replace(contrasts(microbatches)[0], scale=100.0)
        state, *_ = run(accumulate=accumulate, objectives=(objective,))
        learnt.append(float(state.params["heads"]["contrastive"]["log_scale"]))
    assert learnt[0] == pytest.approx(learnt[1], rel=1e-5)
    assert learnt[0] < np.log(100) - 1e-3


@pytest.mark.parametrize(
    ("ici", "microbatches"), [((8, 1, 1), 1), ((2, 4, 1), 2), ((2, 2, 2), 1), ((1, 8, 1), 1)]
)
def test_every_mesh_gives_the_same_run(ici, microbatches):
    check(run(ici, microbatches), run())


def test_the_queue_lies_as_the_batch_and_the_follower_as_its_parameters():
    state, *_ = run((2, 2, 2))
    carried = state.objectives["momentum"]
    for name in ("queue", "keys", "filled"):
        assert carried[name].sharding.shard_shape(carried[name].shape)[0] == ROWS / 4
    shardings = (
        [leaf.sharding for leaf in jax.tree.leaves(tree)]
        for tree in (carried["encoder"], state.params["encoder"])
    )
    for mine, fast in zip(*shardings, strict=True):
        assert mine.is_equivalent_to(fast, len(fast.spec)), (mine, fast)
    own, head = carried["head"], state.params["heads"]["momentum"]
    assert own["out"].sharding.is_equivalent_to(head["out"].sharding, 2)


def test_a_step_that_is_not_finite_leaves_queue_and_follower():
    state, history, before = run(spoil=(2,))
    assert [int(h["step"]["skipped"]) for h in history] == [0, 0, 1]
    for a, b in zip(jax.tree.leaves(state.objectives), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)
    assert state.objectives["momentum"]["batches"] == 2


@pytest.mark.slow
def test_all_objectives_together():
    mlm = {"batch_size": ROWS, "rate": 0.4}
    objectives = (
        MaskedLM(rows=Rows("text", LENGTH), **mlm),
        TranslationLM(rows=Rows("pairs", LENGTH), weight=2.0, **mlm),
        *contrasts(),
    )
    state, history, _ = run((2, 2, 2), objectives=objectives)
    # Of rows by devices, too, the sums are the same.
    spread, same, _ = run((8, 1, 1), objectives=objectives, divided=("data",))
    for one, other in zip(history, same, strict=True):
        for name in ("mlm", "tlm"):
            for key, value in one[name].items():
                np.testing.assert_allclose(other[name][key], value, rtol=1e-4, err_msg=key)
    followers = jax.tree.leaves(spread.objectives["momentum"]["encoder"])
    assert all(leaf.sharding.is_fully_replicated for leaf in followers)
    for metrics in history:
        sums = [metrics[o.name] for o in objectives]  # the first step's queue is empty
        means = [
            o.weight * s["loss"] / max(s["count"], 1) for o, s in zip(objectives, sums, strict=True)
        ]
        np.testing.assert_allclose(metrics["step"]["loss"], sum(means), rtol=1e-5)
        assert metrics["tlm"]["count"] > 0 and metrics["mlm"]["count"] > 0
        assert metrics["tlm"]["tokens"] < metrics["mlm"]["tokens"]  # one [CLS] of each pair is gone
    assert set(state.params["heads"]) == {"mlm", "contrastive", "momentum"}
    assert set(state.objectives) == {"momentum"} and int(state.skipped) == 0


def test_memory_grows_with_the_batch_and_not_with_its_square():
    spec = importlib.util.spec_from_file_location("contrastive_memory", BENCHMARK)
    memory = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(memory)
    sizes = memory.PART, 4 * memory.PART
    (_, small), (_, large), (_, parts) = (
        memory.step(*given) for given in ((sizes[0],), (sizes[1],), (sizes[1], 4))
    )
    assert 3.5 * small < large < 4.5 * small
    assert parts < 1.1 * small  # vectors and a block, but no more activations
    sizes = 8192, 32768
    small, large = map(memory.comparison, sizes)
    assert large < 1.5 * small
    small, large = map(memory.plain, sizes)
    assert large > 15 * small  # what it would be
