"""What reports are made of: the results of runs, each number with all that it can be named by."""

import dataclasses
import fnmatch
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from xl_flax.errors import UserError
from xl_flax.evaluation import results as results_lib
from xl_flax.evaluation import selection
from xl_flax.evaluation.results import MACRO, OTHERS, Row
from xl_flax.files.folders import entries

SETTING = r"(.+)/\d+"  # a run's path, of which the group is the setting: SETTING/SEED
MEANS = (MACRO, OTHERS)
FREQUENCIES = "unigram_"  # begins metrics of masked tokens that are guessed by frequency
# Of a record, beside the parts of its signature; what a table's rows and columns may be.
FIELDS = (
    *("setting", "run", "step", "task", "data", "metric", "layer", "language", "target", "group"),
    *("similarity", "pooling", "head", "model"),
)


@dataclasses.dataclass(frozen=True)
class Record:
    """A number with what it is of."""

    row: Row
    folder: str  # of its results
    run: str  # the folder without what all of them begin with
    setting: str  # runs that differ in their seed only share it; of a control its name
    data: str
    language: str  # of a pair with the pivot the other one
    target: str  # of a pair what is searched; "" of one language
    group: str
    parts: Mapping[str, str]  # of the signature
    layer: int | None

    @property
    def is_control(self) -> bool:
        """Whether it is of no model that was trained."""
        return self.row.model is not None

    @property
    def values(self) -> tuple[float, ...]:
        """One, or of a control with random starts that of each."""
        return self.row.seeds or (self.row.value,)

    def get(self, field: str) -> str | int | None:
        """A field by its name, None if this record has none of it."""
        if field in ("setting", "run", "data", "layer", "language", "target", "group"):
            return getattr(self, field)
        if field in FIELDS:
            of_steps = field == "step" and self.is_control
            return None if of_steps else getattr(self.row, field)
        value = self.parts.get(field)
        return int(value) if value is not None and value.isdecimal() else value


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which results are read, and what they are called."""

    steps: str = "last"  # of each run and data; "all", "best:METRIC:DATA", or as in "500,1000"
    setting: str = SETTING
    pivot: str | None = None  # only pairs with this language
    groups: Mapping[str, Collection[str]] = dataclasses.field(default_factory=dict)
    data: Sequence[tuple[str, str]] = ()  # (pattern, name): data that are called the same


def read(folders: Sequence[str], wanted: Wanted, say: Callable[[str], None]) -> list[Record]:
    """The results of all runs in some folders.

    Args:
      folders: each is a run's, or has runs' folders in it.
      wanted: which of the results.
      say: is told what is left out, and what does not agree.

    Raises:
      UserError: there are none, or a field does not exist.
    """
    homes = list(dict.fromkeys(home for folder in folders for home in _homes(folder)))
    if not homes:
        raise UserError(f"{', '.join(folders)}: no {results_lib.FILE} is there; evaluate first")
    names = names_of(homes)
    records = []
    for home in homes:
        rows = _of_one_version(home, results_lib.read(os.path.join(home, results_lib.FILE)), say)
        rows = _of_steps(rows, wanted.steps, home)
        found = [_record(row, home, names[home], wanted) for row in rows]
        records += [record for record in found if record is not None]
    if not records:
        raise UserError(_nothing(folders, wanted))
    return name_controls(records, say)


def select(records: Sequence[Record], where: Sequence[tuple[str, str]]) -> list[Record]:
    """The results whose fields fit patterns; those of one field are alternatives.

    Raises:
      UserError: there are none, or a field or value does not exist.
    """
    _check_where(where, records)
    kept = [record for record in records if _wanted(record, where)]
    if records and not kept:
        raise UserError("no result is left of all that --where names together")
    return kept


def _homes(folder: str) -> list[str]:
    """The folders with results in a folder, without what caches keep of controls."""
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is no folder")
    if os.path.basename(os.path.abspath(folder)) in ("checkpoints", "controls", "predictions"):
        return []
    if os.path.exists(os.path.join(folder, results_lib.FILE)):
        return [os.path.abspath(folder)]
    found = []
    for name in entries(folder):
        path = os.path.join(folder, name)
        found += _homes(path) if os.path.isdir(path) else []
    return found


def names_of(homes: Sequence[str]) -> dict[str, str]:
    """Each by the end of its path, without what all have in common."""
    above = os.path.commonpath([os.path.dirname(home) for home in homes])
    names = {home: os.path.relpath(home, above) for home in homes}
    if all(re.fullmatch(r"\d+", name) for name in names.values()):  # the seeds of one setting
        names = {home: f"{os.path.basename(above)}/{name}" for home, name in names.items()}
    return names


def setting_of(run: str, rule: str) -> str:
    """The setting of a run, by what the first group of a regular expression matches."""
    match = re.fullmatch(rule, run)
    return match[1] if match and match.groups() else run


def _record(row: Row, home: str, run: str, wanted: Wanted) -> Record | None:
    """None of a pair without the pivot."""
    if row.metric.startswith(FREQUENCIES):  # a control that is measured with the model
        row = dataclasses.replace(
            row, metric=row.metric.removeprefix(FREQUENCIES), model="frequency"
        )
    language, target = row.languages[0], row.languages[1] if len(row.languages) > 1 else ""
    if wanted.pivot is not None:
        others = [name for name in row.languages if name != wanted.pivot]
        if len(row.languages) != 2 or len(others) != 1 or others[0] in MEANS:
            return None
        language, target = others[0], wanted.pivot
    data = next((name for glob, name in wanted.data if fnmatch.fnmatch(row.data, glob)), row.data)
    setting = setting_of(run, wanted.setting)
    parts = dict(part.partition(":")[::2] for part in row.signature.split("|")[1:])
    group = _group(language, wanted.groups)
    return Record(row, home, run, setting, data, language, target, group, parts, row.layer)


def _group(language: str, groups: Mapping[str, Collection[str]]) -> str:
    if language in MEANS:
        return language
    rest = next((name for name, own in groups.items() if not own), "")
    return next((name for name, own in groups.items() if language in own), rest)


def _of_one_version(home: str, rows: Iterable[Row], say: Callable[[str], None]) -> list[Row]:
    """What the newest version has found, and what was written last, where there is more."""
    newest: dict[tuple, tuple[tuple[int, ...], Row]] = {}
    older: dict[str, int] = {}
    unlike = 0
    for row in rows:
        sign, _, version = row.signature.rpartition("|version:")
        key = row.id, row.step, re.sub(r"#\w+$", "", sign), row.languages, row.metric, row.model
        rank = tuple(int(part) for part in re.findall(r"\d+", version))
        before, other = newest.get(key, (rank, row))
        unlike += rank == before and row.value != other.value
        if rank != before:
            name = (row if rank < before else other).version or "unknown"
            older[name] = older.get(name, 0) + 1
        if rank >= before:
            newest[key] = rank, row
    for version, count in older.items():
        say(
            f"{home}: left out are {count:,} results of version {version}, which a newer one has "
            "measured, too"
        )
    if unlike:
        say(
            f"{home}: {unlike:,} results have the same signature as another one and a different "
            "value; the one that was written last counts (--overwrite of xl_flax.evaluate measures "
            "them again)"
        )
    return [row for _, row in newest.values()]


def _of_steps(rows: Sequence[Row], steps: str, home: str) -> list[Row]:
    """Those of the chosen steps, and all of controls."""
    if steps.startswith(selection.BEST):
        best, _ = selection.best_step(rows, *selection.parse(steps), home)
        return [row for row in rows if row.model is not None or row.step == best]
    if steps == "all":
        return list(rows)
    if steps != "last":
        chosen = {step.strip() for step in steps.split(",")}
        if not all(step.isdecimal() for step in chosen):
            raise UserError(f'--steps={steps}: say "last", "all", best:METRIC:DATA, or 500,1000')
        return [row for row in rows if row.model is not None or str(row.step) in chosen]
    last: dict[str, int] = {}
    for row in rows:
        if row.model is None:
            last[row.data] = max(last.get(row.data, 0), row.step)
    return [row for row in rows if row.model is not None or row.step == last[row.data]]


def _wanted(record: Record, where: Sequence[tuple[str, str]]) -> bool:
    fields: dict[str, bool] = {}
    for field, pattern in where:
        if field == "layer" and record.is_control and record.layer is None:
            continue  # what has no layers stands beside each
        if field in ("setting", "run") and record.is_control:
            continue
        value = record.get(field)
        fits = fnmatch.fnmatchcase("" if value is None else str(value), pattern)
        fields[field] = fields.get(field, False) or fits
    return all(fields.values())


def known_fields(records: Iterable[Record]) -> list[str]:
    """Names that rows and columns may have."""
    parts = dict.fromkeys(part for record in records for part in record.parts)
    return [*FIELDS, *(part for part in parts if part not in FIELDS)]


def check_fields(names: Iterable[str], records: Sequence[Record], flag: str) -> None:
    """Raises UserError if no record has a field of a name."""
    known = known_fields(records)
    for name in names:
        if name not in known:
            raise UserError(f"{flag}: there is no field {name!r}; there are {', '.join(known)}")


def _check_where(where: Sequence[tuple[str, str]], records: Sequence[Record]) -> None:
    check_fields((field for field, _ in where), records, "--where")
    for field in dict(where):
        patterns = [pattern for name, pattern in where if name == field]
        values = {str(record.get(field)) for record in records if record.get(field) is not None}
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(value, pattern) for value in values):
                known = ", ".join(sorted(values)[:20]) or "none"
                raise UserError(
                    f"--where={field}={pattern}: no result has this {field}; there are {known}"
                )


def _nothing(folders: Sequence[str], wanted: Wanted) -> str:
    if wanted.pivot is not None:
        return f"--pivot={wanted.pivot}: no result is of a pair with this language"
    if wanted.steps not in ("last", "all"):
        return f"--steps={wanted.steps}: there are no results of these steps"
    return f"{', '.join(folders)}: there are no results; evaluate first"


def name_controls(records: Sequence[Record], say: Callable[[str], None]) -> list[Record]:
    """Gives controls their names, and leaves out copies: each run has those that it stands beside.

    One is called "untrained", say, where all settings have the same; where shapes or text differ,
    "untrained of" a setting.
    """
    by_name: dict[str, dict[str, dict[tuple, Record]]] = {}
    for record in records:
        if record.row.model is not None:
            name = record.row.model
            if (learnt := record.parts.get("trained")) and _learnt(records, record) > 1:
                name += f" of {learnt}"
            key = (record.row.data, record.row.languages, record.row.metric, record.row.similarity)
            key += (record.layer, record.parts.get("center"), record.parts.get("recipe"))
            by_name.setdefault(name, {}).setdefault(record.setting, {}).setdefault(key, record)
    named = [record for record in records if record.row.model is None]
    for name, of_settings in by_name.items():
        whole: dict[tuple, Record] = {}
        differ = False
        for own in of_settings.values():
            differ |= any(k in whole and whole[k].values != r.values for k, r in own.items())
            whole |= own
        if not differ:
            named += [dataclasses.replace(r, setting=name) for r in whole.values()]
            continue
        if name != results_lib.UNTRAINED:  # which follows from the shape, too
            say(
                f"{name} differs between {', '.join(of_settings)}: their text or their vocabulary "
                "is not the same, so their numbers do not compare"
            )
        for setting, own in of_settings.items():
            named += [dataclasses.replace(r, setting=f"{name} of {setting}") for r in own.values()]
    return named


def _learnt(records: Sequence[Record], control: Record) -> int:
    """Of how many texts a control of one name has learnt, for one test."""
    same = [r for r in records if (r.row.model, r.data) == (control.row.model, control.data)]
    return len({r.parts.get("trained") for r in same})


def described(records: Sequence[Record]) -> dict[str, Any]:
    """What a report says of itself: which steps of which runs it shows."""
    steps: dict[str, set[int]] = {}
    for record in records:
        if not record.is_control:
            steps.setdefault(record.run, set()).add(record.row.step)
    return {run: sorted(own) for run, own in steps.items()}
