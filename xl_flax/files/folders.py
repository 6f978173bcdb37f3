"""Folders that are there whole or not at all, and ones that are put out of the way."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator


def entries(folder: str | os.PathLike) -> list[str]:
    """The names of whatever is in a folder, sorted; [] if it does not exist or is none."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_empty(folder: str | os.PathLike) -> bool:
    """Whether this is a folder without a file in it and in the folders in it."""
    return os.path.isdir(folder) and not any(names for _, _, names in os.walk(folder))


def subfolders(folder: str | os.PathLike) -> list[str]:
    """The names of the folders in a folder, sorted; [] if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def set_aside(path: str | os.PathLike, into: str | os.PathLike) -> str:
    """Moves a file or folder into another folder, on the same disk, under a name not taken there.

    Returns:
      Where it is now.
    """
    os.makedirs(into, exist_ok=True)
    name, number = os.path.basename(os.fspath(path)), 1
    target = os.path.join(into, name)
    while os.path.lexists(target):
        number += 1
        target = os.path.join(into, f"{name}-{number}")
    os.rename(path, target)
    return target


@contextlib.contextmanager
def new_folder(final: str | os.PathLike) -> Iterator[str]:
    """An empty folder that takes the place of `final` once the block ends without an error.

    An older `final` is replaced. What killed processes left beside it is removed; a block that
    fails leaves nothing.
    """
    final = os.path.abspath(final)
    parent, name = os.path.split(final)
    os.makedirs(parent, exist_ok=True)
    for left in subfolders(parent):
        pid = left.removeprefix(f".{name}.partial-")
        if pid != left and not _runs(pid):
            remove(os.path.join(parent, left))
    partial = os.path.join(parent, f".{name}.partial-{os.getpid()}")
    old = os.path.join(parent, f".{name}.old-{os.getpid()}")
    remove(partial)
    os.makedirs(partial)
    try:
        yield partial
        if os.path.lexists(final):
            os.rename(final, old)
        os.rename(partial, final)
        remove(old)
    finally:
        remove(partial)


def remove(folder: str | os.PathLike) -> None:
    """Removes a folder, to which threads that were interrupted may still be writing."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(0.1)


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True
