"""Evaluations of live parameters while a run trains: `TrainConfig.held_out`."""

import math
from typing import Any

import jax
from flax import nnx

from xl_flax.checkpoints.description import Description
from xl_flax.data.prepare import Caches
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.evaluation.base import NotFiniteError, Subject
from xl_flax.evaluation.context import Context
from xl_flax.parallel.rules import Partitioning
from xl_flax.training.config import TrainConfig


class PeriodicEvaluations:
    """The evaluations of a run, each at step 0, every so many steps and at the last step."""

    def __init__(
        self, config: TrainConfig, graph: nnx.GraphDef, description: Description, context: Context
    ) -> None:
        self._items, self._steps, self._run = config.held_out, config.steps, config.model_dir
        self._graph, self._description, self._context = graph, description, context

    def due(self, step: int) -> bool:
        """Whether any evaluation is to run after this step."""
        return any(self._is_due(item, step) for item in self._items)

    def _is_due(self, item: Any, step: int) -> bool:
        return step % item.every == 0 or step == self._steps

    def __call__(self, step: int, params: Any) -> dict[str, float]:
        """Runs what is due after a step and shows a line of each on the console.

        Args:
          step: 0 before the first step: then all are due.
          params: of the model after that step.

        Returns:
          Their scalars by name; values that are not finite are left out, as JSON has none.

        Raises:
          UserError: two evaluations give scalars of the same name.
        """
        subject = Subject.live(self._graph, params, self._description, self._run, step)
        scalars: dict[str, float] = {}
        for item in self._items:
            if not self._is_due(item, step):
                continue
            try:
                results = item.evaluation(subject, self._context)
            except NotFiniteError as error:  # the losses of the steps decide whether to stop
                _say(f"step {step:,}  held out  {error}")
                continue
            _say(f"step {step:,}  held out  {item.prefix}{item.evaluation.summary(results)}")
            for name, value in item.evaluation.scalars(results).items():
                name = f"eval/{item.prefix}{name.removeprefix('eval/')}"
                if name in scalars:
                    raise UserError(
                        f"two evaluations of TrainConfig.held_out give {name!r}: set Periodic.name "
                        "of one of them"
                    )
                if math.isfinite(value):
                    scalars[name] = float(value)
        self._context.forget_subject()
        return scalars


def make_periodic(
    config: TrainConfig,
    graph: nnx.GraphDef,
    partitioning: Partitioning,
    vocabulary: Vocabulary,
    description: Description,
    caches: Caches,
) -> PeriodicEvaluations:
    """Makes a run's evaluations ready, and checks that they suit the model and the data.

    Args:
      config: the run.
      graph: the model's graph definition.
      partitioning: mesh and rules.
      vocabulary: of the run.
      description: of the model.
      caches: with all `datasets` of the evaluations.

    Raises:
      UserError: an evaluation's setting is wrong, or the model lacks what it needs.
    """
    context = Context(caches, vocabulary, partitioning, training=True)
    for item in config.held_out:
        item.evaluation.signatures(description, context)
    return PeriodicEvaluations(config, graph, description, context)


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)
