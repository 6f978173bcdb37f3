"""Leases: which of several processes does what, in a folder that they share.

A lease is a file that its holder touches now and then. Its name ends in a number: whoever takes the
work of a process that died makes the file of the next number, which one of several succeeds in, so
no locks of the file system are needed.
"""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator

from xl_flax.files.folders import entries

BEAT, EXPIRED = 5.0, 60.0  # seconds between two touches, and without one until a lease is free


@contextlib.contextmanager
def lease(folder: str, name: str) -> Iterator[bool]:
    """Yields whether `name` is this process's until the block ends.

    It is not while another process holds it that lives: on this machine, that runs; on another
    one, that has touched the file within `EXPIRED` seconds of the file system's clock.

    Args:
      folder: where leases lie; it is made if it is missing, and removed when it is empty.
      name: of what is done, a file's name without a dot.
    """
    held = _take(folder, name)
    if held is None:
        yield False
        return
    stop = threading.Event()
    beat = threading.Thread(target=_touch, args=(held, stop), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        stop.set()
        beat.join()
        for path in _existing(folder, name):
            if _number(path) <= _number(held):
                with contextlib.suppress(OSError):
                    os.unlink(path)
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _take(folder: str, name: str) -> str | None:
    there = _existing(folder, name)
    if there and _lives(there[-1]):
        return None
    path = os.path.join(folder, f"{name}.{_number(there[-1]) + 1 if there else 1}")
    while True:
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return None
        except FileNotFoundError:  # another process has just removed the empty folder
            os.makedirs(folder, exist_ok=True)
        else:
            with os.fdopen(file, "w") as opened:
                json.dump({"machine": _machine(), "process": os.getpid()}, opened)
            return path


def _existing(folder: str, name: str) -> list[str]:
    """The files of a lease, the last one taken at the end."""
    names = [n for n in entries(folder) if n.rpartition(".")[0] == name]
    paths = [os.path.join(folder, n) for n in names if n.rpartition(".")[2].isdecimal()]
    return sorted(paths, key=_number)


def _number(path: str) -> int:
    return int(path.rpartition(".")[2])


def _lives(path: str) -> bool:
    try:
        age = _clock(os.path.dirname(path)) - os.stat(path).st_mtime
        with open(path, encoding="utf-8") as file:
            holder = json.load(file)
        here = holder["machine"] == _machine() and not _runs(holder["process"])
    except FileNotFoundError:  # given back in between
        return False
    except (ValueError, KeyError, TypeError):  # is being written, or was when its writer died
        here = False
    return age < EXPIRED and not here


def _clock(folder: str) -> float:
    """Now, by the clock that the file system's times are of."""
    path = os.path.join(folder, f".clock-{_machine()}-{os.getpid()}")
    with contextlib.suppress(OSError):
        with open(path, "w"):
            pass
        os.utime(path)
        now = os.stat(path).st_mtime
        os.unlink(path)
        return now
    raise FileNotFoundError(path)


def _machine() -> str:
    """Names what process numbers are of: a machine, or a container on it."""
    try:
        return f"{socket.gethostname()}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _touch(path: str, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with contextlib.suppress(OSError):  # of a moment, or the lease was taken over
            os.utime(path)
