"""What a run is going to read, as its Gin configuration says."""

import itertools
from collections import Counter

from xl_flax import settings
from xl_flax.data.prepare import DatasetSpec


def required() -> list[DatasetSpec]:
    """What training (objectives and held-out text) and evaluation will read.

    Raises:
      UserError: a value in the configuration of either is not what it should be.
    """
    train = settings.bindings("TrainConfig", "objectives", "held_out")
    evaluate = settings.bindings("EvaluateConfig", "evaluations")
    specs = [s for objective in train.get("objectives", ()) for s in objective.rows.datasets]
    for item in train.get("held_out", ()):
        specs += item.evaluation.datasets
    for evaluation in evaluate.get("evaluations", ()):
        specs += evaluation.every_dataset
    return list(dict.fromkeys(specs))


def planned_rows() -> dict[DatasetSpec, int]:
    """Rows that the configured run will train on, by where they are; empty if no run is configured.

    Another layout of a mixture, as an evaluation reads it, has rows of its own.
    """
    try:
        train = settings.bindings("TrainConfig", "steps", "objectives")
        steps, objectives = train["steps"], train["objectives"]
    except (KeyError, ValueError, TypeError, RuntimeError):
        return {}
    planned: Counter[DatasetSpec] = Counter()
    for objective in objectives:
        end = objective.row_after(0, steps)
        specs = {spec.mixture: spec for spec in objective.rows.datasets}
        phases = [*objective.rows.phases, (end, "")]
        for (first, name), (after, _) in itertools.pairwise(phases):
            planned[specs[name]] += max(0, min(after, end) - first)
    return dict(planned)
