"""Whether two settings differ on the same examples: approximate randomisation, by language."""

from collections.abc import Sequence

import numpy as np

from xl_flax.errors import UserError
from xl_flax.evaluation import predictions
from xl_flax.evaluation.bootstrap import Score, f1, macro_f1, permutation_p, ratio
from xl_flax.reports.records import MEANS, Record
from xl_flax.reports.tables import Number, Table, make


def tables(records: Sequence[Record], base: str) -> list[Table]:
    """How far each other setting is above one on each labelled test, with p, by language.

    The counts of each example are averaged over the seeds of a setting (Yeh 2000).

    Raises:
      UserError: there is no such setting, no labelled test, or the examples differ.
    """
    settings = list(dict.fromkeys(r.setting for r in records if not r.is_control))
    if base not in settings:
        raise UserError(f"--against={base}: there is no such setting; {', '.join(settings)}")
    labelled = [r for r in records if not r.is_control and r.row.interval and not r.target]
    labelled = [r for r in labelled if r.language not in MEANS]
    made = []
    for data in dict.fromkeys(record.data for record in labelled):
        own = [r for r in labelled if r.data == data]
        own = [r for r in own if r.row.metric == own[0].row.metric]
        if base in {r.setting for r in own} and len({r.setting for r in own}) > 1:
            made.append(_table(own, base))
    if not made:
        raise UserError(
            f"--against={base}: no labelled test has results of this setting and of another one; "
            "what is tested is of labelled examples"
        )
    return made


def _table(records: Sequence[Record], base: str) -> Table:
    data, metric = records[0].data, records[0].row.metric
    title = f"{metric} on {data} less that of {base}, with p (approximate randomisation)"
    table = make(records, ["language"], ["setting"], title)
    by_cell: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        by_cell.setdefault((record.language, record.setting), []).append(record)
    table.columns = [column for column in table.columns if column != (base,)]
    table.rows = [row for row in table.rows if (row[0], base) in by_cell]
    table.cells, before = {}, table.cells
    for (language,) in table.rows:
        one = _counts(by_cell[language, base])
        score = _score(metric, one)
        for (setting,) in table.columns:
            if (language, setting) not in by_cell:
                continue
            other = _counts(by_cell[language, setting])
            if other.shape != one.shape:
                raise UserError(f"{data}, {language}: {base} and {setting} had other examples")
            change = float(score(other.sum(axis=0)) - score(one.sum(axis=0)))
            number: Number = before[(language,), (setting,)]
            p = permutation_p(one, other, score)
            table.cells[(language,), (setting,)] = number._replace(values=(change,), p=p)
    return table


def _score(metric: str, counts: np.ndarray) -> Score:
    """What is made of sums of these counts: F1 of chunks, its mean over classes, or a ratio."""
    if metric == "macro_f1":
        return macro_f1
    return f1 if metric == "f1" and counts.shape[-1] == 3 else ratio


def _counts(records: Sequence[Record]) -> np.ndarray:
    """Averaged over the seeds of a setting."""
    return np.mean([predictions.read_counts(r.folder, r.row) for r in records], axis=0)
