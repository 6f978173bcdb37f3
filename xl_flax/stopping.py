"""Being asked to stop: by SIGTERM, which is what a machine sends before it is taken away.

A command then ends at once with exit code 75: what it has completed stays, and the same command
goes on from there. Where ending at once would lose work (`deferred`), it goes on to the next place
where it can save, and ends there.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

CODE = 75  # EX_TEMPFAIL: run the same command again
LOST = 76  # another process or a machine failed, not this command: it may be run again
GRACE = 10.0  # seconds in which the main thread ends, unless compiled code keeps it
LINE = "asked to stop: what is complete stays, and the same command goes on from there"

_asked = threading.Event()
_deferred = threading.Event()
_listening = threading.Event()
_raised = threading.Event()
_hooks: list[Callable[[], None]] = []  # called when this process is asked
_children: set[subprocess.Popen] = set()


class Stopped(SystemExit):
    """The command ends here, because the machine asks for it."""

    def __init__(self):
        super().__init__(CODE)


def listen() -> None:
    """From now on SIGTERM asks this process to stop; in the main thread only."""
    signal.signal(signal.SIGTERM, _handle)
    # The handler runs in the main thread, and not before compiled code returns; a thread that
    # reads what the signal writes here runs at once.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    _listening.set()


def asked() -> bool:
    """Whether this process is to stop."""
    return _asked.is_set()


def ask() -> None:
    """Asks this process to stop, from any thread."""
    if _listening.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
    _asked.set()


def tell(hook: Callable[[], None]) -> None:
    """Has a function called, in another thread, when this process is asked."""
    _hooks.append(hook)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within this block `asked` must be looked at: nothing ends by itself."""
    _deferred.set()
    try:
        yield
    finally:
        if not _asked.is_set():  # else it is seen to, and the command ends
            _deferred.clear()


@contextlib.contextmanager
def child(process: subprocess.Popen) -> Iterator[None]:
    """Ends another process with the block, or with this process, however that ends."""
    _children.add(process)
    try:
        yield
    finally:
        _children.discard(process)
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            process.kill()


def end(code: int) -> None:
    """Ends this process and its children now, whatever its threads wait for."""
    for process in list(_children):
        process.terminate()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(code)


def _handle(*_) -> None:
    _asked.set()
    if not (_deferred.is_set() or _raised.is_set()):
        _raised.set()
        raise Stopped


def _watch(reader: int) -> None:
    while os.read(reader, 1)[0] != signal.SIGTERM:
        pass
    for hook in _hooks:
        hook()
    if _deferred.is_set():
        return
    threading.Event().wait(GRACE)
    if not _deferred.is_set():
        print(LINE, file=sys.stderr, flush=True)
        end(CODE)
