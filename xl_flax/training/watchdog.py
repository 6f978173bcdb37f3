"""Ends a run whose step does not end: a broken chip, a host that hangs, a disk that is gone."""

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Iterator

from xl_flax import stopping

OTHERS = 5.0  # seconds in which the other processes, which wait for this one, say where they are


class Watchdog:
    """A thread that sees to it that steps go on; a context, in which it is awake."""

    def __init__(self, seconds: float | None) -> None:
        """Args:
        seconds: that a step may take; None: for ever.
        """
        self._seconds, self._step = seconds, 0
        self._since: float | None = None  # None: it sleeps
        self._ends = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._seconds is not None:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._ends.set()

    def step(self, step: int) -> None:
        """A step begins."""
        self._step, self._since = step, time.monotonic()

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """What takes as long as it takes, as compiling, evaluating and saving."""
        self._since = None
        try:
            yield
        finally:
            self._since = time.monotonic()

    def _watch(self) -> None:
        while not self._ends.wait(min(self._seconds / 4, 10.0)):
            since = self._since
            if since is None or time.monotonic() - since < self._seconds:
                continue
            print(
                f"error: step {self._step:,} has not ended within {self._seconds:g} s "
                "(TrainConfig.stall_seconds): what all threads do is below; the same command goes "
                "on from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
            faulthandler.dump_traceback(all_threads=True)
            self._ends.wait(OTHERS)
            stopping.end(stopping.LOST)
