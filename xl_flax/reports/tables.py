"""Tables of results: any fields down and across, mean and spread over seeds, controls below."""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple, NoReturn

from xl_flax.data.unknown import MANY_UNKNOWN
from xl_flax.errors import UserError
from xl_flax.evaluation.results import MACRO, OTHERS
from xl_flax.evaluation.selection import LOWER
from xl_flax.reports.records import MEANS, Record, check_fields

# They are no shares, so not shown in %.
RAW = {"loss", "unigram_loss", "xsim", "threshold", "cka", "cka_shuffled"}
# Parts of a signature that may differ between results that are averaged: what languages of how
# many examples, by which version, and what belongs to a seed.
FREE = {"version", "chosen", "languages", "n", "data", "rows", "masks", "baseline", "model"}
GAPS = ("mean", "mean of others", "gap")


def scale(metric: str) -> tuple[float, int]:
    """What a value is multiplied with, and how many digits it is shown with."""
    name = metric.removesuffix("_gap")
    if name == "xsim":  # in % as it is
        return 1.0, 1
    return (1.0, 3) if name in RAW else (100.0, 1)


class Number(NamedTuple):
    """What a cell of a table holds."""

    values: tuple[float, ...]  # of each seed, or random start
    metric: str
    is_control: bool
    unknown: float  # the largest share of unknown pieces
    trained: bool | None
    p: float | None = None  # of a paired test

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Their standard deviation; None of one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


Key = tuple[str | int | None, ...]


@dataclasses.dataclass
class Table:
    """Numbers by row and column, in the order in which they are shown."""

    title: str
    row_fields: tuple[str, ...]
    column_fields: tuple[str, ...]
    cells: dict[tuple[Key, Key], Number]
    rows: list[Key]
    columns: list[Key]
    notes: list[str] = dataclasses.field(default_factory=list)
    marks: dict[Key, str] = dataclasses.field(default_factory=dict)  # behind a row's name

    def is_best(self, row: Key, column: Key) -> bool:
        """Whether no other setting is better where settings are compared: down, or across."""
        none = (row, column) not in self.cells or row == ("gap",)
        if none or self.cells[row, column].is_control:
            return False
        mine = self.cells[row, column]
        if "setting" in self.column_fields and "setting" not in self.row_fields:
            others = [self.cells.get((row, other)) for other in self.columns]
        else:
            others = [self.cells.get((other, column)) for other in self.rows]
        there = [n for n in others if n and not n.is_control and n.metric == mine.metric]
        factor, digits = scale(mine.metric)
        sign = -1 if mine.metric in LOWER else 1
        shown = [sign * round(factor * n.mean, digits) for n in there]  # what is shown alike ties
        return len(there) > 1 and sign * round(factor * mine.mean, digits) == max(shown)


def make(
    records: Sequence[Record], rows: Sequence[str], columns: Sequence[str], title: str = ""
) -> Table:
    """Averages results by row and column: of each run over languages, then over the seeds.

    Args:
      records: results; where neither rows nor columns are languages, means over languages.
      rows: fields that are shown down the table.
      columns: fields across it.
      title: of the table.

    Raises:
      UserError: a field does not exist, or one number would be a mean of what was measured in
        several ways.
    """
    check_fields(rows, records, "--rows")
    check_fields(columns, records, "--columns")
    fields = {*rows, *columns}
    found: dict[tuple[Key, Key], dict[str, list[Record]]] = {}
    for record in of_languages(records, fields):
        key = tuple(map(record.get, rows)), tuple(map(record.get, columns))
        found.setdefault(key, {}).setdefault(record.run, []).append(record)
    cells = {key: _number(key, own, fields) for key, own in found.items()}
    table = Table(
        title,
        tuple(rows),
        tuple(columns),
        cells,
        _sorted(rows, (key[0] for key in cells), records),
        _sorted(columns, (key[1] for key in cells), records),
    )
    if "language" in rows and len(rows) == 1:
        _mark_languages(table)
    return table


