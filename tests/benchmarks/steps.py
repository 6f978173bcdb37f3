"""A training step for one objective, as training builds it for several."""

import types
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.objectives.base import Inputs, Objective
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.mesh import MeshConfig, make_partitioning
from xl_flax.parallel.rules import Partitioning
from xl_flax.training import state as state_lib
from xl_flax.training.optimizer import OptimizerConfig, make_optimizer
from xl_flax.training.step import TrainState, make_train_step


class TrainingStep:
    """The training step of one objective, on one device if nothing else is said.

    Everything that the benchmarks know about the contract between objectives and the step is here.

    Args:
      config: of the encoder.
      objective: what to train.
      vocabulary: what the objective reads of one, or None.
      stream: what the objective reads of a stream: its languages, texts and examples per row.
      optimizer: settings of the optimizer.
      partitioning: a mesh of other devices.
    """

    def __init__(
        self,
        config: EncoderConfig,
        objective: Objective,
        vocabulary: Any,
        stream: Any,
        optimizer: OptimizerConfig,
        partitioning: Partitioning | None = None,
    ):
        self.objective, self.streams = objective, {objective.name: stream}
        self.build = lambda: build_model(config, objective.heads(stream), nnx.Rngs(0))
        self.partitioning = partitioning or make_partitioning(MeshConfig(), jax.devices()[:1])
        abstract = params_lib.abstract(self.build)
        self.shardings = abstract.shardings(self.partitioning)
        self.optimizer, schedule = make_optimizer(optimizer, 1000, abstract.axes)
        self.layout = state_lib.layout(
            abstract, self.optimizer, self.partitioning, [objective], self.streams
        )
        self.train_step = make_train_step(
            abstract,
            [objective],
            self.streams,
            self.optimizer,
            schedule,
            self.partitioning,
            self.layout,
        )
        self.buffers = objective.buffers(vocabulary, stream, stream.languages)
        self.key = jax.random.key(0)

    def fresh(self, params: dict[str, Any] | None = None) -> TrainState:
        """The state of step 0, with these parameters or random ones."""
        if params is None:
            params = params_lib.create(self.build, self.partitioning)
        params = jax.device_put(params, self.shardings)  # or the second step compiles once more
        return state_lib.fresh(params, self.optimizer, self.layout, [self.objective], self.streams)

    def __call__(
        self, state: TrainState, batch: dict[str, Any]
    ) -> tuple[TrainState, dict[str, dict[str, jax.Array]]]:
        """The next state and the metrics, those of the objective under its name; waits for none."""
        name = self.objective.name
        self.buffers = jax.device_put(self.buffers)  # once
        arguments = {name: batch}, {name: self.buffers}, self.key, (self.objective.phase_at(0),)
        return self.train_step(state, *arguments)

    def lower(self, batch: dict[str, jax.ShapeDtypeStruct]) -> jax.stages.Lowered:
        """The step, ready to be compiled for batches of this shape."""

        def lay_out(x: Any, *names: str) -> jax.ShapeDtypeStruct:
            names += (None,) * (x.ndim - len(names))
            sharding = self.partitioning.sharding(names)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        name = self.objective.name
        return self.train_step.lower(
            self.layout,
            {name: {key: lay_out(x, "batch") for key, x in batch.items()}},
            {name: jax.tree.map(lay_out, self.buffers)},
            lay_out(self.key),
            (self.objective.phase_at(0),),
        )


def vector_loss(objective: Objective, stream: Any) -> Callable:
    """A function from encoded sentences and their batch to the loss of a contrastive objective.

    The head has no parameters of its own that the loss reads.
    """
    buffers = objective.buffers(None, stream, stream.languages)
    head = types.SimpleNamespace(log_scale=None)
    model = types.SimpleNamespace(heads={objective.name: head})

    def loss(vectors: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        inputs = Inputs(key=None, stream=stream, buffers=buffers, encoded=vectors)
        return objective.loss(model, batch, inputs).total

    return loss
