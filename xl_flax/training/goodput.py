"""What a run spends its time on, from its first start to its end: `goodput` in `metrics.jsonl`."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from xl_flax.files.read import read_json_lines
from xl_flax.training.logging import METRICS_FILE, clock

WHAT = {
    "training": "training",
    "waiting": "waiting for data",
    "evaluating": "evaluating",
    "saving": "saving",
    "compiling": "compiling",
    "starting": "starting",
    "lost": "lost: trained again after a restart",
}
AWAY = "away"  # between what was logged last and the next start: nothing of the run was there
STARTS = "starts"
USEFUL = ("training", "waiting")  # what is done again where a run was not saved

Seconds = dict[str, float]  # by name, as in `WHAT`


class Goodput:
    """A clock that always counts for one of the things in `WHAT`.

    Attributes:
      spent: seconds so far, and the number of starts; of all starts of the run.
    """

    def __init__(
        self, saved: Mapping[str, float], logged: Mapping[str, Any] | None, since: float = 0.0
    ) -> None:
        """Starts the clock, which counts for "starting".

        Args:
          saved: what had been spent when the checkpoint was saved from which the run goes on.
          logged: the run's last line of `metrics.jsonl` that has `goodput`, perhaps of a later
            step: what lies between the two is lost.
          since: seconds that this start has taken already.
        """
        self.spent: Seconds = dict.fromkeys((*WHAT, AWAY, STARTS), 0.0)
        self.spent |= {k: v for k, v in saved.items() if k in self.spent}
        if logged is not None:
            after = logged["goodput"]
            for name in self.spent.keys() - {*USEFUL}:
                self.spent[name] = max(self.spent[name], after.get(name, 0.0))
            lost = sum(after.get(name, 0.0) - self.spent[name] for name in USEFUL)
            self.spent["lost"] += max(lost, 0.0)
            self.spent[AWAY] += max(time.time() - since - logged["time"], 0.0)
        self.spent["starting"] += since
        self.spent[STARTS] += 1
        self._what, self._since = "starting", time.perf_counter()

    def begin(self, what: str) -> str:
        """From now on the clock counts for this; returns for what it did before."""
        now, before = time.perf_counter(), self._what
        self.spent[before] += now - self._since
        self._what, self._since = what, now
        return before

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Within this block the clock counts for this."""
        before = self.begin(what)
        try:
            yield
        finally:
            self.begin(before)

    def waited(self, seconds: float) -> None:
        """So much of the training was waiting for data."""
        self.spent["training"] -= seconds
        self.spent["waiting"] += seconds

    def now(self) -> Seconds:
        """Seconds up to now, to the millisecond."""
        self.begin(self._what)
        return {name: round(value, 3) for name, value in self.spent.items()}

    def __str__(self) -> str:
        spent = self.now()
        total = sum(spent[name] for name in WHAT)
        parts = [f"{spent[name] / total:.1%} {said}" for name, said in WHAT.items() if spent[name]]
        starts = round(spent[STARTS])
        breaks = f"; {starts} starts, {clock(spent[AWAY])} between them" if starts > 1 else ""
        return f"time: {clock(total)}, {', '.join(parts)}{breaks}"


def last_logged(model_dir: str) -> dict[str, Any] | None:
    """The last line of a run's `metrics.jsonl` that has `goodput`; None if there is none."""
    path = os.path.join(model_dir, METRICS_FILE)
    if not os.path.lexists(path):
        return None
    for _, line in reversed(read_json_lines(path)):
        spent = line.get("goodput")
        if isinstance(spent, dict) and _numbers([line.get("time"), *spent.values()]):
            return line
    return None


def _numbers(values: list[Any]) -> bool:
    return all(type(value) in (int, float) for value in values)
