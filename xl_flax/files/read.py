"""Reading files that may be missing, damaged or something else altogether."""

import json
import os
import re
import stat
from typing import Any

from xl_flax.errors import UserError

LOCAL = "a local path (no address such as gs://bucket/run)"
REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def is_local(path: str | os.PathLike) -> bool:
    """Whether this is no address such as gs://bucket/run."""
    return not REMOTE.match(os.fspath(path))


def check_local(path: str | os.PathLike, name: str) -> None:
    """Refuses an address such as gs://bucket/run, which would become a local folder "gs:".

    Args:
      path: what was given.
      name: of the setting or flag that gave it, for the message.

    Raises:
      UserError: it is an address.
    """
    if not is_local(path):
        raise UserError(f"{name} = {os.fspath(path)!r}: must be {LOCAL}")


def read_bytes(path: str | os.PathLike, mend: str = "") -> bytes:
    """The content of a regular file.

    Args:
      path: the file.
      mend: what the reader of an error can do, as in "delete it".

    Raises:
      UserError: it is missing, not a regular file, or cannot be read.
    """
    check_regular(path, mend)
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _unreadable(path, error, mend) from error


def read_part(path: str | os.PathLike, start: int, size: int, mend: str = "") -> bytes:
    """Some bytes of a regular file; fewer where it ends before.

    Raises:
      UserError: as `read_bytes`.
    """
    check_regular(path, mend)
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(size)
    except OSError as error:
        raise _unreadable(path, error, mend) from error


def map_array(path: str | os.PathLike, dtype: Any, start: int, shape: tuple[int, ...]) -> Any:
    """An array in a file, read from the disk where it is used and not before: a NumPy memmap."""
    import numpy as np  # which the other functions do without

    return np.memmap(path, dtype, "r", start, shape)


def check_regular(path: str | os.PathLike, mend: str = "") -> None:
    """Sees to it that a path names a file: opening a FIFO would wait for ever.

    Raises:
      UserError: it is missing, or a folder, FIFO, socket or device.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise _unreadable(path, error, mend) from error
    if stat.S_ISDIR(mode):
        raise UserError(_sentence(path, "is a folder, where a file is expected", mend))
    if not stat.S_ISREG(mode):
        raise UserError(_sentence(path, "is no regular file", mend))


def read_text(path: str | os.PathLike, mend: str = "") -> str:
    """The same as text.

    Raises:
      UserError: also if it is not UTF-8.
    """
    content = read_bytes(path, mend)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(_sentence(path, f"is not UTF-8 text (line {line})", mend)) from None


def read_json(path: str | os.PathLike, mend: str = "") -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
      UserError: it is missing or damaged.
    """
    content = read_bytes(path, mend)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(_sentence(path, f"is damaged ({error})", mend)) from None
    if not isinstance(value, dict):
        raise UserError(_sentence(path, "is damaged (no JSON object)", mend))
    return value


def read_json_lines(path: str | os.PathLike) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file, each with the number of its line.

    Empty lines are skipped, and so is a last one without a newline that is not JSON: its writer was
    killed.

    Raises:
      UserError: naming the line that is no JSON object.
    """
    lines = read_bytes(path).split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode())
            if not isinstance(value, dict):
                raise ValueError("no JSON object")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number}: {error}; delete this line") from None
        rows.append((number, value))
    return rows


def _unreadable(path: str | os.PathLike, error: OSError, mend: str) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(_sentence(path, "is missing", mend))
    return UserError(_sentence(path, f"cannot be read ({error.strerror})", mend))


def _sentence(path: str | os.PathLike, what: str, mend: str) -> str:
    return f"{os.fspath(path)} {what}" + (f": {mend}" if mend else "")
