"""A run before its first step: what follows from its configuration and data, and has no state yet.

Cheap checks come first; caches are built where they are missing.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from flax import nnx

from xl_flax.checkpoints.description import Description
from xl_flax.data.prepare import Caches, prepare
from xl_flax.data.stream import open_stream
from xl_flax.data.vocabulary import Vocabulary, run_vocabulary
from xl_flax.errors import UserError
from xl_flax.models.heads import build_model
from xl_flax.objectives.base import Objective
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.distributed import first_process_first
from xl_flax.parallel.mesh import check_batch, make_partitioning
from xl_flax.parallel.params import Abstract
from xl_flax.parallel.rules import Partitioning
from xl_flax.training import state as state_lib
from xl_flax.training.config import TrainConfig
from xl_flax.training.feeds import Feed, all_heads
from xl_flax.training.going_on import FlatSettings, check_early, flat_settings
from xl_flax.training.optimizer import frozen_params, make_optimizer, make_schedule
from xl_flax.training.step import TrainState, make_train_step


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run is made of."""

    partitioning: Partitioning
    vocabulary: Vocabulary
    caches: Caches  # of everything that the run reads
    feeds: dict[str, Feed]  # by the objective's name
    build: Callable[[], nnx.Module]  # makes the model
    abstract: Abstract  # the model without its values
    optimizer: optax.GradientTransformation
    step: Callable[..., Any]  # from `make_train_step`
    layout: TrainState  # shapes and shardings of the whole state
    key: jax.Array  # of masks and dropout
    description: Description  # of the model and what it is trained on
    frozen: list[str]  # paths of the parameters that are never updated
    settings: FlatSettings  # all that is set, by name

    @property
    def objectives(self) -> list[Objective]:
        """Sorted by name."""
        return [feed.objective for feed in self.feeds.values()]

    @property
    def parameters(self) -> tuple[Any, Any, Partitioning]:
        """Shapes, logical axes and partitioning of the parameters, which tables show."""
        return self.abstract.shapes, self.abstract.axes, self.partitioning

    @property
    def buffers(self) -> dict[str, Any]:
        """The objectives' constant arrays."""
        return {name: feed.buffers for name, feed in self.feeds.items()}

    def phases(self) -> tuple[Any, ...]:
        """The static values of the next step, in the order of the objectives."""
        return tuple(feed.phase() for feed in self.feeds.values())

    def changes(self) -> dict[str, Any]:
        """What begins with the next step, as {"mlm/mixture": "small"}."""
        return {f"{n}/{key}": v for n, f in self.feeds.items() for key, v in f.changes().items()}


def set_up(config: TrainConfig, gin_flags: Sequence[str]) -> Setup:
    """Opens the data and builds the step of a run.

    Args:
      config: the run.
      gin_flags: the Gin flags of this command, for the process that builds caches.

    Raises:
      UserError: anything that the user can mend; see its message.
    """
    partitioning = make_partitioning(config.mesh)
    _check(config)
    # By name, so that their order in Gin changes nothing, not even in the last bit of a sum.
    objectives = sorted(config.objectives, key=lambda objective: objective.name)
    parts = {}
    for objective in objectives:
        parts[objective.name] = config.accumulate * objective.microbatches
        for _, size in objective.batch_phases if objective.rows.packing != "batch" else ():
            check_batch(objective.name, size, parts[objective.name], partitioning)
    vocabulary = run_vocabulary()
    _check_vocabulary(vocabulary, config)
    check_early(config, vocabulary.fingerprint)
    specs = [spec for objective in objectives for spec in objective.rows.datasets]
    specs += config.evaluation_datasets
    caches = first_process_first(
        "caches", lambda: prepare(specs, config.cache, vocabulary, gin_flags)
    )
    streams = {o.name: open_stream(o.rows, caches, config.seed, vocabulary) for o in objectives}
    languages = sorted({language for s in streams.values() for language in s.languages})
    _check_languages(languages, config)
    feeds = {
        o.name: Feed(o, streams[o.name], vocabulary, languages, partitioning, parts[o.name])
        for o in objectives
    }

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
    )
    return Setup(
        partitioning=partitioning,
        vocabulary=vocabulary,
        caches=caches,
        feeds=feeds,
        build=build,
        abstract=abstract,
        optimizer=optimizer,
        step=step,
        layout=layout,
        key=jax.random.key(config.seed),
        description=Description(
            encoder=config.encoder,
            heads=heads,
            vocabulary=vocabulary.fingerprint,
            languages={name: tuple(s.languages) for name, s in streams.items()},
            objectives={o.name: o.description() for o in objectives},
        ),
        frozen=[path for path, is_frozen in params_lib.flat(frozen or {}) if is_frozen],
        settings=flat_settings(config, streams, vocabulary.path),
    )


def _check(config: TrainConfig) -> None:
    make_schedule(config.optimizer, config.steps)  # fits into the run
    for objective in config.objectives:
        if objective.rows.length > config.encoder.max_positions:
            raise UserError(
                f"objective {objective.name!r}: rows of {objective.rows.length} tokens are longer "
                f"than EncoderConfig.max_positions={config.encoder.max_positions}"
            )
    names = [objective.name for objective in config.objectives]
    if len(set(names)) < len(names):
        raise UserError(f"TrainConfig.objectives are named {names}: give each its own name")


def _check_languages(languages: Sequence[str], config: TrainConfig) -> None:
    if config.encoder.languages not in (0, len(languages)):
        raise UserError(
            f"EncoderConfig.languages = {config.encoder.languages}, but the objectives read "
            f"{len(languages)} languages ({', '.join(languages)}); set it to {len(languages)}, or "
            "to 0 for an encoder without language embeddings"
        )


def _check_vocabulary(vocabulary: Vocabulary, config: TrainConfig) -> None:
    spare = config.encoder.vocab_size - vocabulary.size
    # Tables are rounded up to a multiple of 64 or 128; that of a model which others published may
    # have any number of rows to spare (XLM-R XL: 878).
    if spare < 0 or (spare >= 512 and not config.init_from):
        raise UserError(
            f"the vocabulary {vocabulary.path} has {vocabulary.size:,} pieces, but "
            f"EncoderConfig.vocab_size={config.encoder.vocab_size:,}; set it to the vocabulary's "
            "size, or name another vocabulary"
        )
