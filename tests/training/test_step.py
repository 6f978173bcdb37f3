"""The step: accumulation, meshes, clipping and skipping, on a model small enough to check."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xl_flax.data.stream import Rows
from xl_flax.errors import UserError
from xl_flax.objectives.base import Inputs, Loss, Objective, row_keys
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.mesh import MeshConfig, make_partitioning
from xl_flax.parallel.rules import constrain
from xl_flax.training import state as state_lib
from xl_flax.training.optimizer import OptimizerConfig, frozen_params, make_optimizer
from xl_flax.training.step import make_train_step, objective_gradient

ROWS, WIDTH, MLP = 16, 8, 32


class TwoLayers(nnx.Module):
    def __init__(self, rngs):
        init = nnx.initializers.normal(0.5)
        self.up = nnx.Param(init(rngs.params(), (WIDTH, MLP)), out_sharding=("embed", "mlp"))
        self.down = nnx.Param(init(rngs.params(), (MLP, WIDTH)), out_sharding=("mlp", "embed"))

    def __call__(self, x):
        return constrain(jnp.tanh(x @ self.up[...]), ("batch", "mlp")) @ self.down[...]


@dataclasses.dataclass(frozen=True)
class Regression(Objective):
    """Squared error over rows with different weights, as rows with different token counts."""

    name: str = "regression"

    def phase_at(self, row):
        return 0.1

    def loss(self, model, batch, inputs):
        keys = row_keys(inputs.key, batch["row_id"])
        noise = jax.vmap(lambda key: jax.random.normal(key, (WIDTH,)))(keys)
        error = ((model(batch["x"] + inputs.phase * noise) - batch["y"]) ** 2).mean(-1)
        return Loss(jnp.sum(error * batch["weight"]), {"count": batch["weight"].sum()})


@dataclasses.dataclass(frozen=True)
class Centred(Regression):
    """A sum over rows with a state of its own: a mean of all rows' predictions so far."""

    name: str = "centred"

    def loss(self, model, batch, inputs):
        predicted = model(batch["x"])
        error = ((predicted - inputs.state["mean"] - batch["y"]) ** 2).mean(-1)
        update = {"sum": predicted.sum(axis=0), "rows": jnp.float32(len(predicted))}
        sums = {"count": batch["weight"].sum()}
        return Loss(jnp.sum(error * batch["weight"]), sums, jax.lax.stop_gradient(update))

    def init_state(self, params, stream):
        return {"mean": jnp.zeros(WIDTH)}

    def state_axes(self, axes):
        return {"mean": ("embed",)}

    def update_state(self, state, params, update):
        return {"mean": 0.9 * state["mean"] + 0.1 * update["sum"] / update["rows"]}


@dataclasses.dataclass(frozen=True)
class Spread(Objective):
    """How far rows are apart: a loss of all rows together, which hands on a mean of its vectors."""

    weight: float = 0.3
    name: str = "spread"

    compares_rows = True

    def encode(self, model, batch, inputs):
        keys = row_keys(inputs.key, batch["row_id"])
        noise = jax.vmap(lambda key: jax.random.normal(key, (WIDTH,)))(keys)
        return {"x": model(batch["x"] + 0.1 * noise) + inputs.state["mean"]}

    def loss(self, model, batch, inputs):
        x = inputs.encoded["x"]
        near = jnp.exp(-((x[:, None] - x[None]) ** 2).sum(-1)) * batch["weight"]
        loss = jnp.sum(near) + jnp.sum(model.up[...] ** 2)
        return Loss(loss, {"count": batch["weight"].sum()}, x.mean(axis=0))

    def init_state(self, params, stream):
        return {"mean": jnp.zeros(WIDTH), "up": jax.tree.map(jnp.copy, params["up"])}

    def state_axes(self, axes):
        return {"mean": (None,), "up": axes["up"]}

    def update_state(self, state, params, update):
        return {"mean": 0.5 * state["mean"] + 0.5 * update, "up": params["up"] + 1}


ROWS_READ = Rows("rows", 8)


def regression(**settings):
    return Regression(rows=ROWS_READ, batch_size=ROWS, **settings)


def centred(**settings):
    return Centred(rows=ROWS_READ, batch_size=ROWS, **settings)


def spread(**settings):
    return Spread(rows=ROWS_READ, batch_size=ROWS, **settings)


def batch_of(rng, rows=ROWS):
    return {
        "x": rng.normal(size=(rows, WIDTH)).astype(np.float32),
        "y": rng.normal(size=(rows, WIDTH)).astype(np.float32),
        "weight": rng.integers(0, 20, rows).astype(np.float32),
        "row_id": np.arange(rows, dtype=np.int32),
    }


