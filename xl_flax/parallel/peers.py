"""What the processes of a run tell one another while it goes on.

Over the connections of `rollcall.py`, of which process 0 has the other ends, they exchange values
(`gather`), say why they stop, and notice when one dies: then its end closes. One that hangs is
noticed by its silence. Whoever learns this prints one line and ends, also where it waits in a
collective for the one that is gone.
"""

import atexit
import sys
import threading
import time
from typing import Any, NoReturn

from xl_flax import stopping
from xl_flax.errors import LostError, UserError, device_failed, message
from xl_flax.parallel.agreement import named
from xl_flax.parallel.rollcall import Link

BEAT = 5.0  # seconds between two signs of life
# So many beats in which nothing is heard of a process are a minute. Python code that does not let
# other threads run for some seconds, or a busy machine, is no hanging process yet.
BEATS = 12
PATIENCE = 300.0  # seconds after which process 0 says whom it waits for, which may take long
GONE = "is gone: killed, or its host is lost"

GRACE = 2.0  # seconds in which a process may say itself why it ends
NEWS = 10.0  # seconds in which the others' end explains an error here,
SOON = 1.0  # and one that names a reason itself
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
        self._code = 1  # with which it then ends
        self._unheard = dict.fromkeys(links, 0)  # beats since another process was heard of
        self._leaving = False  # it ends by itself: what becomes of the others is not told any more
        # Places where all could stop, which each process passes in the same order; see `stop_here`.
        self._passed = 0
        self._announced: int | None = None  # how many it had passed when it was asked
        self._announcements: dict[int, int] = {}  # on process 0, of all
        self._stop_at: int | None = None
        stopping.tell(self._asked)
        for number, link in links.items():
            threading.Thread(target=self._listen, args=(number, link), daemon=True).start()
        threading.Thread(target=self._beat, name="beats", daemon=True).start()

    def gather(self, name: str, value: Any = None) -> list[Any]:
        """Waits until all processes are here, and returns what each has given, by process.

        Args:
          name: of this place, which must be the same on all.
          value: as JSON can hold it.

        Raises:
          UserError: a process has stopped; LostError, if it is gone or hangs.
        """
        with self._news:
            call, self._calls = self._calls, self._calls + 1
        self._give(self.index, call, name, value)
        with self._news:
            while not self._news.wait_for(lambda: call in self._answers or self._lost, PATIENCE):
                if given := self._given.get(call):
                    absent = [number for number in range(self.count) if number not in given]
                    print(f"still waiting for {named(absent)} at {name!r}", file=sys.stderr)
            if call not in self._answers:
                self._leave_lost()
            return self._answers.pop(call)

    def stop_here(self) -> bool:
        """Whether all processes stop at this place, because one of them was asked to.

        All must pass the same places in the same order. When one is asked, each says how many it
        has passed, in a thread of its own, and goes no further than the next one until it knows
        where to stop: at the first place that none has passed.

        Raises:
          UserError: a process has stopped.
        """
        with self._news:
            self._passed += 1
            if self._announced is None:
                return False
            self._news.wait_for(lambda: self._stop_at is not None or self._lost)
            if self._stop_at is None:
                self._leave_lost()
            return self._passed >= self._stop_at

    def _leave_lost(self) -> NoReturn:
        self._leaving = True
        if self._code == stopping.CODE:
            raise stopping.Stopped
        raise (LostError if self._code == stopping.LOST else UserError)(self._lost)

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
        why, code, seconds = type(error).__name__, 1, NEWS
        if isinstance(error, stopping.Stopped):
            code, seconds = stopping.CODE, 0.0
        elif isinstance(error, UserError):
            why, seconds = message(error), SOON
        elif isinstance(error, OSError | KeyboardInterrupt):
            seconds = SOON
        elif device_failed(error):
            # A chip; or a collective whose other end is gone, or hangs, which is known later.
            code, seconds = stopping.LOST, BEAT * (BEATS + 2)
        if why == type(error).__name__ and str(error):
            why += f": {str(error).splitlines()[0]}"
        with self._news:  # perhaps it only failed because another process is missing
            self._news.wait_for(lambda: self._lost, seconds)
            known, self._leaving = self._leaving, True
        follows = bool(self._lost) and code != stopping.CODE
        if follows:
            code = self._code
        # JAX would wait for the others before it ends.
        atexit.register(stopping.end, code)
        threading.Thread(target=_end_later, args=(code,), daemon=True).start()
        if not self._lost:
            self._tell(self.index, f"has stopped: {why}", code)
        elif follows and not known and why not in self._lost:
            self._leave_lost()

    def _tell(self, process: int, why: str, code: int) -> None:
        for number, link in self._links.items():
            if number != process:
                link.send(stopped=process, why=why, code=code)

    def _asked(self) -> None:
        """This process was asked to stop: all hear of it, and say where they are."""
        if self.index:
            self._links[0].send(ask=True)
        else:
            self._ask_all()

    def _ask_all(self) -> None:
        for link in self._links.values():
            link.send(ask=True)
        self._announce()

    def _announce(self) -> None:
        with self._news:
            if self._announced is not None:
                return
            self._announced = self._passed
        if self.index:
            self._links[0].send(passed=self._announced)
        else:
            self._announcement(0, self._announced)
        stopping.ask()

    def _announcement(self, process: int, passed: int) -> None:
        with self._news:
            self._announcements[process] = passed
            if len(self._announcements) < self.count:
                return
        stop_at = max(self._announcements.values()) + 1
        for link in self._links.values():
            link.send(stop_at=stop_at)
        self._agreed(stop_at)

    def _agreed(self, stop_at: int) -> None:
        with self._news:
            self._stop_at = stop_at
            self._news.notify_all()

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
            self._stopped(0, f"has stopped: the processes have parted: process {places}", 1)
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
            self._unheard[number] = 0
            if "gather" in said:
                self._give(number, said["gather"], said["name"], said["value"])
            elif "gathered" in said:
                self._answer(said["gathered"], said["name"], said["values"])
            elif "stopped" in said:
                self._stopped(said["stopped"], said["why"], said["code"])
            elif "ask" in said:
                self._announce() if self.index else self._ask_all()
            elif "passed" in said:
                self._announcement(number, said["passed"])
            elif "stop_at" in said:
                self._agreed(said["stop_at"])
        self._stopped(number, GONE, stopping.CODE if stopping.asked() else stopping.LOST)

    def _beat(self) -> None:
        """Says that this process lives, and notices whoever says nothing, though nothing closed.

        Counted in beats, not by the clock: a process that was itself suspended, as with its whole
        machine, could not hear what the others said.
        """
        while True:
            time.sleep(BEAT)
            for number, link in self._links.items():
                link.send(beat=True)
                self._unheard[number] += 1
                if self._unheard[number] > BEATS:
                    seconds = f"{BEAT * BEATS:g} s"
                    silent = f"has not been heard of for {seconds}: it hangs, or its host does"
                    self._stopped(number, silent, stopping.LOST)

    def _stopped(self, process: int, reason: str, code: int) -> None:
        """A process says that it stops, or is gone without a word: so does this one, in a line."""
        who = f"process {process} of {self.count} ({self._hosts[process]})"
        if code == stopping.CODE:
            reason = "was asked to stop"
        with self._news:
            if self._leaving or self._lost:
                return
            self._lost = f"{who} {reason}; the same command goes on from the last checkpoint"
            self._code = code
            self._news.notify_all()
        if not self.index:
            self._tell(process, reason, code)
        with self._news:
            if self._news.wait_for(lambda: self._leaving, GRACE):
                return
        error = "" if code == stopping.CODE else "error: "
        print(f"{error}{self._lost}", file=sys.stderr, flush=True)
        stopping.end(code)


def _end_later(code: int) -> None:
    threading.Event().wait(LEAVE)
    stopping.end(code)
