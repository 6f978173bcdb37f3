"""What the first step tells of an objective: whether it learns, and what it reports."""

from collections.abc import Mapping
from typing import Any

from xl_flax.errors import UserError
from xl_flax.objectives.base import Objective
from xl_flax.training.feeds import Feed


def check_first_metrics(
    metrics: Mapping[str, Any], feeds: Mapping[str, Feed], unchecked: set[str]
) -> None:
    """Checks the first step in which an objective has something to learn.

    Args:
      metrics: of one step.
      feeds: of the run.
      unchecked: names of objectives; those that are checked are removed.

    Raises:
      UserError: a declared metric has no sums, or the gradient of an objective is exactly zero in
        every parameter.
    """
    if metrics["step"]["bad_streak"]:
        return  # a skipped step tells nothing of gradients
    for name in sorted(unchecked):
        _check_sums(feeds[name].objective, metrics[name])
        if not metrics[name]["count"]:
            continue  # a queue that fills first, say
        squares = metrics[name].get("grad_squares", 1.0)  # where there is no norm
        if metrics[name].get("grad_norm", squares) == 0:
            raise UserError(
                f"objective {name!r} has a loss of {float(metrics[name]['loss']):.4g}, whose "
                "gradient is exactly zero in every parameter that is trained: it would learn "
                "nothing. The gradient must flow from Loss.total; of what linear_cross_entropy "
                "returns only `total` carries one (weights go in, see MaskedLM.slot_weights). "
                "Or OptimizerConfig.rate_factors freezes all that the objective reaches"
            )
        unchecked.remove(name)


def _check_sums(objective: Objective, sums: Mapping[str, Any]) -> None:
    for metric, mean in objective.metrics.items():
        needed = {mean.numerator, mean.denominator} - {"steps"}
        if mean.by_language:
            needed |= {f"language_{name}" for name in needed}
        if missing := sorted(needed - set(sums)):
            raise UserError(
                f"objective {objective.name!r} declares the metric {metric!r} as "
                f"{mean.numerator} / {mean.denominator}"
                f"{' by language' if mean.by_language else ''}, but its loss "
                f"returns no sum {missing[0]!r}; there are {', '.join(sorted(sums))}"
            )
