"""Parameters of checkpoints, each of which is read while the one before it is evaluated."""

import concurrent.futures

import jax

from xl_flax.evaluation.base import Subject
from xl_flax.parallel.rules import Partitioning


class Loader:
    """Holds the subject that was asked for last, and the one that is being read ahead.

    Of several processes none reads ahead: they read a checkpoint together, in one order.
    """

    def __init__(self, partitioning: Partitioning):
        self._partitioning = partitioning
        alone = jax.process_count() == 1
        self._thread = concurrent.futures.ThreadPoolExecutor(1) if alone else None
        self._reading: dict[str, concurrent.futures.Future] = {}
        self._held: tuple[str, Subject] | None = None

    def ahead(self, checkpoint: str | None) -> None:
        """Begins to read a checkpoint, unless it is there or another one is being read."""
        held = self._held is not None and self._held[0] == checkpoint
        if self._thread and checkpoint and not held and not self._reading:
            load = self._thread.submit(Subject.load, checkpoint, self._partitioning)
            self._reading[checkpoint] = load

    def get(self, checkpoint: str) -> Subject:
        """The subject of a checkpoint; that of another one is given up.

        Raises:
          UserError: the checkpoint is damaged.
        """
        if self._held is None or self._held[0] != checkpoint:
            self._held = None
            reading = self._reading.pop(checkpoint, None)
            if reading is None:  # another process has taken what was read ahead
                for other in self._reading.values():
                    other.cancel()
                self._reading.clear()
                subject = Subject.load(checkpoint, self._partitioning)
            else:
                subject = reading.result()
            self._held = checkpoint, subject
        return self._held[1]
