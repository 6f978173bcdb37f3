"""The processes of a run find one another, before JAX connects them: who is there, and who is not.

Process 0 listens at the coordinator's address. Each of the others connects to it and says which one
it is. When all are there, process 0 stops listening, so that JAX's coordinator can have the port,
and the connections stay open: they carry what `peers.py` says. A process that fails before it can
join comes just to say why (`excuse`).

JAX alone waits for 300 seconds, does not say who is missing, and ends in an abort.
"""

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from xl_flax import stopping
from xl_flax.errors import LostError, UserError, message

LONGEST_LINE = 1 << 26  # bytes
PAUSE = 0.2  # seconds between attempts
HELLO_SECONDS = 2.0  # within which whoever connects says who it is
LATE_SECONDS = 10.0  # in which those that come late hear why there is no run
# Process 0, whose time may have begun later, has the last word on who is missing.
LAST_WORD_SECONDS = 1.0
WAITS_LONGER = "--join_seconds waits longer"
# Of a connection whose other end says nothing: probed after 10 s, given up after 20 s more. The
# kernels do this, whatever the processes are doing.
PROBES = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}


class Link:
    """A connection between two processes that carries lines of JSON."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in PROBES.items():
            if hasattr(socket, name):  # not all systems have all
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._socket = connection
        self._lines = connection.makefile("rb")
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """Sends one object; that the other side is gone is for the reader to find."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None = None) -> dict[str, Any] | None:
        """The next object; None if the other side is gone or is none of ours.

        Raises:
          TimeoutError: there was none within so many seconds.
        """
        try:
            self._socket.settimeout(seconds)  # an error, too, once this side has closed it
            line = self._lines.readline(LONGEST_LINE)
            message = json.loads(line) if line.endswith(b"\n") else None
        except TimeoutError:
            raise
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    @property
    def gone(self) -> bool:
        """Whether the other side has closed it, as far as is known without waiting."""
        readable, _, _ = select.select([self._socket], [], [], 0)
        try:
            return bool(readable) and not self._socket.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def close(self) -> None:
        """Closes it; the other side notices."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._socket.close()


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[::1]:port".

    Raises:
      UserError: it is none.
    """
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise UserError(f"--coordinator={address}: must be HOST:PORT, as in 10.0.0.2:8476")
    return host.strip("[]"), int(port)


def join(
    address: str, count: int, index: int, seconds: float
) -> tuple[dict[int, Link], dict[int, str]]:
    """Waits until all processes of the run are there.

    Args:
      address: host and port of process 0.
      count: of processes.
      index: of this one.
      seconds: how long to wait.

    Returns:
      Connections by process, on process 0 to all others and on these to process 0; and the names
      of all hosts by process.

    Raises:
      LostError: some are missing; on all that came.
      UserError: they do not agree about how many there are, or one says why it fails; on all, too.
    """
    host, port = split_address(address)
    if index:
        link, hosts = _call(host, port, count, index, seconds)
        return {0: link}, hosts
    return _listen(port, count, seconds)


def excuse(address: str, count: int, index: int, seconds: float, why: str) -> None:
    """Tells the other processes why this one does not join them; they end with its reason.

    Args:
      address: host and port of process 0.
      count: of processes.
      index: of this one.
      seconds: how long to wait for them; what they answer is of no interest.
      why: it fails.
    """
    why = f"process {index} of {count} ({socket.gethostname()}) has stopped: {why}"
    with contextlib.suppress(UserError):
        host, port = split_address(address)
        if index:
            _call(host, port, count, index, seconds, failed=why)
        else:
            deadline = time.monotonic() + seconds
            with _listener(port, deadline) as listener:
                _turn_away(listener, count, {0: ""}, deadline, why)


def _missing(missing: list[int], count: int, seconds: float) -> UserError:
    numbers = ", ".join(map(str, missing))
    which = f"process {numbers} is" if len(missing) == 1 else f"processes {numbers} are"
    return LostError(
        f"{len(missing)} of {count} processes did not come within {seconds:g} s: {which} missing; "
        f"see their output ({WAITS_LONGER})"
    )


