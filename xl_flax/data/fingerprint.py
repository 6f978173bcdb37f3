"""What a cached split was made from, and what has changed since.

A fingerprint is a JSON object: `modules` (name to sha256 of the file) that define the task and its
functions, `vocabulary` (sha256), `source` and `preprocessors` (qualified names and bound
arguments), `files` (path to size and time of change), `filter` (what was left out; the modules and
files of the text that it excludes stand among the others). Training observes modules, vocabulary,
files and filter again without importing any task; the cache command, which imports the tasks,
compares everything.
"""

import functools
import importlib.util
import inspect
import os
import re
import sysconfig
from collections.abc import Iterable
from typing import Any

from xl_flax.files.checksums import sha256

Fingerprint = dict[str, Any]


def module_file(name: str) -> str | None:
    """The source file of a module that need not be imported; None if there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return spec.origin if spec and spec.has_location else None


def file_sha256(path: str) -> str:
    """Sha256 of a file's bytes, in hex."""
    status = os.stat(path)
    return _sha256(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    del size, mtime_ns
    return sha256(path)


def modules_sha256(names: Iterable[str]) -> dict[str, str]:
    """The state of modules by name, those left out that have no file here."""
    files = {name: module_file(name) for name in sorted(set(names))}
    return {name: file_sha256(file) for name, file in files.items() if file}


def files_state(paths: Iterable[str]) -> dict[str, list[int]]:
    """Size in bytes and time of change in nanoseconds of the files that exist."""
    state = {}
    for path in sorted(set(paths)):
        if os.path.isfile(path):
            status = os.stat(path)
            state[path] = [status.st_size, status.st_mtime_ns]
    return state


def describe(value: Any) -> str:
    """A function with its bound arguments, or any value, as text that no restart changes."""
    if isinstance(value, functools.partial):
        arguments = [describe(a) for a in value.args]
        arguments += [f"{k}={describe(v)}" for k, v in sorted(value.keywords.items())]
        return f"{describe(value.func)}({', '.join(arguments)})"
    if inspect.isfunction(value):
        cells = [_contents(cell) for cell in value.__closure__ or ()]
        name = f"{value.__module__}.{value.__qualname__}"
        return f"{name}[{', '.join(map(describe, cells))}]" if cells else name
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(describe, value))}]"
    if isinstance(value, (set, frozenset)):  # the order differs from process to process
        return f"{{{', '.join(sorted(map(describe, value)))}}}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {describe(v)}' for k, v in value.items())}}}"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if callable(value) and type(value).__repr__ is object.__repr__ and hasattr(value, "__dict__"):
        return f"{describe(type(value))}({describe(vars(value))})"
    # An address in a default repr differs from process to process.
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet bound
        return None


def reachable(values: Iterable[Any]) -> list[Any]:
    """Functions, classes and arguments that some functions are made from, themselves included.

    Follows bound arguments, closures and base classes, and the globals of functions that are not
    part of an installed package.
    """
    parts: list[Any] = []
    seen: set[int] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        parts.append(value)
        if isinstance(value, functools.partial):
            waiting += [value.func, *value.args, *value.keywords.values()]
        elif inspect.isfunction(value):
            waiting += [_contents(cell) for cell in value.__closure__ or ()]
            if _own_module(value):
                waiting += inspect.getclosurevars(value).globals.values()
        elif inspect.isclass(value):
            waiting += value.__bases__
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple, set)):
            waiting += value
    return parts


def files_among(parts: Iterable[Any]) -> list[str]:
    """The paths of files among what `reachable` gives."""
    return [str(p) for p in parts if isinstance(p, (str, os.PathLike)) and os.path.isfile(p)]


def modules_among(parts: Iterable[Any]) -> set[str]:
    """Modules of the functions and classes that `reachable` gives, installed ones left out."""
    return {name for part in parts if (name := _own_module(part))}


def _own_module(value: Any) -> str | None:
    name = getattr(value, "__module__", None) if callable(value) else None
    file = module_file(name) if isinstance(name, str) else None
    return name if file and is_own_file(file) else None


def is_own_file(path: str) -> bool:
    """Whether a source file is neither Python's nor an installed package's."""
    return not path.startswith(("<", *_installed()))


@functools.lru_cache
def _installed() -> tuple[str, ...]:
    return tuple(sysconfig.get_paths()[key] for key in ("purelib", "platlib", "stdlib"))


def observe(
    old: Fingerprint, vocabulary_sha256: str, filter_settings: dict[str, Any]
) -> Fingerprint:
    """The fingerprint as far as it can be seen without importing the task.

    A module or file that is not on this machine counts as unchanged: caches may be moved.
    """
    return old | {
        "modules": old["modules"] | modules_sha256(old["modules"]),
        "vocabulary": vocabulary_sha256,
        "files": old["files"] | files_state(old["files"]),
        "filter": filter_settings,
    }


def changes(old: Fingerprint, new: Fingerprint) -> list[str]:
    """What differs, one phrase per culprit; empty if nothing does."""
    phrases = []
    for key, noun in (("modules", "task module"), ("files", "source file")):
        for name in sorted(old[key].keys() | new[key].keys()):
            if name not in new[key]:
                phrases.append(f"{noun} {name} is no longer used")
            elif name not in old[key]:
                phrases.append(f"{noun} {name} is new")
            elif old[key][name] != new[key][name]:
                phrases.append(f"{noun} {name} changed")
    if old["vocabulary"] != new["vocabulary"]:
        phrases.append(
            f"the vocabulary changed (sha256 {old['vocabulary'][:12]} when cached, "
            f"{new['vocabulary'][:12]} now)"
        )
    for name in sorted(old["filter"].keys() | new["filter"].keys()):
        before, now = old["filter"].get(name), new["filter"].get(name)
        if before != now:
            phrases.append(f"Filter.{name} changed from {before} to {now}")
    for key in ("source", "preprocessors"):
        if old[key] != new[key]:
            phrases.append(f"{key} changed from {old[key]} to {new[key]}")
    return phrases
