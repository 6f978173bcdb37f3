"""The step: accumulation, meshes, clipping and skipping, on a model small enough to check."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from xl_flax.parallel import params as params_lib
from xl_flax.parallel.mesh import MeshConfig, make_partitioning
from xl_flax.parallel.rules import constrain
from xl_flax.training import state as state_lib
from xl_flax.training.optimizer import OptimizerConfig, make_optimizer
from xl_flax.training.step import make_train_step

ROWS, WIDTH, MLP = 16, 8, 32


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    """What is compiled here runs a few times only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


class TwoLayers(nnx.Module):
    def __init__(self, rngs):
        init = nnx.initializers.normal(0.5)
        self.up = nnx.Param(init(rngs.params(), (WIDTH, MLP)), out_sharding=("embed", "mlp"))
        self.down = nnx.Param(init(rngs.params(), (MLP, WIDTH)), out_sharding=("mlp", "embed"))

    def __call__(self, x):
        return constrain(jnp.tanh(x @ self.up[...]), ("batch", "mlp")) @ self.down[...]


@dataclasses.dataclass(frozen=True)
class Regression:
    """Squared error over rows with different weights, as rows with different token counts."""

    name: str = "regression"
    weight: float = 1.0

    def loss(self, model, batch, key, constants, rate):
        noise = jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row), (WIDTH,)))
        error = ((model(batch["x"] + rate * noise(batch["row_id"])) - batch["y"]) ** 2).mean(-1)
        loss = jnp.sum(error * batch["weight"])
        return loss, {"loss": loss, "count": batch["weight"].sum(), "correct": 0.0 * loss}


@dataclasses.dataclass(frozen=True)
class Spread:
    """How far rows are apart: a loss of all rows together, which hands on a mean of its vectors."""

    name: str = "spread"
    weight: float = 0.3
    microbatches: int = 1

    def encode(self, model, batch, key, constants, carried):
        noise = jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row), (WIDTH,)))
        return {"found": model(batch["x"] + 0.1 * noise(batch["row_id"])) + carried["mean"]}

    def compare(self, model, vectors, batch, key, constants, carried):
        x = vectors["found"]
        near = jnp.exp(-((x[:, None] - x[None]) ** 2).sum(-1)) * batch["weight"]
        loss = jnp.sum(near) + jnp.sum(model.up[...] ** 2)
        return loss, {"loss": loss, "count": batch["weight"].sum()}, x.mean(axis=0)

    def carry(self, params, constants):
        return {"mean": jnp.zeros(WIDTH), "up": jax.tree.map(jnp.copy, params["up"])}

    def advance(self, carried, params, news):
        return {"mean": 0.5 * carried["mean"] + 0.5 * news, "up": params["up"] + 1}


def batch_of(rng, rows=ROWS):
    return {
        "x": rng.normal(size=(rows, WIDTH)).astype(np.float32),
        "y": rng.normal(size=(rows, WIDTH)).astype(np.float32),
        "weight": rng.integers(0, 20, rows).astype(np.float32),
        "row_id": np.arange(rows, dtype=np.int32),
    }


def run(ici, accumulate=1, steps=3, clip_norm=None, spoil=(), objectives=(Regression(),)):
    """Trains a few steps; returns parameters, state and the metrics of each step."""
    devices = jax.devices()[: int(np.prod(ici))]
    partitioning = make_partitioning(MeshConfig(ici=ici), devices)
    build = lambda: TwoLayers(nnx.Rngs(0))  # noqa: E731
    abstract = params_lib.abstract(build)
    optimizer = optax.adamw(1e-2)
    step = make_train_step(
        abstract.graph,
        objectives,
        optimizer,
        lambda count: 1e-2,
        partitioning,
        abstract.shardings(partitioning),
        accumulate,
        clip_norm,
    )
    carry = state_lib.carry({o.name: o for o in objectives}, {o.name: {} for o in objectives})
    layout = state_lib.layout(abstract, optimizer, partitioning, carry)
    state = state_lib.fresh(params_lib.create(build, partitioning), optimizer, layout, carry)
    rng, history = np.random.default_rng(0), []
    for i in range(steps):
        batches = {}
        for objective in objectives:
            batch = batch_of(rng)
            if i in spoil:
                batch["x"][3] = np.nan
            sharding = partitioning.sharding(("batch",))
            batches[objective.name] = jax.device_put(batch, sharding)
        none = {name: {} for name in batches}
        state, metrics = step(state, batches, none, jax.random.key(0), (0.1,) * len(objectives))
        history.append(jax.device_get(metrics["step"]))
    return state, history


@pytest.fixture(scope="module")
def reference():
    return run((1, 1, 1))


