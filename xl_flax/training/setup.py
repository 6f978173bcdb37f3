"""A run before its first step: what follows from its configuration and data, and has no state yet.

Cheap checks come first; caches are built where they are missing.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from xl_flax.checkpoints.description import Description
from xl_flax.data.prepare import Caches, DatasetSpec, lacking
from xl_flax.data.stream import open_stream
from xl_flax.data.vocabulary import Vocabulary, run_vocabulary
from xl_flax.errors import MissingError, UserError, message
from xl_flax.evaluation.caches import prepare_together
from xl_flax.files.remote import shown
from xl_flax.parallel.mesh import make_partitioning
from xl_flax.training.config import TrainConfig
from xl_flax.training.feeds import Feed
from xl_flax.training.going_on import FlatSettings, check_early, flat_settings
from xl_flax.training.program import (
    Program,
    check_program,
    make_program,
    parts_of,
    sorted_objectives,
)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run is made of."""

    program: Program
    vocabulary: Vocabulary
    caches: Caches  # of everything that the run reads
    feeds: dict[str, Feed]  # by the objective's name, in the order of the program's objectives
    key: jax.Array  # of masks and dropout
    description: Description  # of the model and what it is trained on
    settings: FlatSettings  # all that is set, by name

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
    check_program(config, partitioning)
    objectives = sorted_objectives(config)
    vocabulary = run_vocabulary()
    _check_vocabulary(vocabulary, config)
    check_early(config, vocabulary.fingerprint)
    caches = prepare_together(_datasets(config), config.cache, vocabulary, gin_flags)
    streams = {o.name: open_stream(o.rows, caches, config.seed, vocabulary) for o in objectives}
    languages = sorted({language for s in streams.values() for language in s.languages})
    _check_languages(languages, config)
    feeds = {
        o.name: Feed(o, streams[o.name], vocabulary, languages, partitioning, parts_of(o, config))
        for o in objectives
    }
    program = make_program(config, streams, partitioning)
    return Setup(
        program=program,
        vocabulary=vocabulary,
        caches=caches,
        feeds=feeds,
        key=jax.random.key(config.seed),
        description=Description(
            encoder=config.encoder,
            heads=program.heads,
            vocabulary=vocabulary.fingerprint,
            languages={name: tuple(s.languages) for name, s in streams.items()},
            objectives={o.name: o.description() for o in objectives},
        ),
        settings=flat_settings(config, streams, shown(vocabulary.path)),
    )


def data_missing(config: TrainConfig) -> str:
    """What has to be built before a run can be set up, as a sentence; "" if nothing."""
    try:
        vocabulary = run_vocabulary()
    except MissingError as error:
        return message(error)
    _check_vocabulary(vocabulary, config)
    check_early(config, vocabulary.fingerprint)
    return lacking(_datasets(config), config.cache, vocabulary)


def _datasets(config: TrainConfig) -> list[DatasetSpec]:
    """Everything that a run reads."""
    own = [spec for objective in config.objectives for spec in objective.rows.datasets]
    return own + config.evaluation_datasets


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
    # have any number of rows to spare (XLM-R XL: 878 of 250,880).
    most = max(511, config.encoder.vocab_size // 100)
    if spare < 0 or (spare > most and not config.init_from):
        raise UserError(
            f"the vocabulary {vocabulary.path} has {vocabulary.size:,} pieces, but "
            f"EncoderConfig.vocab_size={config.encoder.vocab_size:,}; set it to the vocabulary's "
            "size, or name another vocabulary"
        )
