"""What a training run is: everything `python -m xl_flax.train` reads from Gin."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Annotated, Literal

import gin
from annotated_types import Len, doc

from xl_flax.data.manifest import Cache
from xl_flax.data.prepare import DatasetSpec
from xl_flax.evaluation.base import Evaluation
from xl_flax.models.config import EncoderConfig
from xl_flax.objectives.base import Objective
from xl_flax.parallel.mesh import MeshConfig
from xl_flax.settings import Count, Folder, Name, Natural, Pattern, Positive, Seeds, Settings
from xl_flax.training.optimizer import OptimizerConfig


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Periodic(Settings):
    """An evaluation that a run makes of its own parameters: at step 0, then again and again."""

    evaluation: Annotated[Evaluation, doc("an evaluation, as in @MaskedAccuracy()")] = gin.REQUIRED
    every: Count = 1000  # steps; it also runs at the last one
    name: str = ""  # between "eval/" and the rest of its scalars' names, where these would clash

    @property
    def prefix(self) -> str:
        """`name/`, or nothing."""
        return f"{self.name}/" if self.name else ""


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Best(Settings):
    """The checkpoint to keep for good, and when to stop early, both by a held-out metric.

    The metric is that of an evaluation in `TrainConfig.held_out`. A checkpoint is saved whenever it
    improves, and the best one is kept, whatever `keep_last` says; `checkpoints/best.json` names it.
    What is evaluated at step 0, before any training, is no candidate.
    """

    metric: Name = gin.REQUIRED  # a logged scalar, as in "eval/bible/loss"
    mode: Literal["min", "max"] = "min"  # whether lower or higher is better
    patience: Count | None = None  # evaluations in a row without improvement; None: go on


@gin.configurable
@dataclasses.dataclass(frozen=True)
class InitFrom(Settings):
    """Start from another checkpoint's parameters (only), chosen by their paths."""

    checkpoint: Folder = gin.REQUIRED  # a run's folder, perhaps with ":best"; or a checkpoint
    include: Pattern = ".*"  # regular expression over paths such as encoder/layers/up
    exclude: Pattern = ""  # of the included ones, those to drop; they keep their fresh values
    stack: bool = False  # repeat the layers of a shallower model (progressive stacking)

    def __post_init__(self):
        super().__post_init__()
        self.stage("checkpoint")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings):
    """One training run."""

    model_dir: Folder = gin.REQUIRED  # the run's folder
    encoder: EncoderConfig = gin.REQUIRED
    # Trained together, weighted.
    objectives: Annotated[
        Sequence[Objective], Len(1), doc("a list of objectives, as in [@MaskedLM()]")
    ] = gin.REQUIRED
    optimizer: OptimizerConfig = gin.REQUIRED
    cache: Cache = gin.REQUIRED
    steps: Count = gin.REQUIRED  # steps in the whole run
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    seed: Natural = 0  # of parameters, data order, masks and dropout
    # A run with each of these in model_dir/SEED, one after the other; None: one with `seed`.
    seeds: Seeds | None = None
    accumulate: Count = 1  # microbatches per step
    log_every: Count = 50  # steps
    # Log the gradient's norm of each objective, for which devices send the gradients one by one.
    objective_norms: bool = True
    checkpoint_every: Count = 1000  # steps; the last step is always saved
    keep_last: Count | None = 3  # checkpoints; None: all
    keep_every: Count | None = None  # checkpoints at multiples of this step are kept for good
    # Evaluations while it trains.
    held_out: Annotated[
        Sequence[Periodic], doc("a list of Periodic evaluations, as in [@Periodic()]")
    ] = ()
    best: Best | None = None  # keep the best checkpoint, perhaps stop early
    max_bad_steps: Count = 10  # skipped in a row (loss or gradient not finite) before the run stops
    stall_seconds: Positive | None = 900.0  # that a step may take before the run ends; None: any
    init_from: InitFrom | None = None
    profile: tuple[Natural, Count] | None = None  # (first step, steps) for JAX's profiler

    def __post_init__(self):
        super().__post_init__()
        self.stage("model_dir")
        if self.best is not None and not self.held_out:
            self.fail("best chooses by a metric of TrainConfig.held_out: set it")

    @property
    def runs(self) -> list["TrainConfig"]:
        """The run itself, or those with each of the `seeds`."""
        if self.seeds is None:
            return [self]
        folder = functools.partial(os.path.join, self.model_dir)
        return [
            dataclasses.replace(self, model_dir=folder(str(seed)), seed=seed, seeds=None)
            for seed in dict.fromkeys(self.seeds)
        ]

    @property
    def evaluation_datasets(self) -> list[DatasetSpec]:
        """What the evaluations during training read."""
        return [spec for item in self.held_out for spec in item.evaluation.datasets]
