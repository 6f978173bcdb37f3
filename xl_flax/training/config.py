"""What a training run is: everything `python -m xl_flax.train` reads from Gin."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import gin

from xl_flax.data.manifest import Cache
from xl_flax.models.config import EncoderConfig
from xl_flax.parallel.mesh import MeshConfig
from xl_flax.training.optimizer import OptimizerConfig


@gin.configurable
@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A held-out mixture on which the masked-token loss is measured during training."""

    mixture: str = gin.REQUIRED
    split: str = "validation"
    rows_per_task: int = 64  # rows read of each language


@gin.configurable
@dataclasses.dataclass(frozen=True)
class InitFrom:
    """Start from another checkpoint's parameters (only), chosen by their paths."""

    checkpoint: str  # a run's folder, or one checkpoint
    include: str = ".*"  # regular expression over paths such as encoder/layers/mlp/up
    exclude: str = ""  # of the included ones, those to drop; they keep their fresh values


@gin.configurable
@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    model_dir: str = gin.REQUIRED  # the run's folder
    encoder: EncoderConfig = gin.REQUIRED
    objectives: Sequence[Any] = gin.REQUIRED  # trained together, weighted
    optimizer: OptimizerConfig = gin.REQUIRED
    cache: Cache = gin.REQUIRED
    steps: int = gin.REQUIRED  # steps in the whole run
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    seed: int = 0  # of parameters, data order, masks and dropout
    accumulate: int = 1  # microbatches per step
    log_every: int = 50  # steps
    checkpoint_every: int = 1000  # steps; the last step is always saved
    keep_last: int = 3  # checkpoints
    keep_every: int | None = None  # checkpoints at multiples of this step are kept for good
    held_out: Sequence[HeldOut] = ()
    eval_every: int = 1000  # steps
    max_bad_steps: int = 10  # skipped in a row (loss or gradient not finite) before the run stops
    init_from: InitFrom | None = None
    profile: tuple[int, int] | None = None  # (first step, steps) to trace with the JAX profiler
