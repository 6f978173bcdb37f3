"""What a run is going to read, as its Gin configuration says."""

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

import gin

from xl_flax.data.prepare import DatasetSpec
from xl_flax.errors import UserError

EVALUATIONS_MESSAGE = (
    "EvaluateConfig.evaluations must be a list of evaluations, as in [@MaskedAccuracy()]; "
    "@Periodic() belongs in TrainConfig.held_out"
)


def required() -> list[DatasetSpec]:
    """What training (objectives and held-out text) and evaluation will read.

    Raises:
      UserError: what the configuration lists is no objective or no evaluation.
    """
    train, evaluate = gin.get_bindings("TrainConfig"), gin.get_bindings("EvaluateConfig")
    message = "TrainConfig.objectives must be a list, as in [@MaskedLM()]"
    objectives = _listed(train, "objectives", "rows", message)
    specs = [spec for objective in objectives for spec in objective.rows.datasets]
    message = "TrainConfig.held_out must be a list, as in [@Periodic()]"
    for item in _listed(train, "held_out", "evaluation", message):
        specs += item.evaluation.datasets
    for evaluation in _listed(evaluate, "evaluations", "control_datasets", EVALUATIONS_MESSAGE):
        specs += evaluation.datasets + evaluation.control_datasets
    return list(dict.fromkeys(specs))


def _listed(
    bindings: Mapping[str, Any], name: str, attribute: str, message: str
) -> list[Any] | tuple[Any, ...]:
    """What is bound to a parameter: a list, whose items have an attribute that tells their kind."""
    items = bindings.get(name, ())
    if not isinstance(items, (list, tuple)) or not all(hasattr(x, attribute) for x in items):
        raise UserError(message)
    return items


def planned_rows() -> dict[str, int]:
    """Mixture -> rows that the configured run will read of it; empty if no run is configured."""
    try:
        train = gin.get_bindings("TrainConfig")
        steps, objectives = train["steps"], train["objectives"]
    except (KeyError, ValueError, TypeError, RuntimeError):
        return {}
    planned: Counter[str] = Counter()
    for objective in objectives:
        end = steps * objective.batch_size
        phases = [*objective.rows.phases, (end, "")]
        for (first, name), (after, _) in itertools.pairwise(phases):
            planned[name] += max(0, min(after, end) - first)
    return dict(planned)
