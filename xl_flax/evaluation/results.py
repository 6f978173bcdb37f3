"""Results: one JSON object per number, with a signature that says how it was measured.

`results.jsonl` lies in a run's folder and names checkpoints as that folder does, so it stays right
when the folder is copied or moved. Each line has a checksum and says how many lines its measurement
has: what is damaged or missing is found before it becomes a figure.
"""

import collections
import dataclasses
import hashlib
import json
import os
import statistics
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pydantic

import xl_flax
from xl_flax.checkpoints.intact import CHECKSUMS_FILE, FOLDER, PARAMS
from xl_flax.data.prepare import DatasetSpec
from xl_flax.errors import UserError
from xl_flax.files.checksums import checksums
from xl_flax.files.lock import locked
from xl_flax.files.read import read_json, read_json_lines
from xl_flax.files.write import write_atomically

FILE = "results.jsonl"
MACRO = "macro"  # stands for the languages in an unweighted mean over all of them
OTHERS = "others"  # in the mean over those that a head was not trained in: zero-shot transfer
UNTRAINED = "untrained"  # the model of results of a checkpoint's shape before training


@dataclasses.dataclass(frozen=True)
class Result:
    """One number. Two results may be compared if, and only if, their signatures are equal."""

    task: str  # what is measured: "masked_lm", "retrieval", "mining", "classification"
    data: str  # mixture/split
    # One, or (query, searched); "macro" stands for all of them, "others" for those beyond training.
    languages: tuple[str, ...]
    metric: str
    value: float
    n: int  # what the value is a mean over: masked tokens, queries; for a macro mean, its terms
    signature: str
    layer: int | None = None  # 0 = embeddings
    pooling: str | None = None
    head: str | None = None
    similarity: str | None = None
    # Share of unknown pieces in the text of each of `languages`, "macro": of the worst of all.
    unknown: tuple[float, ...] | None = None
    # None: of a checkpoint. Else of a control: `UNTRAINED`, "tf-idf", "length".
    model: str | None = None
    trained: bool | None = None  # of labelled tests: whether labels of this language were trained
    interval: tuple[float, float] | None = None  # 95 % of the values on tests drawn again
    seeds: tuple[float, ...] | None = None  # of what `value` is the mean over random starts

    @property
    def spread(self) -> float | None:
        """The standard deviation over random starts; None of what has only one."""
        return None if self.seeds is None else statistics.stdev(self.seeds)


