"""Results: one JSON object per number, with a signature that says how it was measured."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import xl_flax
from xl_flax.errors import UserError
from xl_flax.files.write import write_atomically

FILE = "results.jsonl"
MACRO = "macro"  # stands for the languages in an unweighted mean over all of them


@dataclasses.dataclass(frozen=True)
class Result:
    """One number. Two results may be compared if, and only if, their signatures are equal."""

    task: str  # what is measured: "masked_lm", "retrieval", "mining"
    data: str  # mixture/split
    languages: tuple[str, ...]  # one, or (query, searched); "macro" stands for all of them
    metric: str
    value: float
    n: int  # what the value is a mean over: masked tokens, queries; for a macro mean, its terms
    signature: str
    layer: int | None = None  # 0 = embeddings
    pooling: str | None = None
    head: str | None = None
    similarity: str | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """The checkpoint that results are about."""

    checkpoint: str  # its folder
    step: int
    saved: int = 0  # when its model.json was written, in ns: another run's step is not this one's


def signature(method: str, **settings: Any) -> str:
    """`method|name:value|…|version:…`, after sacreBLEU (Post, 2018, arXiv:1804.08771)."""
    parts = [method, *(f"{name}:{value}" for name, value in settings.items())]
    return "|".join([*parts, f"version:{xl_flax.__version__}"])


def read(path: str) -> list[dict[str, Any]]:
    """The lines of a results file; [] if there is none.

    Raises:
      UserError: a line is no JSON object, other than a last one cut off in writing.
    """
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        lines = file.read().split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):  # no newline behind it: the writer was killed
                break
            raise UserError(
                f"{path}, line {number}: not JSON ({error}); delete this line"
            ) from error
    return rows


def done(rows: Iterable[Mapping[str, Any]], source: Source) -> set[str]:
    """The signatures that a results file holds for one checkpoint."""
    return {row["signature"] for row in rows if same(row, source)}


def write(path: str, source: Source, results: Sequence[Result]) -> None:
    """Adds results to a file; what it holds for this checkpoint and these signatures is replaced.

    The file is replaced as a whole and atomically, so a kill leaves the old or the new one.
    """
    signatures = {r.signature for r in results}
    rows = [r for r in read(path) if not (same(r, source) and r["signature"] in signatures)]
    rows += [
        dataclasses.asdict(result)
        | {"value": float(result.value), "n": int(result.n)}  # which may be NumPy's
        | dataclasses.asdict(source)
        | {"version": xl_flax.__version__}
        for result in results
    ]
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def from_rows(rows: Iterable[Mapping[str, Any]], signatures: Iterable[str]) -> list[Result]:
    """Lines of a results file as results again, of these signatures only."""
    wanted = set(signatures)
    names = {field.name for field in dataclasses.fields(Result)}
    return [
        Result(**{k: row[k] for k in names & row.keys()} | {"languages": tuple(row["languages"])})
        for row in rows
        if row["signature"] in wanted
    ]


def same(row: Mapping[str, Any], source: Source) -> bool:
    """Whether a line of a results file is about this checkpoint."""
    # By name, not by path: a run's folder may be moved or mounted elsewhere.
    name = os.path.basename(row["checkpoint"])
    here = (os.path.basename(source.checkpoint), source.step, source.saved)
    return (name, row["step"], row.get("saved", 0)) == here
