"""The tables that a report has where none is asked for: an overview, languages, layers."""

from collections.abc import Iterator, Sequence

from xl_flax.errors import UserError
from xl_flax.reports.records import MEANS, Record
from xl_flax.reports.tables import Table, make

# What may differ between results that stand side by side in a table, beside data and metric.
SECOND = ("_mean", "_gap")  # metrics that say the same as another one
VARIANTS = ("similarity", "center", "pooling", "head")


def standard(records: Sequence[Record], shown: Sequence[Record], note: str) -> list[Table]:
    """An overview of means over languages; each test by language; each test by layer.

    Args:
      records: of all layers.
      shown: of the layers that were chosen.
      note: how.
    """
    records, shown = without_members(records), without_members(shown)
    tables = [overview(shown, note), *by_language(shown, note)]
    return [*tables, *by_layer(records)]


def overview(records: Sequence[Record], note: str = "") -> Table:
    """Settings by data and metrics, whichever are more down the table; steps and layers, too."""
    models = ["setting", *differing(records, ("step", "layer"))]
    tests = ["data", "metric", *_variants(records)]
    main = [r for r in records if not r.row.metric.endswith(SECOND)]
    table = make(main, models, tests, "Overview")
    if len(table.columns) > len(table.rows):
        table = make(main, tests, models, "Overview")
    table.notes += [note] if note else []
    return table


def by_language(records: Sequence[Record], note: str = "") -> list[Table]:
    """Languages down and settings across, the first metric of each test."""
    tables = []
    for data, metric, every in tests(records):
        own = [r for r in every if r.target or r.language not in MEANS]
        columns = ["setting", *differing(own, ("step", "layer")), *_variants(own)]
        table = make(own, ["language"], columns, f"{metric} on {data} by language")
        if len(table.rows) > 1:
            table.notes += [note] if note and any(r.layer is not None for r in own) else []
            tables.append(table)
    return tables


def by_layer(records: Sequence[Record]) -> list[Table]:
    """Settings down and layers across, the first metric of each test that has layers."""
    tables = []
    for data, metric, every in tests(records):
        own = [r for r in every if r.layer is not None]
        if len({r.layer for r in own}) > 1:
            rows = ["setting", *differing(own, ("step",)), *_variants(own)]
            tables.append(make(own, rows, ["layer"], f"{metric} on {data} by layer"))
    return tables


def tests(records: Sequence[Record]) -> Iterator[tuple[str, str, list[Record]]]:
    """Data, the metric of it that comes first, and the results."""
    for data in dict.fromkeys(record.data for record in records):
        own = [r for r in records if r.data == data and not r.row.metric.endswith(SECOND)]
        if own:
            metric = own[0].row.metric
            yield data, metric, [r for r in own if r.row.metric == metric]


def without_members(records: Sequence[Record]) -> list[Record]:
    """Leaves out pairs of languages, as Tatoeba's, where there is a mean over all of them."""
    whole = {(r.row.task, r.data.rpartition("/")[2]) for r in records if "+" in r.data}
    alone = {r.data for r in records if r.target and r.row.languages[0] in MEANS}
    pairs = {r.data for r in records if r.target} - alone
    return [
        r
        for r in records
        if r.data not in pairs or (r.row.task, r.data.rpartition("/")[2]) not in whole
    ]


def _variants(records: Sequence[Record]) -> list[str]:
    return differing(records, VARIANTS)


def asked(records: Sequence[Record], rows: Sequence[str], columns: Sequence[str]) -> Table:
    """The one table that was asked for, with the rest of its fields as they differ.

    Raises:
      UserError: as `tables.make`.
    """
    if not rows and not columns:
        raise UserError("a table needs --rows or --columns")
    rows = list(rows) or ["setting"]
    if not columns:
        columns = [f for f in ("data", "metric") if f not in rows]
    return make(records, rows, list(columns), "")


def differing(records: Sequence[Record], fields: Sequence[str]) -> list[str]:
    """Fields in which results of one metric on one text differ."""
    found = []
    for field in fields:
        values: dict[tuple, set] = {}
        for r in records:
            if not r.is_control and r.get(field) is not None:
                key = (r.data, r.row.metric, r.run)
                values.setdefault(key, set()).add(r.get(field))
        if any(len(own) > 1 for own in values.values()):
            found.append(field)
    return found
