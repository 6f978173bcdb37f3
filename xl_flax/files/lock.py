"""Locks between processes of one machine, or of several on a file system that has them."""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator

from xl_flax.errors import UserError


@contextlib.contextmanager
def locked(
    folder: str | os.PathLike, busy: str, wait: bool = False, name: str = ".lock"
) -> Iterator[None]:
    """Keeps other processes out of a folder, which is made if it is missing.

    Args:
      folder: where the lock lies.
      busy: what to say where another process holds it.
      wait: for the other process to end, after saying so; otherwise this is an error.
      name: of the lock, a file.

    Raises:
      UserError: another process holds it, or the folder cannot be written.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        # For reading, too: opening a FIFO of this name for writing would wait for a reader.
        file = os.fdopen(os.open(os.path.join(folder, name), os.O_RDWR | os.O_CREAT, 0o666), "w")
    except OSError as error:
        raise UserError(f"cannot write to {error.filename or folder} ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise UserError(busy) from None
            print(busy, file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # file systems without locks
            print(f"{folder} cannot be locked ({error.strerror})", file=sys.stderr)
        yield
