"""TensorBoard files of a run."""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from xl_flax.evaluation.base import scalar_name
from xl_flax.evaluation.results import Row
from xl_flax.files.folders import new_folder
from xl_flax.files.lock import locked


@contextlib.contextmanager
def _absent(module: str) -> Iterator[None]:
    """As if a module were not installed, unless it has been imported."""
    hidden = module not in sys.modules
    if hidden:
        sys.modules[module] = None
    try:
        yield
    finally:
        if hidden:
            del sys.modules[module]


with _absent("torch"):  # half of all imports of a command, and there are no tensors here
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar, text

FLUSH_SECONDS = 30.0
FOLDER = "metrics"  # in a run's folder
EVALUATED = "evaluated"  # in that: results of checkpoints, which TensorBoard draws as another run


class Board:
    """Writes values by step in the thread that trains.

    tensorboardX's `SummaryWriter` leaves that to a thread of its own. On a full disk it dies with a
    traceback, and whoever has more to write waits for it for ever.
    """

    def __init__(self, folder: str, step: int) -> None:
        """Opens a new file; what older ones hold from this step on is hidden.

        Raises:
          OSError: it cannot be written, as of the other functions.
        """
        os.makedirs(folder, exist_ok=True)
        self._events = EventsWriter(os.path.join(folder, "events"))
        self._flushed = time.monotonic()
        self._add(step, file_version="brain.Event:2")
        self._add(step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Adds numbers, which become curves, and texts."""
        for key, value in values.items():
            summary = text(key, value) if isinstance(value, str) else scalar(key, value)
            self._add(step, summary=summary)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._events.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes what is still in memory."""
        self._events.close()

    def _add(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(step=step, wall_time=time.time(), **content))


def write_results(home: str, rows: Iterable[Row]) -> None:
    """Writes results of checkpoints as curves, which replace those that were there.

    They have the names of what a run logs while it trains, so that both are in one chart.

    Args:
      home: the folder of the results.
      rows: its lines; of pairs of languages only their means are curves.
    """
    values: dict[int, dict[str, float]] = {}
    for row in rows:
        if row.model is None and len(set(row.languages)) == 1:
            values.setdefault(row.step, {})[scalar_name(row)] = row.value
    if not values:
        return
    busy = f"waiting for another process that writes curves in {home}"
    with (
        locked(home, busy, wait=True, name=".curves.lock"),
        new_folder(os.path.join(home, FOLDER, EVALUATED)) as folder,
    ):
        board = Board(folder, 0)
        for step in sorted(values):
            board.write(step, values[step])
        board.close()
