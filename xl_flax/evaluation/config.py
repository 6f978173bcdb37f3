"""What `python -m xl_flax.evaluate` reads from Gin."""

import dataclasses
from collections.abc import Sequence

import gin

from xl_flax.data.manifest import Cache
from xl_flax.data.required import EVALUATIONS_MESSAGE
from xl_flax.errors import UserError
from xl_flax.evaluation.base import Evaluation
from xl_flax.parallel.mesh import MeshConfig


@gin.configurable
@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What `python -m xl_flax.evaluate` does."""

    # A run's folder, its `checkpoints/`, or one checkpoint; or a list of these.
    model_dir: str | Sequence[str] = gin.REQUIRED
    cache: Cache = gin.REQUIRED
    evaluations: Sequence[Evaluation] = gin.REQUIRED  # as in [@MaskedAccuracy()]
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self):
        listed = isinstance(self.evaluations, Sequence)
        if not listed or not all(isinstance(item, Evaluation) for item in self.evaluations):
            raise UserError(EVALUATIONS_MESSAGE)

    @property
    def model_dirs(self) -> list[str]:
        """The folders, each once."""
        one = isinstance(self.model_dir, str)
        return [self.model_dir] if one else list(dict.fromkeys(self.model_dir))
