"""A model of two layers, objectives on it, and runs of a few steps: small enough to check."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xl_flax.data.stream import Rows
from xl_flax.objectives.base import Loss, Objective, row_keys
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.mesh import MeshConfig, make_partitioning
from xl_flax.parallel.rules import constrain
from xl_flax.training import state as state_lib
from xl_flax.training.optimizer import OptimizerConfig, frozen_params, make_optimizer
from xl_flax.training.step import make_train_step

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
    norms=True,
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
        norms,
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
