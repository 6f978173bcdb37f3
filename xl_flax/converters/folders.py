"""Folders of models: new ones that appear only when all of them is written, and JSON in them."""

import contextlib
import errno
import glob
import json
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

from xl_flax.errors import UserError
from xl_flax.files.read import read_json
from xl_flax.files.write import write_atomically

MEND = "fetch it again"
FULL = os.strerror(errno.ENOSPC)
SPARE_BYTES = 64 << 20  # beside the weights


@contextlib.contextmanager
def new_folder(target: str, needed: int) -> Iterator[str]:
    """A folder to write to, which becomes `target` when the block ends without an error.

    Args:
      target: must not exist yet, or be empty.
      needed: bytes that will be written.

    Raises:
      UserError: it holds something, or the disk has not enough room.
    """
    target = os.path.realpath(target)
    parent = os.path.dirname(target)
    if os.path.exists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise UserError(f"{target} exists already; nothing is overwritten: choose another --target")
    os.makedirs(parent, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if free < needed + SPARE_BYTES:
        raise UserError(
            f"{parent} has {free / 1e9:,.1f} GB free, and {target} needs {needed / 1e9:,.1f} GB"
        )
    for left in glob.glob(f"{glob.escape(target)}.partial-*"):  # by a process that was killed
        if not _runs(left.rpartition("-")[2]):
            _remove(left)
    partial = f"{target}.partial-{os.getpid()}"
    os.makedirs(partial)
    try:
        yield partial
        os.rename(partial, target)
    except (OSError, ValueError) as error:  # TensorStore's are ValueErrors
        if getattr(error, "errno", None) != errno.ENOSPC and FULL not in str(error):
            raise
        raise UserError(f"the disk of {target} is full; nothing was left there") from error
    finally:
        _remove(partial)


def _remove(folder: str) -> None:
    """Removes a folder to which threads that were interrupted may still be writing."""
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


def optional_json(folder: str, name: str) -> dict[str, Any]:
    """The same of a file that need not be there: {}."""
    path = os.path.join(folder, name)
    return read_json(path, MEND) if os.path.exists(path) else {}


def write_json(path: str, content: Any) -> None:
    """Writes a JSON file, in Unicode."""
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False))
