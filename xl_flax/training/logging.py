"""What a run tells: `metrics.jsonl`, TensorBoard files and a console line with an ETA."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xl_flax.errors import UserError
from xl_flax.files.read import read_json_lines
from xl_flax.files.write import write_atomically
from xl_flax.objectives.base import Mean
from xl_flax.text_table import WIDTH
from xl_flax.training.feeds import Feed

METRICS_FILE = "metrics.jsonl"

Sums = dict[str, Any]


class Window:
    """Sums of the metrics since the last logged line; saved with checkpoints.

    Saving it makes a resumed run log the same numbers as one that was never stopped.
    """

    def __init__(self, sums: Mapping[str, Any] | None = None) -> None:
        self.sums: dict[str, Any] = {k: _to_array(v) for k, v in (sums or {}).items()}

    def add(self, metrics: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds one step's metrics; a skipped step counts only as skipped."""
        step = metrics["step"]
        self.sums["skipped"] = float(step["skipped"])
        if step["bad_streak"]:
            return
        self._add("steps", 1.0)
        self._add("loss", step["loss"])
        self._add("grad_norm", step["grad_norm"])
        self.sums["learning_rate"] = float(step["learning_rate"])
        for name, sums in metrics.items():
            if name != "step":
                for key, value in sums.items():
                    self._add(f"{name}/{key}", value)

    def _add(self, key: str, value: Any) -> None:
        value = np.asarray(value, np.float64)
        self.sums[key] = self.sums.get(key, 0.0) + (value if value.ndim else float(value))

    def to_json(self) -> dict[str, Any]:
        """Exact: float64 values survive JSON."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in self.sums.items()}

    def means(self, feeds: Mapping[str, Feed]) -> dict[str, float]:
        """What one line of `metrics.jsonl` says, but for the clock."""
        values = {"skipped": self.sums["skipped"]}
        steps = self.sums.get("steps", 0.0)  # without one, every step was skipped
        if steps:
            values |= {
                "loss": self.sums["loss"] / steps,
                "grad_norm": self.sums["grad_norm"] / steps,
                "learning_rate": self.sums["learning_rate"],
            }
        for name, feed in feeds.items():
            own = {k[len(name) + 1 :]: v for k, v in self.sums.items() if k.startswith(f"{name}/")}
            metrics = feed.objective.metrics
            if len(feeds) > 1:
                metrics = metrics | {"grad_norm": Mean("grad_norm", "steps")}
            means = metric_means(metrics, own | {"steps": steps}, feed.stream.languages)
            values |= {f"{name}/{key}": value for key, value in means.items()}
        return values


def metric_means(
    metrics: Mapping[str, Mean], sums: Sums, languages: Sequence[str]
) -> dict[str, float]:
    """An objective's metrics from its sums: over everything, and as NAME/LANGUAGE.

    A metric whose sums are all missing (no step was counted) is left out; so is a language without
    anything to divide by.
    """
    values = {}
    for name, mean in metrics.items():
        if mean.numerator not in sums:
            continue
        values[name] = float(sums[mean.numerator]) / (float(sums[mean.denominator]) or 1.0)
        if not mean.by_language:
            continue
        numerators, counts = (sums[f"language_{key}"] for key in (mean.numerator, mean.denominator))
        for language, numerator, count in zip(languages, numerators, counts, strict=True):
            if count:
                values[f"{name}/{language}"] = float(numerator) / float(count)
    return values


def earlier_lines(model_dir: str, step: int, evaluated: bool = True) -> list[str]:
    """The lines of a run's `metrics.jsonl` that stay; later ones are of a run that was cut off.

    Args:
      model_dir: the run's folder.
      step: from which it goes on, -1 for a new one.
      evaluated: whether the evaluations of this very step count; otherwise they are made again.

    Raises:
      UserError: a line holds no metrics, or the file cannot be read.
    """
    path = os.path.join(model_dir, METRICS_FILE)
    if not os.path.lexists(path):
        if step >= 0:
            print(f"WARNING: {path} is gone: its curves begin after step {step:,}", file=sys.stderr)
        return []
    lines = []
    for number, values in read_json_lines(path):
        if type(values.get("step")) is not int:
            raise UserError(f"{path}, line {number}: no metrics of a step; delete this line")
        again = not evaluated and any(key.startswith("eval/") for key in values)
        if values["step"] < step + (not again):
            lines.append(json.dumps(values, ensure_ascii=False) + "\n")
    return lines


class Logger:
    """Writes values by step to `metrics.jsonl` and TensorBoard; only the first process does."""

    def __init__(self, model_dir: str, step: int, earlier: Sequence[str], active: bool) -> None:
        """Opens the files.

        Args:
          model_dir: the run's folder.
          step: from which the run goes on, -1 for a new one.
          earlier: lines of `metrics.jsonl` that stay, from `earlier_lines`.
          active: whether this process writes.
        """
        self._file = self._board = None
        if not active:
            return
        from xl_flax.training.tensorboard import Board  # late: it takes a while

        path = os.path.join(model_dir, METRICS_FILE)
        write_atomically(path, "".join(earlier))
        self._file = open(path, "a", encoding="utf-8")
        self._board = Board(os.path.join(model_dir, "metrics"), step + 1)

    def write(
        self, step: int, values: Mapping[str, float], goodput: Mapping[str, float] | None = None
    ) -> None:
        """Adds one line; the time of day goes with it as `time`, in seconds.

        Args:
          step: of the values.
          values: by name.
          goodput: seconds by what they were spent on, for `metrics.jsonl` only.
        """
        if self._file is None:
            return
        self._add(step, values if goodput is None else {**values, "goodput": goodput})
        self._board.write(step, values)

    def write_phases(self, step: int, phases: Mapping[str, Any]) -> None:
        """Adds a line on what begins with this step, as {"phases": {"mlm/mixture": "small"}}."""
        if self._file is None:
            return
        phases = {key: v if isinstance(v, int | float) else str(v) for key, v in phases.items()}
        self._add(step, {"phases": phases})
        self._board.write(step, {key: str(value) for key, value in phases.items()})

    def _add(self, step: int, values: Mapping[str, Any]) -> None:
        line = {"step": step, "time": time.time(), **values}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Flushes and closes the files; on a full disk an error has said so before."""
        for file in filter(None, (self._file, self._board)):
            with contextlib.suppress(OSError):
                file.close()