def _listen(port: int, count: int, seconds: float) -> tuple[dict[int, Link], dict[int, str]]:
    deadline = time.monotonic() + seconds
    links: dict[int, Link] = {}
    hosts = {0: socket.gethostname()}
    with _listener(port, deadline) as listener:
        while len(hosts) < count:
            left = deadline - time.monotonic()
            absent = [number for number in range(count) if number not in hosts]
            for link in links.values():
                link.send(missing=absent)
            try:
                if left <= 0:
                    raise _missing(absent, count, seconds)
                listener.settimeout(left)
                with contextlib.suppress(TimeoutError):
                    link = Link(listener.accept()[0])
                    _admit(link, link.receive(HELLO_SECONDS) or {}, count, links, hosts)
                for number in [number for number in links if links[number].gone]:
                    del links[number], hosts[number]  # it may be started again
            except UserError as error:
                _refuse(links, error)
                if left > 0:
                    late = time.monotonic() + min(left, LATE_SECONDS)
                    _turn_away(listener, count, hosts, late, str(error))
                raise
    for link in links.values():
        link.send(here=hosts)
    return links, hosts


def _refuse(links: dict[int, Link], error: UserError) -> None:
    code = stopping.LOST if isinstance(error, LostError) else 1
    for link in links.values():
        link.send(refused=message(error), code=code)


def _turn_away(
    listener: socket.socket, count: int, hosts: dict[int, str], deadline: float, why: str
) -> None:
    """Tells all that still come why there is no run; until all have come."""
    while len(hosts) < count and (left := deadline - time.monotonic()) > 0:
        links: dict[int, Link] = {}
        listener.settimeout(left)
        with contextlib.suppress(TimeoutError, UserError):
            link = Link(listener.accept()[0])
            _admit(link, link.receive(HELLO_SECONDS) or {}, count, links, hosts)
        _refuse(links, UserError(why))


def _admit(
    link: Link, hello: dict[str, Any], count: int, links: dict[int, Link], hosts: dict[int, str]
) -> None:
    """Takes note of a process that has said which one it is."""
    number, of, host = hello.get("process"), hello.get("of"), hello.get("host")
    if type(number) is not int or type(of) is not int:
        link.close()  # a stranger
        return
    before = links.get(number)
    if before is not None and before.gone:  # it died, and was started again
        before = None
    links[number] = link
    problem = ""
    if of != count:
        problem = f"process {number} on {host} was told of {of} processes, process 0 of {count}"
    elif not 0 < number < count:
        problem = f"a process on {host} has number {number}; they go from 0 to {count - 1}"
    elif before is not None:
        problem = f"two processes have number {number}, on {hosts[number]} and on {host}"
    if problem:
        problem += ": check --num_processes and --process_id"
        if before is not None:
            before.send(refused=problem)
        raise UserError(problem)
    hosts[number] = str(host)
    if "failed" in hello:
        raise UserError(str(hello["failed"]))


@contextlib.contextmanager
def _listener(port: int, deadline: float) -> Iterator[socket.socket]:
    """Listens on all addresses of this host; waits while an earlier run still has the port."""
    family, both = socket.AF_INET, socket.has_dualstack_ipv6()
    if both:
        family = socket.AF_INET6
    while True:
        try:
            server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"process 0 cannot listen at port {port} of this host ({error.strerror}): end "
                    "the run that has it, or name another port in --coordinator"
                ) from error
            time.sleep(PAUSE)
    with server:
        yield server


def _call(
    host: str, port: int, count: int, index: int, seconds: float, **more: str
) -> tuple[Link, dict[int, str]]:
    deadline = time.monotonic() + seconds
    missing, reason = None, "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            link = Link(socket.create_connection((host, port), timeout=min(left, 5.0)))
        except OSError as error:  # also a name that is not known yet
            reason = error.strerror or str(error)
            time.sleep(PAUSE)
            continue
        link.send(process=index, of=count, host=socket.gethostname(), **more)
        with contextlib.suppress(TimeoutError):
            while said := link.receive(max(deadline - time.monotonic(), 0) + LAST_WORD_SECONDS):
                if "refused" in said:
                    lost = said.get("code") == stopping.LOST
                    raise (LostError if lost else UserError)(str(said["refused"]))
                if "here" in said:
                    return link, {int(k): str(v) for k, v in dict(said["here"]).items()}
                missing = said.get("missing")
        link.close()
        reason = "something else answers there, perhaps another run"
        time.sleep(PAUSE)
    if missing:
        raise _missing(missing, count, seconds)
    raise LostError(
        f"process 0 of {count} cannot be reached at {host}:{port} within {seconds:g} s ({reason}): "
        f"see whether it runs and whether this host may connect to it ({WAITS_LONGER})"
    )
