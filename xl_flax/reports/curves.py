"""Values by language over the steps of a run, from its `metrics.jsonl`.

Every group of values that ends in a language, such as `mlm/loss/deu` and `mlm/accuracy/deu`, is a
panel: training and held-out ones apart.
"""

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xl_flax.errors import UserError
from xl_flax.files.folders import entries
from xl_flax.files.read import read_json_lines

FILE = "metrics.jsonl"

Curves = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]  # panel -> language -> steps, values

Phases = dict[int, dict[str, Any]]  # step -> what begins with it, as {"mlm/mixture": "bible"}


class Run(NamedTuple):
    """What a run logged."""

    folder: str
    curves: Curves
    phases: Phases


def read(folders: Sequence[str]) -> list[Run]:
    """Of all runs in some folders; those that have logged nothing by language are left out."""
    runs = []
    for folder in folders:
        path = os.path.join(folder, FILE)
        if os.path.exists(path):
            runs.append(Run(os.path.abspath(folder), of_file(path), phases_of_file(path)))
            continue
        below = [os.path.join(folder, name) for name in entries(folder) if name != "checkpoints"]
        runs += read([path for path in below if os.path.isdir(path)])
    return [run for run in runs if run.curves]


def of_file(path: str) -> Curves:
    """The values per language in a `metrics.jsonl`.

    Args:
      path: the file.

    Returns:
      Panel, as "mlm/loss", to language to (steps int[n], values float[n]).

    Raises:
      UserError: the file is missing or damaged.
    """
    points: dict[str, dict[str, dict[int, float]]] = {}
    for number, values in _read(path):
        for key, value in values.items():
            if not (match := re.fullmatch(r"(.*\b(?:loss|accuracy))/([^/]+)", key)):
                continue
            if type(value) not in (int, float):
                raise UserError(f"{path}, line {number}: {key!r} is no number; delete this line")
            # A resumed run may have written a step twice: the later line counts.
            points.setdefault(match[1], {}).setdefault(match[2], {})[values["step"]] = value
    return {
        panel: {
            language: (np.array(sorted(steps)), np.array([steps[step] for step in sorted(steps)]))
            for language, steps in sorted(languages.items())
        }
        for panel, languages in sorted(points.items(), key=_panel_order)
    }


def phases_of_file(path: str) -> Phases:
    """What began at which step of a run, as mixtures and masking rates do, from `metrics.jsonl`.

    Raises:
      UserError: the file is missing or damaged.
    """
    phases: Phases = {}
    for number, values in _read(path):
        begun = values.get("phases", {})
        if not isinstance(begun, dict):
            raise UserError(f"{path}, line {number}: 'phases' is no object; delete this line")
        for name, value in begun.items():
            phases.setdefault(values["step"], {})[name] = value
    return phases


def _read(path: str) -> list[tuple[int, dict[str, Any]]]:
    """The lines of a `metrics.jsonl` with their numbers; each has a step."""
    if not os.path.lexists(path):
        raise UserError(f"{path} is missing: give the folder of a run that has logged something")
    lines = read_json_lines(path)
    for number, values in lines:
        if type(values.get("step")) is not int:
            raise UserError(f"{path}, line {number}: no metrics of a step; delete this line")
    return lines


def of_panel(phases: Phases, panel: str) -> Phases:
    """The phases that a panel shows: its objective's; of evaluations all."""
    objective = panel.split("/")[0]
    shown = {}
    for step, begun in phases.items():
        own = {k: v for k, v in begun.items() if objective in ("eval", k.split("/")[0])}
        if own:
            names = own if objective == "eval" else {k.split("/")[-1]: v for k, v in own.items()}
            shown[step] = names
    return shown


def _panel_order(item: tuple[str, Any]) -> tuple[str, bool]:
    """An objective's loss before its accuracy."""
    prefix, _, kind = item[0].rpartition("/")
    return prefix, kind != "loss"