def console_line(
    step: int, steps: int, values: Mapping[str, float], feeds: Mapping[str, Feed], eta: float
) -> str:
    """Where the run is, what it learns, how fast, how long still: a line, more if it is too long.

    What is seldom worth a look, as the norm of the gradient, is in `metrics.jsonl` only; waiting
    for data is shown from 5 % on.
    """
    parts = [f"step {step:>{len(f'{steps:,}')},}/{steps:,}"]
    if "loss" in values:
        parts.append(f"loss {values['loss']:.4f}")
        for name, feed in feeds.items():
            own = _own_metrics(name, feed, values)
            if len(feeds) > 1:  # with its own loss, beside the sum of all
                loss = f" {values[f'{name}/loss']:.4f}" if f"{name}/loss" in values else ""
                own = [" ".join([f"{name}{loss}", *own])]
            parts += own
        parts.append(f"lr {values['learning_rate']:.1e}")
    parts.append(f"{_si(values['tokens_per_second'])} tok/s")
    if "mfu" in values:
        parts.append(f"MFU {values['mfu']:.1%}")
    if values["input_wait"] >= 0.05:
        parts.append(f"wait {values['input_wait']:.1%}")
    if values["skipped"]:
        parts.append(f"skipped {values['skipped']:.0f}")
    lines = [""]
    for part in [*parts, f"ETA {clock(eta)}"]:
        if lines[-1] and len(lines[-1]) + 2 + len(part) > WIDTH:
            lines.append("")
        lines[-1] += f"  {part}" if lines[-1] or len(lines) > 1 else part
    return "\n".join(lines)


def _own_metrics(name: str, feed: Feed, values: Mapping[str, float]) -> list[str]:
    """What an objective shows beside its loss, as "acc 0.314"."""
    shown = []
    for metric, mean in feed.objective.metrics.items():
        value = values.get(f"{name}/{metric}")
        if metric == "loss" or not mean.on_console or value is None:
            continue
        shown.append(f"acc {value:.3f}" if metric == "accuracy" else f"{metric} {value:.4g}")
    return shown


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _si(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}"


def _to_array(value: Any) -> Any:
    return np.asarray(value, np.float64) if isinstance(value, list) else value
