"""What a training run is: everything `python -m xl_flax.train` reads from Gin."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import gin

from xl_flax.data.manifest import Cache
from xl_flax.data.prepare import DatasetSpec
from xl_flax.errors import UserError
from xl_flax.evaluation.base import Evaluation
from xl_flax.models.config import EncoderConfig
from xl_flax.parallel.mesh import MeshConfig
from xl_flax.training.optimizer import OptimizerConfig

# The smallest value that makes sense.
LEAST = {
    "steps": 1,
    "seed": 0,
    "accumulate": 1,
    "log_every": 1,
    "checkpoint_every": 1,
    "keep_last": 1,
    "keep_every": 1,
    "max_bad_steps": 1,
}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Periodic:
    """An evaluation that a run makes of its own parameters: at step 0, then again and again."""

    evaluation: Evaluation = gin.REQUIRED  # as in @MaskedAccuracy()
    every: int = 1000  # steps; it also runs at the last one
    name: str = ""  # between "eval/" and the rest of its scalars' names, where these would clash

    def __post_init__(self):
        if not isinstance(self.evaluation, Evaluation):
            raise UserError(
                f"Periodic.evaluation = {self.evaluation!r}: give an evaluation, as in "
                "@MaskedAccuracy()"
            )
        if not isinstance(self.every, int) or self.every < 1:
            raise UserError(f"Periodic.every = {self.every!r}: a number of steps, at least 1")

    @property
    def prefix(self) -> str:
        """`name/`, or nothing."""
        return f"{self.name}/" if self.name else ""


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Best:
    """The checkpoint to keep for good, and when to stop early, both by a held-out metric.

    The metric is that of an evaluation in `TrainConfig.held_out`. A checkpoint is saved whenever it
    improves, and the best one is kept, whatever `keep_last` says; `checkpoints/best.json` names it.
    What is evaluated at step 0, before any training, is no candidate.
    """

    metric: str = gin.REQUIRED  # a logged scalar, as in "eval/bible/loss"
    mode: Literal["min", "max"] = "min"  # whether lower or higher is better
    patience: int | None = None  # evaluations in a row without improvement; None: never stop early

    def __post_init__(self):
        if self.mode not in ("min", "max"):
            raise UserError(f"Best.mode = {self.mode!r}: choose 'min' or 'max'")
        if self.patience is not None and (not isinstance(self.patience, int) or self.patience < 1):
            raise UserError(f"Best.patience = {self.patience!r}: at least 1, or None")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class InitFrom:
    """Start from another checkpoint's parameters (only), chosen by their paths."""

    checkpoint: str = gin.REQUIRED  # a run's folder, with ":best" behind it or not; or a checkpoint
    include: str = ".*"  # regular expression over paths such as encoder/layers/up
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
    keep_last: int | None = 3  # checkpoints; None: all
    keep_every: int | None = None  # checkpoints at multiples of this step are kept for good
    held_out: Sequence[Periodic] = ()  # evaluations while it trains
    best: Best | None = None  # keep the best checkpoint, perhaps stop early
    max_bad_steps: int = 10  # skipped in a row (loss or gradient not finite) before the run stops
    init_from: InitFrom | None = None
    profile: tuple[int, int] | None = None  # (first step, steps) to trace with the JAX profiler

    def __post_init__(self):
        for name, low in LEAST.items():
            value = getattr(self, name)
            if value is None and name in ("keep_last", "keep_every"):
                continue
            if not isinstance(value, int) or value < low:
                raise UserError(
                    f"TrainConfig.{name}={value!r}: must be a whole number, at least {low}"
                )
        for name, example in (("objectives", "[@MaskedLM()]"), ("held_out", "[@Periodic()]")):
            if not isinstance(getattr(self, name), Sequence):
                raise UserError(f"TrainConfig.{name} must be a list, as in {example}")
        if not all(isinstance(item, Periodic) for item in self.held_out):
            raise UserError("TrainConfig.held_out must be a list, as in [@Periodic()]")
        if self.best is not None and not self.held_out:
            raise UserError("TrainConfig.best chooses by a metric of TrainConfig.held_out: set it")

    @property
    def evaluation_datasets(self) -> list[DatasetSpec]:
        """What the evaluations during training read."""
        return [spec for item in self.held_out for spec in item.evaluation.datasets]