def run(
    ici,
    accumulate=1,
    steps=3,
    clip_norm=None,
    spoil=(),
    objectives=None,
    settings=None,
    divided=(),
):
    """Trains a few steps; returns parameters, state and the metrics of each step."""
    devices = jax.devices()[: int(np.prod(ici))]
    partitioning = make_partitioning(MeshConfig(ici=ici, optimizer=divided), devices)
    build = lambda: TwoLayers(nnx.Rngs(0))  # noqa: E731
    abstract = params_lib.abstract(build)
    objectives = objectives or (regression(),)
    settings = settings or OptimizerConfig(learning_rate=1e-2, schedule="constant", eps=1e-8)
    optimizer, schedule = make_optimizer(settings, 10, abstract.axes)
    streams = dict.fromkeys((o.name for o in objectives), None)
    layout = state_lib.layout(abstract, optimizer, partitioning, objectives, streams)
    step = make_train_step(
        abstract,
        objectives,
        streams,
        optimizer,
        schedule,
        partitioning,
        layout,
        accumulate,
        clip_norm,
        frozen_params(settings, abstract.axes),
    )
    params = params_lib.create(build, partitioning)
    state = state_lib.fresh(params, optimizer, layout, objectives, streams)
    history = []
    for i in range(steps):
        batches = {}
        for objective in objectives:
            # Of its own for each objective, whatever its place.
            batch = batch_of(np.random.default_rng([i, *objective.name.encode()]))
            if i in spoil:
                batch["x"][3] = np.nan
            sharding = partitioning.sharding(("batch",))
            batches[objective.name] = jax.device_put(batch, sharding)
        none = {name: {} for name in batches}
        phases = tuple(o.phase_at(0) for o in objectives)
        state, metrics = step(state, batches, none, jax.random.key(0), phases)
        metrics = jax.device_get(metrics)
        history.append(metrics["step"] | {k: v for k, v in metrics.items() if k != "step"})
    return state, history


@pytest.fixture(scope="module")
def reference():
    return run((1, 1, 1))


@pytest.mark.parametrize(
    ("ici", "accumulate", "divided"),
    [
        ((1, 1, 1), 4, ()),
        ((8, 1, 1), 1, ()),
        ((8, 1, 1), 2, ("data",)),
        ((2, 2, 2), 2, ()),
        ((2, 2, 2), 1, ("data",)),
        ((1, 8, 1), 2, ()),
        ((1, 2, 4), 4, ()),
    ],
)
def test_every_mesh_and_accumulation_gives_the_same_run(reference, ici, accumulate, divided):
    state, history = run(ici, accumulate, divided=divided)
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


