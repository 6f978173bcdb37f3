"""The program of a run: its model, optimizer and step. It needs neither data nor a device."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from flax import nnx

from xl_flax.data.assumed import AssumedStream, AssumedVocabulary
from xl_flax.data.stream import Stream
from xl_flax.errors import UserError
from xl_flax.models.attention import check_cudnn, refuse_dropout
from xl_flax.models.fused_attention import fits
from xl_flax.models.heads import build_model
from xl_flax.objectives.base import Objective
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.mesh import check_batch
from xl_flax.parallel.params import Abstract
from xl_flax.parallel.rules import Partitioning
from xl_flax.training import state as state_lib
from xl_flax.training.config import TrainConfig
from xl_flax.training.feeds import all_heads
from xl_flax.training.optimizer import frozen_params, make_optimizer, make_schedule
from xl_flax.training.step import TrainState, make_train_step

Streams = Mapping[str, Stream | AssumedStream]


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run computes."""

    partitioning: Partitioning
    objectives: list[Objective]  # sorted by name
    streams: Streams  # what each of them reads
    heads: dict[str, Any]  # settings by name
    build: Callable[[], nnx.Module]  # makes the model
    abstract: Abstract  # the model without its values
    optimizer: optax.GradientTransformation
    frozen: list[str]  # paths of the parameters that are never updated
    layout: TrainState  # shapes and shardings of the whole state
    step: Callable[..., Any]  # from `make_train_step`

    @property
    def parameters(self) -> tuple[Any, Any, Partitioning]:
        """Shapes, logical axes and partitioning of the parameters, which tables show."""
        return self.abstract.shapes, self.abstract.axes, self.partitioning


def sorted_objectives(config: TrainConfig) -> list[Objective]:
    """By name, so that their order in Gin changes nothing, not even in the last bit of a sum."""
    return sorted(config.objectives, key=lambda objective: objective.name)


def check_program(config: TrainConfig, partitioning: Partitioning) -> None:
    """Raises UserError where settings do not go together; what data says is checked elsewhere."""
    make_schedule(config.optimizer, config.steps)  # fits into the run
    kernel = config.encoder.attention == "auto" and partitioning.platform == "tpu"
    if kernel and any(fits(objective.rows.length) for objective in config.objectives):
        refuse_dropout(config.encoder.attention_dropout)
    if config.encoder.attention == "cudnn":
        encoder = config.encoder
        check_cudnn(encoder.attention_dropout, encoder.dtype, partitioning.platform)
    names = [objective.name for objective in config.objectives]
    if len(set(names)) < len(names):
        raise UserError(f"TrainConfig.objectives are named {names}: give each its own name")
    for objective in sorted_objectives(config):
        if objective.rows.length > config.encoder.max_positions:
            raise UserError(
                f"objective {objective.name!r}: rows of {objective.rows.length} tokens are longer "
                f"than EncoderConfig.max_positions={config.encoder.max_positions}"
            )
        for _, size in objective.batch_phases if objective.rows.packing != "batch" else ():
            check_batch(objective.name, size, parts_of(objective, config), partitioning)


def parts_of(objective: Objective, config: TrainConfig) -> int:
    """Microbatches in which a step computes an objective's batch."""
    return config.accumulate * objective.microbatches


def make_program(config: TrainConfig, streams: Streams, partitioning: Partitioning) -> Program:
    """Builds the step of a run.

    Args:
      config: the run, checked.
      streams: what each objective reads, by its name.
      partitioning: mesh and rules.

    Raises:
      UserError: the objectives want different heads of one name, or the optimizer does not suit.
    """
    objectives = sorted_objectives(config)
    heads = all_heads(objectives, streams)

    def build() -> nnx.Module:
        return build_model(config.encoder, heads, nnx.Rngs(config.seed))

    abstract = params_lib.abstract(build)
    optimizer, schedule = make_optimizer(config.optimizer, config.steps, abstract.axes)
    frozen = frozen_params(config.optimizer, abstract.axes)
    layout = state_lib.layout(abstract, optimizer, partitioning, objectives, streams)
    step = make_train_step(
        abstract,
        objectives,
        streams,
        optimizer,
        schedule,
        partitioning,
        layout,
        config.accumulate,
        config.optimizer.clip_norm,
        frozen,
        config.objective_norms,
    )
    return Program(
        partitioning=partitioning,
        objectives=objectives,
        streams=streams,
        heads=heads,
        build=build,
        abstract=abstract,
        optimizer=optimizer,
        frozen=[path for path, is_frozen in params_lib.flat(frozen or {}) if is_frozen],
        layout=layout,
        step=step,
    )


def assumed_streams(config: TrainConfig) -> dict[str, AssumedStream]:
    """What the objectives would read of data that are not there, by name."""
    encoder = config.encoder
    return {
        o.name: AssumedStream(
            o.rows, *o.usual_example(), max(encoder.languages, 1), encoder.vocab_size
        )
        for o in sorted_objectives(config)
    }


def lower_without_data(program: Program, config: TrainConfig, step: int = 0) -> jax.stages.Lowered:
    """The step of a program of `assumed_streams`, ready to be compiled.

    Args:
      program: the step.
      config: the run.
      step: whose batch it reads, counted from 0: its size and masking rate may have phases.

    Raises:
      UserError: an objective cannot read what is assumed.
    """
    partitioning = program.partitioning
    languages = sorted({name for s in program.streams.values() for name in s.languages})
    vocabulary = AssumedVocabulary(config.encoder.vocab_size)

    def lay_out(x: Any, names: Sequence[str | None] = ()) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=partitioning.sharding(names))

    batches, buffers, phases = {}, {}, []
    for objective in program.objectives:
        name, stream = objective.name, program.streams[objective.name]
        try:
            objective.check(stream)
            arrays = objective.buffers(vocabulary, stream, languages)
        except (UserError, AttributeError) as error:
            raise UserError(
                f"objective {name!r} cannot read what is assumed where no data is there ({error}): "
                f"define {type(objective).__name__}.usual_example, or cache the text first"
            ) from error
        row = objective.row_after(0, step)
        multiple = parts_of(objective, config) * partitioning.batch_shards
        shapes = stream.shapes(objective.batch_at(row), multiple)
        batches[name] = {key: lay_out(x, ("batch",)) for key, x in shapes.items()}
        buffers[name] = jax.tree.map(lay_out, arrays)
        phases.append(objective.phase_at(row))
    key = lay_out(jax.eval_shape(lambda: jax.random.key(config.seed)))
    return program.step.lower(program.layout, batches, buffers, key, tuple(phases))
