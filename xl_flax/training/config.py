"""What a training run is: everything `python -m xl_flax.train` reads from Gin."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import gin

from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache
from xl_flax.data.mixtures import mixture_names
from xl_flax.data.prepare import DatasetSpec
from xl_flax.errors import UserError
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
    "eval_every": 1,
    "max_bad_steps": 1,
}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A held-out mixture on which the masked-token loss is measured during training."""

    mixture: str | Sequence[tuple[int, str]] = gin.REQUIRED  # phases: all the mixtures they name
    split: str = "validation"
    rows_per_task: int = 64  # rows read of each language

    @property
    def name(self) -> str:
        """What the metrics are called by."""
        return "+".join(mixture_names(self.mixture))

    def datasets(self, length: int) -> list[DatasetSpec]:
        """What must be cached, in rows of this length."""
        layout = Layout(length)
        return [DatasetSpec(name, self.split, layout) for name in mixture_names(self.mixture)]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class InitFrom:
    """Start from another checkpoint's parameters (only), chosen by their paths."""

    checkpoint: str = gin.REQUIRED  # a run's folder, or one checkpoint
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
    keep_last: int | None = 3  # checkpoints; None: all
    keep_every: int | None = None  # checkpoints at multiples of this step are kept for good
    held_out: Sequence[HeldOut] = ()
    eval_every: int = 1000  # steps
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
        if not isinstance(self.objectives, Sequence):
            raise UserError("TrainConfig.objectives must be a list, as in [@MaskedLM()]")
        held_out = [h.name for h in self.held_out]
        if len(set(held_out)) < len(held_out):
            raise UserError(f"TrainConfig.held_out names a mixture twice: {', '.join(held_out)}")