def of_languages(records: Sequence[Record], fields: Iterable[str]) -> list[Record]:
    """The results whose languages a table of these fields is about.

    With pairs, "language" is each one's mean over all pairs that it is part of, in both roles; or,
    where all pairs have one language in common, as English, the other one.
    """
    fields = {*fields}
    by_test: dict[tuple, list[Record]] = {}
    for record in records:
        by_test.setdefault((record.data, record.row.metric), []).append(record)
    chosen = []
    for own in by_test.values():
        paired = [r for r in own if r.target]
        if any(r.row.languages[0] not in MEANS and r.language != r.row.languages[0] for r in own):
            chosen += own  # pairs with a pivot
        elif "target" in fields:
            chosen += [r for r in own if not {*r.row.languages} & {*MEANS}]
        elif "language" in fields and (common := _pivot(paired)):
            pairs = [r for r in paired if not {*r.row.languages} & {*MEANS}]
            chosen += [
                dataclasses.replace(r, language=r.target) if r.language == common else r
                for r in pairs
            ]
        elif "language" in fields and paired:
            sides = [r for r in paired if (r.language in MEANS) != (r.target in MEANS)]
            chosen += [
                dataclasses.replace(r, language=r.target) if r.language in MEANS else r
                for r in sides
            ]
        elif "language" in fields or fields & {"group"}:
            chosen += [r for r in own if r.language not in MEANS]
        else:
            means = [r for r in own if r.row.languages == (MACRO,)]
            others = [r for r in own if r.row.languages == (OTHERS,)]
            chosen += means or others or own
    return chosen


def _pivot(paired: Sequence[Record]) -> str | None:
    """The language that all of several pairs have in common."""
    pairs = {frozenset(r.row.languages) for r in paired if not {*r.row.languages} & {*MEANS}}
    common = frozenset.intersection(*pairs) if len(pairs) > 1 else ()
    return next(iter(common)) if len(common) == 1 else None


def _number(key: tuple[Key, Key], by_run: dict[str, list[Record]], fields: set[str]) -> Number:
    every = [record for own in by_run.values() for record in own]
    for own in by_run.values():
        steps = sorted({r.get("step") for r in own} - {None})
        if len(steps) > 1:
            _refuse(key, "step", *steps[:2])
    _check_one_way(key, every, fields)
    first = every[0]
    shares = [share for r in every if r.row.unknown for share in r.row.unknown]
    values: list[float] = []
    for own in by_run.values() if not first.is_control else [every]:
        starts = {len(r.values) for r in own}
        if len(starts) == 1:
            values += map(statistics.fmean, zip(*(r.values for r in own), strict=True))
        else:
            values.append(statistics.fmean(r.row.value for r in own))
    trained = {r.row.trained for r in every}
    return Number(
        tuple(values),
        first.row.metric,
        first.is_control,
        max(shares, default=0.0),
        trained.pop() if len(trained) == 1 else None,
    )


def _check_one_way(key: tuple[Key, Key], records: Sequence[Record], fields: set[str]) -> None:
    """Raises UserError if results of a cell differ in how they were measured."""
    first = records[0]
    for record in records[1:]:
        if record.parts == first.parts and record.row.metric == first.row.metric:
            continue
        names = ["metric"] if record.row.metric != first.row.metric else []
        names += [
            name
            for name in {**first.parts, **record.parts}
            if name not in FREE and first.parts.get(name) != record.parts.get(name)
        ]
        if first.data != record.data and not fields & {"data"}:
            names.append("data")
        names = [name for name in names if name not in fields]
        if first.layer != record.layer and "layer" in names and record.is_control:
            names.remove("layer")
        if names:
            _refuse(key, names[0], *(record.get(names[0]) for record in (first, record)))


def _refuse(
    key: tuple[Key, Key], name: str, one: str | int | None, other: str | int | None
) -> NoReturn:
    where = ", ".join(str(part) for own in key for part in own if part is not None)
    raise UserError(
        f"{where}: results that were measured in two ways would be one number, with {name} {one} "
        f"and {other}: put {name} into --rows or --columns, or choose one with --where={name}=…"
    )


