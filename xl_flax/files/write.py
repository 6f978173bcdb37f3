"""Writing files that are there whole or not at all."""

import os
from collections.abc import Iterable


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Replaces a file in one step, so that a kill leaves the old content or the new one.

    The content is on the disk before the file gets its name. The folder is made if it is missing.

    Raises:
      OSError: the file cannot be written; what was there before is unchanged.
    """
    path = os.path.abspath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # Hidden, and with the process's number: two writers do not share a temporary file.
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if os.path.exists(temporary):
            os.remove(temporary)
        if isinstance(error, OSError):
            error.filename, error.filename2 = path, None  # not the temporary one's name
        raise


def write_parts(path: str | os.PathLike, parts: Iterable[bytes | memoryview]) -> None:
    """Writes a new file, part by part: one too large for memory, in a folder not complete yet.

    Raises:
      OSError: it cannot be written.
    """
    with open(path, "wb") as file:
        for part in parts:
            file.write(part)
            del part  # gone before the next one comes