@dataclasses.dataclass(frozen=True)
class Source:
    """The checkpoint that results are about, or the control."""

    checkpoint: str  # its folder, seen from the folder of the results; of a control, its name
    step: int
    # Of its parameters: those of another training have another one. Of a control, see
    # `xl_flax.evaluation.controls`.
    id: str | None = dataclasses.field(default=None, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Row(Result, Source):
    """A line of `results.jsonl`. Those of older versions have neither `id`, `lines` nor `crc`."""

    version: str = ""  # of this package
    lines: int | None = None  # that were written with this signature
    crc: str | None = None  # of the line without it


class _Read(NamedTuple):
    """What a file held when it looked like this."""

    state: tuple[int, int, int] | None  # None: it cannot be read
    lines: dict[Row, str]  # the different ones, each as it is written there


_ROW = pydantic.TypeAdapter(Row)
# By path: a sweep adds to a file cell by cell, and checking all lines again would soon take longer
# than the cells.
_KNOWN: dict[str, _Read] = {}
CHECKED = {"id", "lines", "crc"}  # a line that has one of these has the last


def means(
    results: Iterable[Result],
    averaged_as: Callable[[Result], Iterable[tuple[str, ...]]],
    template: Callable[..., Result],
) -> list[Result]:
    """Unweighted means of the results of each metric, in the order of the first of each.

    Args:
      results: of pairs of languages, or of one language each.
      averaged_as: the `languages` of the means that a result counts in.
      template: `Result` without languages, metric, value and n, which is the number of terms.
    """
    values: dict[str, dict[tuple[str, ...], list[float]]] = {}
    for result in results:
        for languages in averaged_as(result):
            values.setdefault(result.metric, {}).setdefault(languages, []).append(result.value)
    return [
        template(languages=languages, metric=metric, value=float(np.mean(own)), n=len(own))
        for metric, by_languages in values.items()
        for languages, own in by_languages.items()
    ]


def run_folder(checkpoint: str) -> str:
    """The folder of a checkpoint's run, or a lone checkpoint's own: where results lie."""
    path = os.path.abspath(checkpoint)
    parent = os.path.dirname(path)
    return os.path.dirname(parent) if os.path.basename(parent) == FOLDER else path


def checkpoint_source(checkpoint: str, step: int) -> Source:
    """What results of a checkpoint are known by, wherever its run's folder lies.

    Raises:
      UserError: its `checksums.json` is damaged.
    """
    path = os.path.abspath(checkpoint)
    stored = os.path.join(path, CHECKSUMS_FILE)
    if os.path.exists(stored):
        sums = {k: v for k, v in read_json(stored).items() if k.startswith(f"{PARAMS}/")}
    else:  # of an older version: they are read
        sums = {f"{PARAMS}/{k}": v for k, v in checksums(os.path.join(path, PARAMS)).items()}
    digest = hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
    return Source(os.path.relpath(path, run_folder(path)), step, id=digest[:16])


def signature(method: str, **settings: Any) -> str:
    """`method|name:value|…|version:…`, after sacreBLEU (Post, 2018, arXiv:1804.08771)."""
    parts = [method, *(f"{name}:{value}" for name, value in settings.items())]
    return "|".join([*parts, f"version:{xl_flax.__version__}"])


def data_name(specs: Sequence[DatasetSpec]) -> str:
    """mixture/split; of several mixtures the first, how many more, and a digest of all names."""
    name = specs[0].mixture
    if len(specs) > 1:
        digest = hashlib.sha256("\n".join(spec.mixture for spec in specs).encode()).hexdigest()
        name += f"+{len(specs) - 1}#{digest[:6]}"
    return f"{name}/{specs[0].split}"


def of_model(sign: str, model: str) -> str:
    """The signature of the same measurement of a control, as in "untrained*3#0f3a"."""
    how, _, version = sign.rpartition("|version:")
    return f"{how}|model:{model}|version:{version}"


def read(path: str) -> list[Row]:
    """The lines of a results file; [] if there is none.

    Measurements of which lines are missing, or that are there with different values, are left
    out, which is said.

    Raises:
        UserError: a line is damaged, or the file is something else.
    """
    rows = list(_read_all(path))
    there = collections.Counter(map(_measurement, rows))
    complete = [row for row in rows if row.lines in (None, there[_measurement(row)])]
    lines = {_measurement(row): row.lines for row in rows}
    for key in sorted(there.keys() - set(map(_measurement, complete)), key=str):
        _, at, sign = key
        what = "lines are missing" if there[key] < lines[key] else "there are different values"
        print(f"{path}: {what}, left out is step {at}, {sign}", file=sys.stderr)
    return complete


def done(rows: Iterable[Row], source: Source) -> set[str]:
    """The signatures that a results file holds for one checkpoint."""
    return {row.signature for row in rows if same(row, source)}


def write(path: str, source: Source, results: Sequence[Result]) -> None:
    """Adds results to a file; what it holds for this checkpoint and these signatures is replaced.

    The file is replaced as a whole and atomically, so a kill leaves the old or the new one; of
    several processes one waits for the other.
    """
    folder, name = os.path.split(os.path.abspath(path))
    busy = f"waiting for another process that writes {path}"
    with locked(folder, busy, wait=True, name=f".{name}.lock"):
        counts = collections.Counter(r.signature for r in results)
        lines = dict(_read_all(path))
        replaced = [
            row
            for row in lines
            if row.signature in counts
            and (row.checkpoint, row.step) == (source.checkpoint, source.step)
        ]
        for row in replaced:
            del lines[row]
        for result in results:
            line = vars(result) | vars(source)
            line |= {"value": float(result.value), "n": int(result.n)}  # which may be NumPy's
            line |= {"version": xl_flax.__version__, "lines": counts[result.signature]}
            line |= {"crc": _crc(line)}
            text = json.dumps(line, ensure_ascii=False)
            lines[_ROW.validate_json(text)] = text + "\n"
        write_atomically(path, "".join(lines.values()))
        _KNOWN[os.path.abspath(path)] = _Read(_state(path), lines)


def from_rows(rows: Iterable[Row], signatures: Iterable[str]) -> list[Result]:
    """Lines of a results file as results again, of these signatures only."""
    wanted, names = set(signatures), [field.name for field in dataclasses.fields(Result)]
    return [
        Result(**{k: getattr(row, k) for k in names}) for row in rows if row.signature in wanted
    ]


def same(row: Row, source: Source) -> bool:
    """Whether a line of a results file is about this checkpoint: a run has one of each step."""
    return (row.step, row.id) == (source.step, source.id)


def _read_all(path: str) -> dict[Row, str]:
    """The different lines of a file, each as it is written there; a file is checked once."""
    if not os.path.lexists(path):
        return {}
    key, state = os.path.abspath(path), _state(path)
    if key not in _KNOWN or _KNOWN[key].state != state:
        _KNOWN[key] = _Read(state, _check_lines(path))
    return _KNOWN[key].lines


def _state(path: str) -> tuple[int, int, int] | None:
    """What changes with a file's content, which is replaced as a whole."""
    if not os.path.exists(path):
        return None
    stat = os.stat(path)
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _check_lines(path: str) -> dict[Row, str]:
    rows: dict[Row, str] = {}
    for number, line in read_json_lines(path):
        try:
            row = _ROW.validate_python(line)
            if not line.keys().isdisjoint(CHECKED) and row.crc != _crc(line):
                raise ValueError("is not what was written")
        except pydantic.ValidationError as error:
            (wrong, *_) = error.errors()
            what = f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
            if (version := line.get("version")) not in (None, "", xl_flax.__version__):
                what += f" (it was written by version {version}; this one is {xl_flax.__version__})"
            raise UserError(f"{path}, line {number}: {what}; delete this line") from None
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}; delete this line") from None
        rows.setdefault(row, json.dumps(line, ensure_ascii=False) + "\n")
    return rows


def _crc(row: Mapping[str, Any]) -> str:
    text = json.dumps({k: v for k, v in row.items() if k != "crc"}, sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"


def _measurement(row: Row) -> tuple[str | None, int, str]:
    return row.id, row.step, row.signature
