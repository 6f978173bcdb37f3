"""Which evaluation of a run was the best so far, and whether it is time to stop."""

from collections.abc import Mapping
from typing import Any

from xl_flax.errors import UserError
from xl_flax.parallel.distributed import decide_on_first
from xl_flax.training.config import Best


class BestTracker:
    """Follows one metric over the evaluations of a run.

    Attributes:
      record: what a resumed run goes on from, kept in `Progress.best`: `metric` and `mode`, the
        best `value` and its `step` (None before there is one), and `waited`, the number of
        evaluations since. None if the run does not look for its best.
    """

    def __init__(self, config: Best | None, record: Mapping[str, Any] | None) -> None:
        """Goes on from a record; one of another metric or mode is not continued."""
        self._config = config
        self.record: dict[str, Any] | None = None
        self.is_new = False
        if config is None:
            return
        fresh = {"metric": config.metric, "mode": config.mode}
        self.is_new = record is None or any(record[k] != v for k, v in fresh.items())
        start = {"value": None, "step": None, "waited": 0}
        self.record = start | (fresh if self.is_new else dict(record))

    def check(self, values: Mapping[str, float]) -> None:
        """Raises UserError unless a run's evaluations, all of which ran, gave the metric."""
        if self._config is not None and self._config.metric not in values:
            raise UserError(
                f"Best.metric = {self._config.metric!r}: TrainConfig.held_out gave no such value, "
                f"or none that is finite; there are {', '.join(values) or 'none'}"
            )

    def update(self, step: int, values: Mapping[str, float]) -> bool:
        """Takes note of a step's evaluations.

        Returns:
          Whether this is the best step so far. False where the metric was not evaluated, or not
          finite.
        """
        if self._config is None or self._config.metric not in values:
            return False
        value, best = values[self._config.metric], self.record["value"]
        lower = self._config.mode == "min"
        improved = best is None or (value < best if lower else value > best)
        # The processes of a run save together, so one of them decides for all.
        if improved := decide_on_first(improved):
            self.record |= {"value": value, "step": step, "waited": 0}
        else:
            self.record["waited"] += 1
        return improved

    def chosen_by(self, step: int) -> str | None:
        """The metric, if this step is the best so far, or if it may have ended the run."""
        if self._config is None:
            return None
        if self.record["step"] == step:
            return self._config.metric
        return None if self._config.patience is None else f"last,patience:{self._config.metric}"

    @property
    def exhausted(self) -> bool:
        """Whether the run ends now, as the metric has not improved for so long."""
        if self._config is None or self._config.patience is None:
            return False
        return self.record["waited"] >= self._config.patience

    def __str__(self) -> str:
        """The best so far, for the console."""
        return "best {metric} {value:.4f} at step {step:,}".format(**self.record)
