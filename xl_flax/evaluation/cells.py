"""What the table of `xl_flax.evaluation.compare` is made of: results of runs, averaged by cell."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from xl_flax.errors import UserError
from xl_flax.evaluation import results as results_lib
from xl_flax.evaluation.lexical import LEXICAL
from xl_flax.evaluation.results import UNTRAINED

METRICS = {
    "p@1": "P@1 by cosine between a language and {}, mean of both directions, in %",
    "p@1_unshared": "The same without queries whose translation shares a digit or a string",
}
CENTRED = ", centred"
CONTROLS = (UNTRAINED, *LEXICAL)


class Cell(NamedTuple):
    """What one number of the table is about."""

    # Or a control; with ", centred" where languages' means were taken out, of training text "by …".
    setting: str
    data: str  # as in "ntrex, seen": data and a group of languages
    layer: int | None  # None: of what has no layers
    metric: str = "p@1"


Cells = Mapping[Cell, Sequence[float]]  # of each seed


def collect(
    runs: Sequence[str], groups: Mapping[str, Collection[str]], pivot: str = "eng"
) -> dict[Cell, list[float]]:
    """The mean accuracy of each run, by cell; one value per seed. Behind them their controls.

    Args:
      runs: folders SETTING/SEED with a `results.jsonl`.
      groups: languages by the group's name; an empty group has all that no other one names.
      pivot: the language that all are compared with.

    Raises:
      UserError: a folder has no results of retrieval with the pivot, or such of one text that were
        measured in two ways, or of text that was another one for another folder.
    """
    cells: dict[Cell, list[float]] = {}
    lexical: dict[tuple, tuple[str, results_lib.Row]] = {}
    controls: dict[Cell, dict[str, list[float]]] = {}
    for run in runs:
        path = os.path.join(run, results_lib.FILE)
        rows = results_lib.read(path)
        setting = os.path.basename(os.path.dirname(os.path.abspath(run)))
        last = last_step(rows)
        own = [row for row in rows if row.model is None and row.step == last]
        found = _values(path, own, groups, pivot)
        if not found:
            raise UserError(
                f"{run} has no results of sentence retrieval with {pivot!r}, which is all that "
                "is compared here: evaluate it on text that has this language, too"
            )
        for cell, (value,) in found.items():
            named = cell._replace(setting=setting + cell.setting)
            cells.setdefault(named, []).append(value)
        beside = [row for row in rows if row.model is not None]
        _check_text(path, beside, lexical)
        for cell, values in _values(path, beside, groups, pivot).items():
            controls.setdefault(cell, {})[setting] = values
    return cells | _controls(controls)


def last_step(rows: Sequence[results_lib.Row]) -> int:
    """Of a run's results, 0 if there are none."""
    return max((row.step for row in rows), default=0)


def _check_text(
    path: str, rows: Sequence[results_lib.Row], found: dict[tuple, tuple[str, results_lib.Row]]
) -> None:
    """Raises UserError if a lexical baseline, which follows from the text alone, has changed."""
    for row in rows:
        if row.model in LEXICAL:
            key = row.signature, row.metric, row.languages
            first, other = found.setdefault(key, (path, row))
            if row.id != other.id and row.value != other.value:
                raise UserError(
                    f"{path}: {row.model} of {row.data} differs from that in {first}: the text "
                    "has changed in between; evaluate both runs on the same"
                )


def _controls(found: Mapping[Cell, Mapping[str, list[float]]]) -> dict[Cell, list[float]]:
    """Each once if it is the same for all settings, else by setting: shapes differ."""
    differ = {
        cell.setting
        for cell, own in found.items()
        if any(values != next(iter(own.values())) for values in own.values())
    }
    controls: dict[Cell, list[float]] = {}
    for cell, own in found.items():
        for setting, values in own.items():
            name = of_setting(cell.setting, setting) if cell.setting in differ else cell.setting
            controls[cell._replace(setting=name)] = values
    return controls


def of_setting(control: str, setting: str) -> str:
    """ "untrained, centred" and "mlm" → "untrained of mlm, centred"."""
    base, centred = parts(control)
    return f"{base} of {setting}{centred}"


def parts(setting: str) -> tuple[str, str]:
    """ "mlm, centred by bible" → "mlm" and ", centred by bible"."""
    base, centred, by = setting.partition(CENTRED)
    return base, centred + by


def _values(
    path: str, rows: Sequence[results_lib.Row], groups: Mapping[str, Collection[str]], pivot: str
) -> dict[Cell, list[float]]:
    """P@1 by cosine, the mean over a group's languages and both directions; one value per seed."""
    values: dict[Cell, dict[tuple, results_lib.Row]] = {}
    for row in rows:
        counts = row.metric in METRICS and row.similarity == "cosine" and len(row.languages) == 2
        if not counts or pivot not in row.languages or results_lib.MACRO in row.languages:
            continue
        group = _group(*(x for x in row.languages if x != pivot), groups)
        if group is None:
            continue
        center = re.search(r"\|center:([^|]*)|$", row.signature)[1] or "none"  # of lexical ones
        centred = {"none": "", "test_mean": CENTRED}.get(center, f"{CENTRED} by {center}")
        data = f"{_data(row.data)}, {group}"
        cell = Cell((row.model or "") + centred, data, row.layer, row.metric)
        there = values.setdefault(cell, {})
        other = there.setdefault((row.data, row.languages), row)
        if row.model is None and other.signature != row.signature:
            raise UserError(
                f"{path}: {row.data} was measured in two ways, which are not to be mixed: "
                f"{other.signature} and {row.signature}; delete the lines of one of them"
            )
    return {
        cell: np.mean([row.seeds or (row.value,) for row in own.values()], axis=0).tolist()
        for cell, own in values.items()
    }


def _group(language: str, groups: Mapping[str, Collection[str]]) -> str | None:
    rest = next((name for name, languages in groups.items() if not languages), None)
    return next((name for name, languages in groups.items() if language in languages), rest)


def _data(data: str) -> str:
    """ "ntrex/test" → "ntrex", "bible_deu_eng/validation" → "bible/validation"."""
    mixture, _, split = data.rpartition("/")
    return mixture.split("_")[0] + ("" if split == "test" else f"/{split}")


def is_control(setting: str) -> bool:
    """Whether it is no model that was trained."""
    return kind(setting) in CONTROLS


def kind(setting: str) -> str:
    """ "untrained of mlm, centred" → "untrained"."""
    return parts(setting)[0].split(" of ")[0]
