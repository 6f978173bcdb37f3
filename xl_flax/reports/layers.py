"""Which layer of each model a report shows."""

import fnmatch
from collections.abc import Sequence

from xl_flax.errors import UserError
from xl_flax.reports.records import Record
from xl_flax.reports.tables import best_layers, of_languages

BY = ("center", "pooling", "head")  # vectors that have a best layer of their own


def choose(records: Sequence[Record], which: str | None) -> tuple[list[Record], str]:
    """The results of the layers to be shown, and how these were chosen.

    Args:
      records: of all layers.
      which: "all"; a number; "best:DATA", the best of each model on other data (a pattern); None:
        the best on validation text, where there is some beside the test, otherwise all.

    Raises:
      UserError: there is no such layer or data.
    """
    if which == "all" or all(record.layer is None for record in records):
        return list(records), ""
    if which is None:
        validation = _validation(records)
        return _best(records, validation) if validation else (list(records), "")
    if which.startswith("best:"):
        return _best(records, which.removeprefix("best:"))
    if not which.isdecimal():
        raise UserError(f'--layer={which}: say a number, "all", or "best:DATA"')
    layers = {record.layer for record in records} - {None}
    if int(which) not in layers:
        there = ", ".join(map(str, sorted(layers)))
        raise UserError(f"--layer={which}: no result is of this layer; there are {there}")
    lacking = {r.setting for r in records if r.layer is not None} - {
        r.setting for r in records if r.layer == int(which)
    }
    note = f"layer {which}"
    note += f"; without {', '.join(sorted(lacking))}, which lack it" if lacking else ""
    return [r for r in records if r.layer in (None, int(which))], note


def _validation(records: Sequence[Record]) -> str | None:
    """The one text of validation splits beside others; of several the one that has them all."""
    names = dict.fromkeys(r.data for r in records if r.layer is not None)
    own = [name for name in names if name.endswith("/validation")]
    whole = [name for name in own if "+" in name] or own
    return whole[0] if len(whole) == 1 and len(own) < len(names) else None


def _best(records: Sequence[Record], pattern: str) -> tuple[list[Record], str]:
    on = [r for r in records if fnmatch.fnmatchcase(r.data, pattern)]
    if not on:
        known = ", ".join(dict.fromkeys(record.data for record in records))
        raise UserError(f"--layer=best:{pattern}: there are no results of it; there are {known}")
    first = on[0].row.similarity
    pairs = any(r.language != r.row.languages[0] for r in on)  # with a pivot
    on = [r for r in on if r.row.similarity == first]
    layers = best_layers(on if pairs else of_languages(on, ()), BY)
    lacking = {r.setting for r in records if r.layer is not None and _key(r) not in layers}
    if lacking:
        raise UserError(
            f"--layer=best:{pattern}: {', '.join(sorted(lacking))} have no results of it, so no "
            "layer can be chosen"
        )
    kept = [r for r in records if r.layer is None or r.layer == layers[_key(r)]]
    chosen = {(r.setting, r.get("center")): r.layer for r in kept if r.layer is not None}
    several = len({center for _, center in chosen}) > 1
    listed = ", ".join(
        f"{setting}{f' ({center})' if several else ''} {layer}"
        for (setting, center), layer in chosen.items()
    )
    return kept, f"layers chosen on {pattern}: {listed}"


def _key(record: Record) -> tuple:
    return (record.setting, *map(record.get, BY))
