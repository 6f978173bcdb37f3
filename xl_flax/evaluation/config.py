"""What `python -m xl_flax.evaluate` reads from Gin."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Annotated

import gin
from annotated_types import Len, doc

from xl_flax.data.manifest import Cache
from xl_flax.evaluation.base import Evaluation
from xl_flax.parallel.mesh import MeshConfig
from xl_flax.settings import Folder, Seeds, Settings

Evaluations = Annotated[
    Sequence[Evaluation],
    doc(
        "a list of evaluations, as in [@MaskedAccuracy()]; @Periodic() belongs in "
        "TrainConfig.held_out"
    ),
]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Settings):
    """What `python -m xl_flax.evaluate` does."""

    # A run's folder, its `checkpoints/`, or one checkpoint; or a list of these.
    model_dir: Folder | Annotated[Sequence[Folder], Len(1)] = gin.REQUIRED
    cache: Cache = gin.REQUIRED
    evaluations: Evaluations = gin.REQUIRED
    # Measure what results must be seen beside, too: the untrained model of the same shape, and the
    # baselines that need no model.
    controls: bool = True
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    # Of runs with several seeds (`TrainConfig.seeds`), in model_dir/SEED each; None: model_dir.
    seeds: Seeds | None = None

    def __post_init__(self):
        super().__post_init__()
        self.stage("model_dir")

    @property
    def model_dirs(self) -> list[str]:
        """The folders, each once."""
        one = isinstance(self.model_dir, str)
        folders = [self.model_dir] if one else list(dict.fromkeys(self.model_dir))
        if self.seeds is None:
            return folders
        return [os.path.join(folder, str(seed)) for folder in folders for seed in self.seeds]