def _sorted(fields: Sequence[str], keys: Iterable[Key], records: Sequence[Record]) -> list[Key]:
    """Settings as they come, controls behind them; numbers by size, languages by name."""
    ranks: dict[str, dict] = {}
    for field in fields:
        values = list(dict.fromkeys(record.get(field) for record in records))
        if field == "setting":
            controls = {r.setting for r in records if r.is_control}
            values.sort(key=lambda value: value in controls)
        elif field not in ("run", "data", "metric", "model", "group"):
            values.sort(key=_natural)
        ranks[field] = {value: rank for rank, value in enumerate(values)}

    def rank(key: Key) -> list[int]:
        return [ranks[f].get(value, len(ranks[f])) for f, value in zip(fields, key, strict=True)]

    return sorted(dict.fromkeys(keys), key=rank)


def _natural(value: str | int | None) -> tuple:
    if isinstance(value, int):
        return 1, value, ""
    return (0, 0, "") if value is None else (2, 0, str(value))


def _mark_languages(table: Table) -> None:
    """Marks languages whose labels were trained, sets apart those that a vocabulary lacks.

    Adds the means of all that it reads, of those of them that were not trained, and the gap.
    """
    unread, of_training = set(), {}
    for (row, column), number in table.cells.items():
        if number.is_control or row[0] in MEANS:
            continue
        if number.unknown > MANY_UNKNOWN and number.trained is not None:
            unread.add(row)
        if number.trained:
            of_training.setdefault(row, set()).add(column)
    columns = {c for (_, c), number in table.cells.items() if not number.is_control}
    for row in table.rows:
        star = "" if row not in of_training else "*" if of_training[row] == columns else "(*)"
        if mark := f"{star} {'!' if row in unread else ''}".strip():
            table.marks[row] = mark
    table.rows.sort(key=lambda row: (row in unread, row not in of_training))
    if not of_training:
        return
    at = len(table.rows) - len([row for row in table.rows if row in unread])
    table.rows[at:at] = [(name,) for name in GAPS]
    for column in table.columns:
        own = {r: n for (r, c), n in table.cells.items() if c == column and r not in unread}
        table.cells |= {((name,), column): n for name, n in _gaps(own).items()}
    table.notes.append(
        "* labels of this language were trained, (*) in some settings; gap: languages of training "
        f"less the others; ! more than {100 * MANY_UNKNOWN:.0f} % of the pieces are unknown to a "
        "vocabulary: in no mean"
    )


def _gaps(own: dict[Key, Number]) -> dict[str, Number]:
    """Of each seed the means over languages and over those not trained in, and the gap."""
    if not own:
        return {}
    first = next(iter(own.values()))
    trained = [n for n in own.values() if n.trained]
    others = [n for n in own.values() if not n.trained]

    def over(numbers: Iterable[Number]) -> tuple[float, ...]:
        return tuple(map(statistics.fmean, zip(*(n.values for n in numbers), strict=True)))

    means = {"mean": over(own.values())}
    if trained and others:
        means["mean of others"] = over(others)
        pairs = zip(over(trained), over(others), strict=True)
        means["gap"] = tuple(a - b for a, b in pairs)
    return {name: first._replace(values=values, unknown=0.0) for name, values in means.items()}


def best_layers(on: Sequence[Record], by: Sequence[str]) -> dict[tuple, int]:
    """The layer of each setting, and of its further fields, with the best mean on some results."""
    sums: dict[tuple, dict[int, list[float]]] = {}
    first = next((r.row.metric for r in on), None)
    for record in on:
        if record.layer is not None and record.row.metric == first:
            key = (record.setting, *map(record.get, by))
            sums.setdefault(key, {}).setdefault(record.layer, []).extend(record.values)
    sign = -1 if first in LOWER else 1
    return {
        key: max(own, key=lambda layer: (sign * statistics.fmean(own[layer]), layer))
        for key, own in sums.items()
    }
