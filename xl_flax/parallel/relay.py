"""JAX's connection to its coordinator, led through this process.

The coordinator lives in process 0. When that dies, JAX's client aborts within a millisecond, with a
C++ stack, before anything can say what happened. A connection that is led through this process
stays open, and `peers.py` says which process died.
"""

import contextlib
import socket
import threading
import time

BLOCK = 1 << 16
PAUSE = 0.05  # seconds between attempts


def start(host: str, port: int) -> int:
    """Passes on whatever connects to a port of this machine; returns that port."""
    listener = socket.create_server(("127.0.0.1", 0))
    _run(_accept, listener, (host, port))
    return listener.getsockname()[1]


def _run(function, *args) -> None:
    threading.Thread(target=function, args=args, daemon=True).start()


def _accept(listener: socket.socket, address: tuple[str, int]) -> None:
    while True:
        _run(_connect, listener.accept()[0], address)


def _connect(here: socket.socket, address: tuple[str, int]) -> None:
    while True:
        try:
            there = socket.create_connection(address)
            break
        except OSError:  # the coordinator does not listen yet, or is gone
            time.sleep(PAUSE)
    _run(_send, here, there)
    _copy(there, here)
    # What JAX has open here stays so.


def _send(here: socket.socket, there: socket.socket) -> None:
    _copy(here, there)
    with contextlib.suppress(OSError):
        there.shutdown(socket.SHUT_WR)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(BLOCK):
            target.sendall(block)
