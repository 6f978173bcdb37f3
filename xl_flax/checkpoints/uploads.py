"""Uploads of checkpoints while a run trains: in a thread, one after the other."""

import os
import threading
from collections.abc import Callable, Sequence

from xl_flax.checkpoints import intact
from xl_flax.checkpoints.intact import CHECKSUMS_FILE, FOLDER
from xl_flax.checkpoints.remote import Place, push, steps, whole, withdraw
from xl_flax.errors import UserError, message
from xl_flax.files import remote

POLL = 0.2  # seconds between two looks whether a checkpoint is complete on this disk


class Uploads:
    """Uploads the checkpoints of a run, one after the other, while it trains."""

    def __init__(
        self, run: str, keeps: Callable[[Sequence[int]], list[bool]], place: Place
    ) -> None:
        """Nothing is begun yet.

        Args:
          run: its stage.
          keeps: whether each of some steps, oldest first, stays.
          place: of this process.
        """
        self._run, self._keeps, self._place = run, keeps, place
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._stop = threading.Event()
        self._known = set(whole(steps(run)))
        self._step = 0

    def start(self, step: int) -> None:
        """Uploads the checkpoint of a step once it is complete on this disk; `wait` comes first."""
        self._step = step
        self._stop.clear()
        self._thread = threading.Thread(target=self._upload, args=(step,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Blocks until what was started is in the store.

        Raises:
          UserError: it could not be uploaded.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            reason = message(error) if isinstance(error, UserError) else str(error)
            raise UserError(
                f"the checkpoint of step {self._step:,} could not be uploaded: {reason}. It is in "
                f"{self._path(self._step)}; the same command on this machine uploads it and goes "
                "on"
            ) from error

    def close(self) -> None:
        """Gives up what waits for a checkpoint that is not complete, or for other processes."""
        self._stop.set()

    def withdraw(self, step: int) -> None:
        """Moves a checkpoint out of the way in the store, too."""
        names = steps(self._run).get(step)
        if names:
            withdraw(self._run, step, names, intact.SET_ASIDE)

    def _path(self, step: int) -> str:
        return os.path.join(self._run, FOLDER, str(step))

    def _upload(self, step: int) -> None:
        try:
            while not os.path.exists(os.path.join(self._path(step), CHECKSUMS_FILE)):
                if self._stop.wait(POLL):
                    return
            if self._place.index == 0:
                self._check_alone()
            push(self._path(step), self._place, self._stop.is_set)
            self._known.add(step)
            if self._place.index == 0:
                self.prune()
        except Exception as error:  # `wait` raises it in the thread that trains
            self._error = error

    def _check_alone(self) -> None:
        """A store has no locks: another machine is known by what it has saved."""
        if others := sorted(set(whole(steps(self._run))) - self._known):
            raise UserError(
                f"another process trains {remote.shown(self._run)}, too: it has saved step "
                f"{others[-1]:,} there. End one of them"
            )

    def prune(self) -> None:
        """Deletes the checkpoints that need not stay, and what is left of uploads cut off."""
        found = steps(self._run)
        complete = whole(found)
        kept = {s for s, keep in zip(complete, self._keeps(complete), strict=True) if keep}
        for step, names in found.items():
            if step not in kept and complete and step < complete[-1]:
                withdraw(self._run, step, names)
