"""New folders that appear under their name only when all of them is written."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator

from xl_flax.errors import UserError

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
    target = os.path.abspath(target)
    parent = os.path.dirname(target)
    if os.path.exists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise UserError(f"{target} exists already; nothing is overwritten: choose another --target")
    os.makedirs(parent, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if free < needed + SPARE_BYTES:
        raise UserError(
            f"{parent} has {free / 1e9:,.1f} GB free, and {target} needs {needed / 1e9:,.1f} GB"
        )
    partial = f"{target}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    try:
        yield partial
        os.rename(partial, target)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(f"the disk of {target} is full; nothing was left there") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