@pytest.mark.parametrize(
    ("ici", "own", "moments"),
    [
        ((8, 1, 1), (WIDTH, MLP), (WIDTH // 8, MLP)),
        ((4, 2, 1), (WIDTH // 2, MLP), (WIDTH // 2, MLP // 4)),
        ((2, 2, 2), (WIDTH // 2, MLP // 2), (WIDTH // 2, MLP // 2)),  # no axis is left
    ],
)
def test_the_optimizers_state_may_be_divided_over_data(ici, own, moments):
    state, _ = run(ici, steps=2, divided=("data",))
    part = lambda x: x.sharding.shard_shape(x.shape)  # noqa: E731
    up = state.params["up"]
    assert part(up) == own
    large = [x for x in jax.tree.leaves(state.optimizer) if x.shape == up.shape]
    assert len(large) == 2 and {part(x) for x in large} == {moments}


@pytest.mark.parametrize("name", ["adamw", "stable_adamw", "muon"])
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
        (1, 1, 1),
        steps=1,
        objectives=(regression(weight=0.5), regression(name="other", weight=2.0)),
    )
    assert both[0]["loss"] > 0.5 * history[0]["loss"]
    assert not np.allclose(one.params["up"], two.params["up"])


def test_clipping_bounds_the_update_but_reports_the_true_norm():
    _, plain = run((1, 1, 1), steps=1)
    _, clipped = run((1, 1, 1), steps=1, clip_norm=1e-3)
    assert clipped[0]["grad_norm"] == plain[0]["grad_norm"]


# ---- Objectives that compare rows with one another, and carry something on


def run_compared(ici, accumulate=1, microbatches=1, **kwargs):
    objectives = (regression(), spread(microbatches=microbatches), centred(microbatches=2))
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
        jax.tree.leaves((state.params, state.objectives)),
        jax.tree.leaves((expected_state.params, expected_state.objectives)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_what_is_carried_follows_the_updated_parameters(compared):
    state, _ = compared
    np.testing.assert_allclose(state.objectives["spread"]["up"], state.params["up"] + 1, rtol=1e-6)
    assert np.abs(state.objectives["spread"]["mean"]).max() > 1e-3
    _, alone = run((1, 1, 1))
    assert compared[1][1]["loss"] != alone[1]["loss"]


def test_copies_of_parameters_lie_as_these_do():
    state, _ = run_compared((2, 2, 2), steps=1)
    up, copy = state.params["up"], state.objectives["spread"]["up"]
    assert copy.sharding.is_equivalent_to(up.sharding, 2)
    assert copy.sharding.shard_shape(copy.shape) == (WIDTH // 2, MLP // 2)


def test_a_step_that_is_not_finite_carries_nothing_on():
    before, _ = run_compared((2, 2, 2), microbatches=2, steps=2)
    after, history = run_compared((2, 2, 2), microbatches=2, steps=3, spoil=(2,))
    assert [int(h["skipped"]) for h in history] == [0, 0, 1]
    for a, b in zip(
        jax.tree.leaves((before.params, before.objectives)),
        jax.tree.leaves((after.params, after.objectives)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_sum_over_rows_has_a_state_of_its_own(compared):
    state, _ = compared
    assert np.abs(state.objectives["centred"]["mean"]).max() > 1e-3
    sharded, _ = run_compared((2, 2, 2), steps=1)
    mean = sharded.objectives["centred"]["mean"]
    assert mean.sharding.shard_shape(mean.shape) == (WIDTH // 2,)


def test_axes_that_do_not_fit_a_state_are_named():
    class Wrong(Centred):
        def state_axes(self, axes):
            return {"mean": ("embed", None)}

    with pytest.raises(UserError, match=r"'centred': Wrong.state_axes .* 'mean' of shape \(8,\)"):
        run((1, 1, 1), objectives=(Wrong(rows=ROWS_READ, batch_size=ROWS),))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_axes": lambda self, axes: {"mean": ("wide",)}}, r"names 'wide' for 'mean'"),
        (
            {"update_state": lambda self, state, params, update: {"other": state["mean"]}},
            r"update_state returns \{'other'",
        ),
        (
            {"loss": lambda self, model, batch, inputs: Loss(jnp.sum(model.up[...]), {})},
            r"the sums of its Loss have no 'count'",
        ),
    ],
)
def test_what_breaks_the_contract_is_named(changes, message):
    wrong = type("Wrong", (Centred,), changes)
    with pytest.raises(UserError, match=rf"'centred': .*{message}"):
        run((1, 1, 1), steps=1, objectives=(wrong(rows=ROWS_READ, batch_size=ROWS),))


# ---- Names, gradients apart, frozen parameters


def test_the_order_of_objectives_changes_nothing():
    first, second = regression(), regression(name="other", weight=0.5)
    (one, forward), (two, backward) = (
        run((1, 1, 1), steps=2, objectives=order) for order in ((first, second), (second, first))
    )
    for a, b in zip(forward, backward, strict=True):
        for name in ("regression", "other"):
            assert a[name]["loss"] == b[name]["loss"]
    assert forward[0]["regression"]["loss"] != forward[0]["other"]["loss"]  # own noise
    np.testing.assert_allclose(one.params["up"], two.params["up"], rtol=1e-6)


def test_gradients_of_two_losses_can_be_had_apart():
    partitioning = make_partitioning(MeshConfig(ici=(1, 1, 1)), jax.devices()[:1])
    abstract = params_lib.abstract(lambda: TwoLayers(nnx.Rngs(0)))
    params = params_lib.create(lambda: TwoLayers(nnx.Rngs(0)), partitioning)
    batch = batch_of(np.random.default_rng(0))

    def gradient(objective, accumulate=1):
        inputs = Inputs(jax.random.key(0), None, {}, phase=0.1)
        return jax.jit(
            lambda params: objective_gradient(
                *(abstract.graph, objective, params, batch, inputs),
                *((abstract.shardings(partitioning),) * 2, accumulate),
            )
        )(params)

    grads, loss = gradient(regression())
    cut, same = gradient(regression(), 4)
    np.testing.assert_allclose(cut["up"], grads["up"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(same.total, loss.total, rtol=1e-5)


def test_frozen_parameters_stay_and_others_have_their_own_rate():
    settings = OptimizerConfig(learning_rate=1e-2, schedule="constant", eps=1e-8)
    plain, history = run((1, 1, 1), steps=1, settings=settings)
    frozen = dataclasses.replace(settings, rate_factors=[("up", 0.0), ("down", 0.5)])
    state, other = run((1, 1, 1), steps=1, settings=frozen)
    start, _ = run((1, 1, 1), steps=0)
    np.testing.assert_array_equal(state.params["up"], start.params["up"])
    np.testing.assert_allclose(
        2 * (state.params["down"] - start.params["down"]),
        plain.params["down"] - start.params["down"],
        rtol=1e-3,
        atol=1e-6,
    )
    assert other[0]["grad_norm"] < history[0]["grad_norm"]  # without the frozen ones
    spread, on_eight = run((8, 1, 1), steps=1, settings=frozen, divided=("data",))
    np.testing.assert_array_equal(spread.params["up"], start.params["up"])
    np.testing.assert_allclose(spread.params["down"], state.params["down"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(on_eight[0]["grad_norm"], other[0]["grad_norm"], rtol=1e-5)
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.ndim == 2]
    assert {x.shape for x in moments} == {state.params["down"].shape}


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([("nowhere/.*", 0.0)], r"'nowhere/\.\*', 0\.0\) matches no parameter; paths look like"),
        ([(".*", 0.0)], "freezes every parameter"),
    ],
)
def test_factors_that_make_no_sense_are_named(factors, message):
    with pytest.raises(UserError, match=message):
        run((1, 1, 1), steps=0, settings=OptimizerConfig(rate_factors=factors))
