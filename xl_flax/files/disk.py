"""Room on disks."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator

from xl_flax.errors import UserError

FULL = os.strerror(errno.ENOSPC)
SPARE_BYTES = 64 << 20  # beside what is going to be written


def check_room(folder: str | os.PathLike, needed: int, what: str) -> None:
    """Sees to it that there is room before something is written.

    Args:
      folder: on the disk in question; it or a folder above it exists.
      needed: bytes.
      what: is going to be written, for the message.

    Raises:
      UserError: naming the folder, what is free and what is needed.
    """
    there = os.path.abspath(folder)
    while not os.path.exists(there):
        there = os.path.dirname(there)
    free = shutil.disk_usage(there).free
    if free < needed + SPARE_BYTES:
        raise UserError(
            f"no room in {os.fspath(folder)}: {what} needs {size(needed + SPARE_BYTES)}, and "
            f"{size(free)} are free. Make room, or choose a folder on another disk"
        )


def is_full(error: BaseException) -> bool:
    """Whether an error, or what led to it, says that a disk is full."""
    seen = []
    while error is not None and error not in seen:
        # TensorStore's errors are ValueErrors; quotas count as full disks.
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or FULL in str(error):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def naming_full_disk(folder: str | os.PathLike, what: str, needed: int | None = None) -> Iterator:
    """Turns the error of a full disk, of whatever type, into one that names the folder.

    Args:
      folder: what was written to.
      what: was being written.
      needed: bytes, where it is known.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        much = f", which needs {size(needed)}," if needed else ""
        raise UserError(
            f"the disk of {os.fspath(folder)} is full: {what}{much} could not be written; what "
            "was complete before is untouched. Make room, and run the same command again"
        ) from error


def size(count: int) -> str:
    """Bytes for people: "3.4 GB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"
