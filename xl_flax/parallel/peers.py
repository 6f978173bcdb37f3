"""What the processes of a run tell one another while it goes on.

Over the connections of `rollcall.py`, of which process 0 has the other ends, they exchange values
(`gather`), say why they stop, and notice when one dies: then its end closes. Whoever learns this
prints one line and ends, also where it waits in a collective for the one that is gone.
"""

import atexit
import os
import sys
import threading
from typing import Any

from xl_flax.errors import UserError, message
from xl_flax.parallel.rollcall import Link

GRACE = 2.0  # seconds in which a process may say itself why it ends
NEWS = 10.0  # seconds in which the others' end explains an error here
LEAVE = 15.0  # seconds in which a process that failed is to be gone
END = "the end"


class Peers:
    """The other processes of the run.

    Attributes:
      index: number of this process.
      count: of processes.
    """

    def __init__(self, index: int, links: dict[int, Link], hosts: dict[int, str]) -> None:
        self.index, self.count = index, len(hosts)
        self._links, self._hosts = links, hosts
        self._news = threading.Condition()
        self._calls = 0  # of `gather`
        self._given: dict[int, dict[int, tuple[str, Any]]] = {}  # on process 0, by call and process
        self._answers: dict[int, list[Any]] = {}  # by call
        self._lost = ""  # why this process is to end
        self._leaving = False  # it ends by itself: what becomes of the others is not told any more
        for number, link in links.items():
            threading.Thread(target=self._listen, args=(number, link), daemon=True).start()

    def gather(self, name: str, value: Any = None) -> list[Any]:
        """Waits until all processes are here, and returns what each has given, by process.

        Args:
          name: of this place, which must be the same on all.
          value: as JSON can hold it.

        Raises:
          UserError: a process has stopped.
        """
        with self._news:
            call, self._calls = self._calls, self._calls + 1
        self._give(self.index, call, name, value)
        with self._news:
            self._news.wait_for(lambda: call in self._answers or self._lost)
            if call not in self._answers:
                self._leaving = True
                raise UserError(self._lost)
            return self._answers.pop(call)

    def begin(self) -> None:
        """Another command begins with the same processes."""
        self._leaving = False

    def leave(self) -> None:
        """Waits until all have come to their end; from then on they may go.

        Raises:
          UserError: a process has stopped.
        """
        self.gather(END)

    def failed(self, error: BaseException) -> None:
        """Tells the others that an error ends this process; they end, too.

        Raises:
          UserError: the error follows from the end of another process, which is the reason.
        """
        own = isinstance(error, UserError | KeyboardInterrupt)
        with self._news:
            if not own:  # perhaps a collective, in which another process was missing
                self._news.wait_for(lambda: self._lost, NEWS)
            leaving, self._leaving = self._leaving, True
        # JAX would wait for the others before it ends.
        atexit.register(os._exit, 1)
        threading.Thread(target=_end, args=(LEAVE,), daemon=True).start()
        if self._lost:
            if not leaving and not own:
                raise UserError(self._lost) from error
            return
        why = message(error) if isinstance(error, UserError) else type(error).__name__
        if not own and str(error):
            why += f": {str(error).splitlines()[0]}"
        self._tell(self.index, why)

    def _tell(self, process: int, why: str) -> None:
        for number, link in self._links.items():
            if number != process:
                link.send(stopped=process, why=why)

    def _give(self, process: int, call: int, name: str, value: Any) -> None:
        """Takes note of what a process gives, on process 0; elsewhere hands it on to that."""
        if self.index:
            self._links[0].send(gather=call, name=name, value=value)
            return
        with self._news:
            given = self._given.setdefault(call, {})
            given[process] = name, value
            if len(given) < self.count:
                return
            del self._given[call]
        places = {place for place, _ in given.values()}
        if len(places) > 1:
            places = ", ".join(f"{k} at {given[k][0]!r}" for k in sorted(given))
            self._stopped(0, f"the processes have parted: process {places}")
            return
        values = [given[number][1] for number in range(self.count)]
        for link in self._links.values():
            link.send(gathered=call, name=name, values=values)
        self._answer(call, name, values)

    def _answer(self, call: int, name: str, values: list[Any]) -> None:
        with self._news:
            self._answers[call] = values
            self._leaving |= name == END
            self._news.notify_all()

    def _listen(self, number: int, link: Link) -> None:
        """Reads what another process sends, until it is gone."""
        while said := link.receive():
            if "gather" in said:
                self._give(number, said["gather"], said["name"], said["value"])
            elif "gathered" in said:
                self._answer(said["gathered"], said["name"], said["values"])
            elif "stopped" in said:
                self._stopped(said["stopped"], said["why"])
        self._stopped(number, "")

    def _stopped(self, process: int, why: str) -> None:
        """A process says that it stops, or is gone without a word: so does this one, in a line."""
        who = f"process {process} of {self.count} ({self._hosts[process]})"
        reason = f"has stopped: {why}" if why else "is gone: killed, out of memory, or its host is"
        with self._news:
            if self._leaving or self._lost:
                return
            self._lost = f"{who} {reason}; the same command goes on from the last checkpoint"
            self._news.notify_all()
        if not self.index:
            self._tell(process, why)
        with self._news:
            if self._news.wait_for(lambda: self._leaving, GRACE):
                return
        print(f"error: {self._lost}", file=sys.stderr, flush=True)
        _end(0)


def _end(seconds: float) -> None:
    """Ends this process after so many seconds, whatever it waits for."""
    if seconds:
        threading.Event().wait(seconds)
    sys.stdout.flush()
    os._exit(1)
