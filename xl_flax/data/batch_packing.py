"""Batches of so many examples, laid out anew: short examples share rows, and no row is empty.

Rows that the cache packs hold now more, now fewer examples; a batch of them is a batch of tokens.
Fine-tuning counts examples. So its rows are cached with one example each, and those of a batch are
put together here, the same way on every process.
"""

from collections.abc import Mapping

import numpy as np

from xl_flax.data.features import Features, batched
from xl_flax.data.packing import best_fit

Batch = dict[str, np.ndarray]

MOST = 16  # examples in a row, for which objectives keep places
SIZES = 8  # numbers of rows that batches of one size may have: each compiles a step of its own


def pack_batch(
    batch: Mapping[str, np.ndarray], num_texts: int, specs: Features, pad_id: int, multiple: int
) -> Batch:
    """Puts examples that have a row each into fewer rows.

    Only examples of the same languages share a row.

    Args:
      batch: as `Stream.rows` gives it, N rows of one example each.
      num_texts: texts of an example.
      specs: features of the examples.
      pad_id: the padding token.
      multiple: the number of rows is one of it, so that devices and microbatches have equal shares.

    Returns:
      The same fields with up to `MOST` examples in a row, the rows of padding last. `row_id` is
      that of the row's first example, -1 where there is none.
    """
    count, length = batch["tokens"].shape
    used_N = (batch["segment_ids"] != 0).sum(axis=1)
    rows = []
    for languages in np.unique(batch["languages"], axis=0):
        own = np.flatnonzero((batch["languages"] == languages).all(axis=1))
        rows += [own[row] for row in best_fit(used_N[own].tolist(), length, MOST)]
    unit = multiple * -(-count // (SIZES * multiple))
    shape = (-(-len(rows) // unit) * unit, length)

    # Where each example goes: row, place in it, first column.
    member_N = np.concatenate(rows)
    row_N = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    place_N = np.concatenate([np.arange(len(row)) for row in rows])
    begin_N = np.concatenate([np.cumsum([0, *used_N[row[:-1]]]) for row in rows])
    from_row, from_column = np.nonzero(batch["segment_ids"][member_N] != 0)
    to = row_N[from_row], begin_N[from_row] + from_column
    origin = member_N[from_row], from_column

    def spread(name: str, empty: int | float, added: np.ndarray | int = 0) -> np.ndarray:
        packed = np.full(shape, empty, batch[name].dtype)
        packed[to] = batch[name][origin] + added
        return packed

    def placed(name: str, empty: int | float, added: np.ndarray | int = 0) -> np.ndarray:
        values = batch[name][member_N, 0]
        packed = np.full((shape[0], MOST, *values.shape[1:]), empty, values.dtype)
        packed[row_N, place_N] = values + added
        return packed

    packed = {
        "tokens": spread("tokens", pad_id),
        "segment_ids": spread("segment_ids", 0, num_texts * place_N[from_row]),
        "positions": spread("positions", 0),
        "languages": np.zeros((shape[0], batch["languages"].shape[1]), np.int32),
        "row_id": np.full(shape[0], -1, np.int32),
    }
    firsts = [row[0] for row in rows]
    for name in ("languages", "row_id"):
        packed[name][: len(rows)] = batch[name][firsts]
    if specs:
        packed |= {name: placed(name, -1) for name in ("example", "piece")}
    for name, spec in batched(specs):
        if spec.kind == "token":
            packed[name] = spread(name, spec.nothing)
        elif spec.kind == "example":
            packed[name] = placed(name, spec.nothing)
        else:  # a span that is there moves with its example
            there = batch[name][member_N, 0] >= 0
            packed[name] = placed(name, spec.nothing, begin_N[:, None] * there)
    return packed