@pytest.mark.parametrize(
    ("ici", "accumulate"),
    [((1, 1, 1), 4), ((8, 1, 1), 1), ((2, 2, 2), 2), ((1, 8, 1), 2), ((1, 2, 4), 4)],
)
def test_every_mesh_and_accumulation_gives_the_same_run(reference, ici, accumulate):
    state, history = run(ici, accumulate)
    expected_state, expected = reference
    for a, b in zip(history, expected, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(expected_state.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_state_is_sharded_as_the_rules_say():
    state, _ = run((2, 2, 2), steps=1)
    up = state.params["up"]
    assert up.sharding.shard_shape(up.shape) == (WIDTH // 2, MLP // 2)
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.shape == up.shape]
    assert all(m.sharding.shard_shape(m.shape) == (WIDTH // 2, MLP // 2) for m in moments)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_optimizers_state_is_laid_out_like_its_parameters(name):
    partitioning = make_partitioning(MeshConfig(ici=(2, 2, 2)))
    build = lambda: TwoLayers(nnx.Rngs(0))  # noqa: E731
    abstract = params_lib.abstract(build)
    optimizer, _ = make_optimizer(OptimizerConfig(name=name), 10, abstract.axes)
    layout = state_lib.layout(abstract, optimizer, partitioning)
    state = state_lib.fresh(params_lib.create(build, partitioning), optimizer, layout)
    large = [x for x in jax.tree.leaves(state.optimizer) if x.ndim == 2]
    assert len(large) >= 2
    for moment in large:
        assert moment.size == 4 * np.prod(moment.sharding.shard_shape(moment.shape))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(accumulate):
    before, _ = run((2, 2, 1), accumulate, steps=2)
    after, history = run((2, 2, 1), accumulate, steps=4, spoil=(2, 3))
    for a, b in zip(
        jax.tree.leaves((before.params, before.optimizer)),
        jax.tree.leaves((after.params, after.optimizer)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert [int(h["skipped"]) for h in history] == [0, 0, 1, 2]
    assert [int(h["bad_streak"]) for h in history] == [0, 0, 1, 2]


def test_the_streak_of_skipped_steps_ends_with_a_good_one():
    state, history = run((1, 1, 1), steps=4, spoil=(1,))
    assert [int(h["bad_streak"]) for h in history] == [0, 1, 0, 0]
    assert int(state.skipped) == 1 and int(state.updates) == 3


def test_objectives_are_weighted_after_each_is_divided_by_its_own_count():
    one, history = run((1, 1, 1), steps=1)
    two, both = run(
        (1, 1, 1), steps=1, objectives=(Regression(weight=0.5), Regression("other", weight=2.0))
    )
    assert both[0]["loss"] > 0.5 * history[0]["loss"]
    assert not np.allclose(one.params["up"], two.params["up"])


def test_clipping_bounds_the_update_but_reports_the_true_norm():
    _, plain = run((1, 1, 1), steps=1)
    _, clipped = run((1, 1, 1), steps=1, clip_norm=1e-3)
    assert clipped[0]["grad_norm"] == plain[0]["grad_norm"]


# ---- Objectives that compare rows with one another, and carry something on


def run_compared(ici, accumulate=1, microbatches=1, **kwargs):
    objectives = (Regression(), Spread(microbatches=microbatches))
    return run(ici, accumulate, objectives=objectives, **kwargs)


@pytest.fixture(scope="module")
def compared():
    return run_compared((1, 1, 1))


@pytest.mark.parametrize(
    ("ici", "accumulate", "microbatches"),
    [
        ((1, 1, 1), 1, 2),
        ((1, 1, 1), 2, 4),
        ((8, 1, 1), 1, 2),
        ((2, 2, 2), 2, 2),
    ],
)
def test_encoding_twice_in_parts_gives_the_same_run(compared, ici, accumulate, microbatches):
    state, history = run_compared(ici, accumulate, microbatches)
    expected_state, expected = compared
    for a, b in zip(history, expected, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves((state.params, state.carried)),
        jax.tree.leaves((expected_state.params, expected_state.carried)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_what_is_carried_follows_the_updated_parameters(compared):
    state, _ = compared
    np.testing.assert_allclose(state.carried["spread"]["up"], state.params["up"] + 1, rtol=1e-6)
    assert np.abs(state.carried["spread"]["mean"]).max() > 1e-3
    _, alone = run((1, 1, 1))
    assert compared[1][1]["loss"] != alone[1]["loss"]


def test_copies_of_parameters_lie_as_these_do():
    state, _ = run_compared((2, 2, 2), steps=1)
    up, copy = state.params["up"], state.carried["spread"]["up"]
    assert copy.sharding.is_equivalent_to(up.sharding, 2)
    assert copy.sharding.shard_shape(copy.shape) == (WIDTH // 2, MLP // 2)


def test_a_step_that_is_not_finite_carries_nothing_on():
    before, _ = run_compared((2, 2, 2), microbatches=2, steps=2)
    after, history = run_compared((2, 2, 2), microbatches=2, steps=3, spoil=(2,))
    assert [int(h["skipped"]) for h in history] == [0, 0, 1]
    for a, b in zip(
        jax.tree.leaves((before.params, before.carried)),
        jax.tree.leaves((after.params, after.carried)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
