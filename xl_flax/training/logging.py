"""What a run tells: `metrics.jsonl`, TensorBoard files and a console line with an ETA."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xl_flax.errors import UserError
from xl_flax.files import write_atomically

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

    def means(self, languages: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """What one line of `metrics.jsonl` says, but for the clock."""
        values = {"skipped": self.sums["skipped"]}
        if steps := self.sums.get("steps"):  # without one, every step was skipped
            values |= {
                "loss": self.sums["loss"] / steps,
                "grad_norm": self.sums["grad_norm"] / steps,
                "learning_rate": self.sums["learning_rate"],
            }
        for name, names in languages.items():
            own = {k[len(name) + 1 :]: v for k, v in self.sums.items() if k.startswith(f"{name}/")}
            values |= {f"{name}/{k}": v for k, v in objective_means(own, names).items()}
            if steps and "pairs" in own:  # how many translations a step compared
                values[f"{name}/pairs"] = own["pairs"] / steps
        return values


def objective_means(sums: Sums, languages: Sequence[str]) -> dict[str, float]:
    """Turns an objective's sums into means: overall, per language, fill and overflow."""
    if not sums:
        return {}
    count = max(float(sums["count"]), 1.0)
    values = {"loss": float(sums["loss"]) / count, "accuracy": float(sums["correct"]) / count}
    if "positions" in sums:
        values["fill"] = float(sums["tokens"]) / float(sums["positions"])
    if "overflow" in sums:
        values["overflow"] = float(sums["overflow"]) / max(float(sums["masked"]), 1.0)
    for i, language in enumerate(languages):
        n = float(sums["language_count"][i])
        if n:
            values[f"loss/{language}"] = float(sums["language_loss"][i]) / n
            values[f"accuracy/{language}"] = float(sums["language_correct"][i]) / n
    return values


class Logger:
    """Writes values by step to `metrics.jsonl` and TensorBoard; only the first process does."""

    def __init__(self, model_dir: str, step: int, active: bool) -> None:
        """Opens the files; lines beyond `step`, left by a run that was cut off, are dropped."""
        self._file = self._board = None
        if not active:
            return
        from tensorboardX import SummaryWriter  # not clu: its writers import TensorFlow

        path = os.path.join(model_dir, "metrics.jsonl")
        _drop_after(path, step)
        self._file = open(path, "a", encoding="utf-8")
        self._board = SummaryWriter(
            os.path.join(model_dir, "metrics"), purge_step=step + 1, flush_secs=30
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one line; the time of day goes with it as `time`, in seconds."""
        if self._file is None:
            return
        line = {"step": step, "time": time.time(), **values}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        for key, value in values.items():
            self._board.add_scalar(key, value, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._file is not None:
            self._file.close()
            self._board.close()


def console_line(step: int, steps: int, values: Mapping[str, float], eta: float) -> str:
    """One readable line: where the run is, what it learns, how fast, how long still."""
    parts = [f"step {step:>{len(f'{steps:,}')},}/{steps:,}"]
    if "loss" in values:
        parts.append(f"loss {values['loss']:.4f}")
        names = [k.removesuffix("/accuracy") for k in values if k.endswith("/accuracy")]
        for name in names:  # with several objectives, the losses of each beside their sum
            own = f"{name} {values[f'{name}/loss']:.4f} " if len(names) > 1 else ""
            parts.append(f"{own}acc {values[f'{name}/accuracy']:.3f}")
        parts += [f"lr {values['learning_rate']:.2e}", f"|g| {values['grad_norm']:.2f}"]
    parts.append(f"{_si(values['tokens_per_second'])} tok/s")
    if "mfu" in values:
        parts.append(f"MFU {values['mfu']:.1%}")
    parts.append(f"wait {values['input_wait']:.1%}")
    if values["skipped"]:
        parts.append(f"skipped {values['skipped']:.0f}")
    return "  ".join(parts) + f"  ETA {clock(eta)}"


def held_out_line(step: int, values: Mapping[str, float]) -> str:
    """Loss and accuracy of each held-out mixture in one line."""
    parts = [f"step {step:,}  held out"]
    for key, loss in values.items():
        if key.endswith("/loss"):
            mixture = key.removeprefix("eval/").removesuffix("/loss")
            accuracy = values[f"eval/{mixture}/accuracy"]
            parts.append(f"{mixture}: loss {loss:.4f} acc {accuracy:.3f}")
    return "  ".join(parts)


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


def _drop_after(path: str, step: int) -> None:
    """Keeps the lines up to `step`; a last line that was cut off in writing goes too."""
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as file:
        lines = file.readlines()
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise UserError(
                    f"{path}, line {number}: no line of metrics ({error}); delete this line"
                ) from error
    write_atomically(path, "".join(kept))
