"""Several processes as one run: joining, waiting for each other, being told to stop."""

import argparse
import contextlib
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax

from xl_flax import settings, stopping
from xl_flax.errors import UserError, message
from xl_flax.files.read import read_text
from xl_flax.files.write import write_atomically
from xl_flax.parallel import agreement, cluster, relay, rollcall
from xl_flax.parallel.peers import Peers

T = TypeVar("T")
JOIN_SECONDS = 50.0  # with Python's start below a minute
# JAX's own limit while it connects them: by then `peers.py` has named whoever is gone or hangs.
CONNECT_SECONDS = 120
SILENCE_SECONDS = 600  # likewise while they run: JAX would abort, with a C++ stack
SHARED_FILE, SHARED_SECONDS = ".shared", 5.0  # in which a file system shows what was written
NOWHERE = cluster.Place(None, None, None)
_joined: list[Peers] = []  # the others; none where this process is alone


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags with which a process says which run it belongs to."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="join the other processes of a TPU pod, a Slurm job or mpirun, which are recognised",
    )
    group.add_argument("--coordinator", help="host:port of process 0, where nothing else tells it")
    group.add_argument("--num_processes", type=int, help="with --coordinator: how many there are")
    group.add_argument("--process_id", type=int, help="with --coordinator: which one this is")
    group.add_argument(
        "--join_seconds",
        type=float,
        default=os.environ.get("XL_FLAX_JOIN_SECONDS", JOIN_SECONDS),
        help=f"how long to wait for the others; {JOIN_SECONDS:g}, or XL_FLAX_JOIN_SECONDS",
    )


@contextlib.contextmanager
def excused(argv: Sequence[str]) -> Iterator[None]:
    """What comes before `joined`, as reading flags and Gin files: where it fails, the others hear.

    They would wait for this process, and not know why it does not come.

    Args:
      argv: the command's flags, of which those of `add_flags` say where the others are.

    Raises:
      SystemExit: in place of an error of the user, which is printed at once.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        ends_well = isinstance(error, SystemExit) and error.code in (0, None, stopping.CODE)
        if ends_well or (found := _place_of(argv)) is None:
            raise
        place, seconds = found
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, SystemExit):
            why = "its flags are wrong; see its output"
        elif isinstance(error, UserError):
            why = message(error)
            print(f"error: {why}", file=sys.stderr, flush=True)
        rollcall.excuse(*place, seconds, why)
        if isinstance(error, UserError):
            raise SystemExit(1) from error
        raise


def _place_of(argv: Sequence[str]) -> tuple[cluster.Place, float] | None:
    """The place in a run of several, and how long to wait for the others; None: there are none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_flags(parser)
    try:
        args, _ = parser.parse_known_args(argv)
        place = cluster.Place(args.coordinator, args.num_processes, args.process_id)
        if args.distributed:
            place = cluster.find(place, args.join_seconds)
    except (argparse.ArgumentError, UserError):
        return None
    there = None not in place and 0 <= place.index < place.count > 1 and not _joined
    return (place, args.join_seconds) if there else None


@contextlib.contextmanager
def joined(args: argparse.Namespace) -> Iterator[None]:
    """A command in the run that its flags name; must come before any other use of JAX's devices.

    An error in it ends the other processes, too, each with one line.

    Raises:
      UserError: flags that say only half, or nonsense; processes that are missing or stop, or that
        have other settings or other code.
    """
    _join(args)
    peers = _peers()
    if peers is None:
        yield
        return
    try:
        agree(agreement.command_facts(args))
        yield
        peers.leave()
    except BaseException as error:
        peers.failed(error)
        raise


def _join(args: argparse.Namespace) -> None:
    given = cluster.Place(args.coordinator, args.num_processes, args.process_id)
    if not args.distributed and given != NOWHERE and None in given:
        raise UserError("--coordinator, --num_processes and --process_id belong together: give all")
    settings.check("--num_processes", given.count, settings.Count | None)
    settings.check("--process_id", given.index, settings.Natural | None)
    settings.check("--join_seconds", args.join_seconds, settings.Positive)
    if _joined:
        _joined[0].begin()
    elif args.distributed or given != NOWHERE:
        place = cluster.find(given, args.join_seconds)
        if place.index >= place.count:
            raise UserError(f"--process_id={place.index}: numbers go from 0 to {place.count - 1}")
        if place.count > 1:
            _joined.append(_connect(place, args.join_seconds))


def _connect(place: cluster.Place, seconds: float) -> Peers:
    address, count, index = place
    links, hosts = rollcall.join(address, count, index, seconds)
    peers = Peers(index, links, hosts)
    host, port = rollcall.split_address(address)
    try:
        # JAX's own handler of SIGTERM would take the place of ours.
        with contextlib.suppress(AttributeError):  # a version of JAX that has no such setting
            jax.config.update("jax_enable_preemption_service", False)
        near = relay.start("127.0.0.1" if index == 0 else host, port)
        jax.distributed.initialize(
            f"127.0.0.1:{near}",
            count,
            index,
            coordinator_bind_address=f"[::]:{port}",  # which `rollcall` has left to JAX
            initialization_timeout=max(int(seconds), CONNECT_SECONDS),
            heartbeat_timeout_seconds=SILENCE_SECONDS,
        )
    except BaseException as error:
        peers.failed(error)
        raise
    return peers


def _peers() -> Peers | None:
    return _joined[0] if _joined else None


def place() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    peers = _peers()
    return (peers.index, peers.count) if peers else (0, 1)


def agree(facts: agreement.Facts) -> None:
    """Sees to it that all processes have the same settings, code or data.

    Args:
      facts: by name, as a person would read them.

    Raises:
      UserError: naming what differs, and on which process; on all of them.
    """
    peers = _peers()
    if peers is None or len(set(peers.gather("agree", agreement.digest(facts)))) == 1:
        return
    lines = agreement.differences(peers.gather("differences", facts))
    raise UserError(
        f"the processes differ: {'; '.join(lines)}. Start the same command on all, with the same "
        "code and the same files"
    )


def check_shared(folder: str, name: str) -> None:
    """Sees to it that all processes see the same folder, which exists on process 0.

    Args:
      folder: where each of them has it.
      name: of the setting that names it.

    Raises:
      UserError: naming the processes that see another one; on all.
    """
    peers = _peers()
    if peers is None:
        return
    path = os.path.join(folder, SHARED_FILE)
    if peers.index == 0:
        write_atomically(path, secrets.token_hex(16))
    written = peers.gather(path, read_text(path) if peers.index == 0 else None)[0]
    deadline = time.monotonic() + SHARED_SECONDS
    while not (sees := _holds(path, written)) and time.monotonic() < deadline:
        time.sleep(0.1)
    blind = [number for number, seen in enumerate(peers.gather("seen", sees)) if not seen]
    if peers.index == 0:
        os.remove(path)
    if blind:
        raise UserError(
            f"{name} = {folder!r} is not one folder for all: what process 0 writes there, "
            f"{agreement.named(blind)} cannot read. Put it on a file system that all hosts have"
        )


def _holds(path: str, text: str) -> bool:
    try:
        return read_text(path) == text
    except UserError:
        return False


def gather(name: str, value: Any) -> list[Any]:
    """What JSON can hold, of every process, to all of them."""
    peers = _peers()
    return peers.gather(name, value) if peers else [value]


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if peers := _peers():
        peers.gather(name)


def first_process_first(name: str, function: Callable[[], T]) -> T:
    """Runs `function` on process 0, then, when it is done, on the others; what it returns."""
    first = jax.process_index() == 0
    result = function() if first else None
    barrier(name)
    return result if first else function()


def decide_on_first(decision: bool) -> bool:
    """The decision of process 0, for all: where each would compute it alone, they might differ."""
    peers = _peers()
    return peers.gather("decide_on_first", bool(decision))[0] if peers else decision


def any_process(decision: bool) -> bool:
    """Whether any process has decided so."""
    peers = _peers()
    return any(peers.gather("any_process", bool(decision))) if peers else decision


def on_first(function: Callable[[], int | None]) -> int:
    """What `function` returns on process 0, the only one that runs it, to all; None counts as 0.

    Raises:
      UserError: it raised one, which all processes raise.
    """
    peers = _peers()
    if peers is None:
        return function() or 0
    value, error = 0, None
    if peers.index == 0:
        try:
            value = int(function() or 0)
        except UserError as raised:
            error = message(raised)
    value, error = peers.gather("on_first", [value, error])[0]
    if error is not None:
        raise UserError(error)
    return value


def stop_here() -> bool:
    """Whether to stop at this place, where what was done can be saved; all processes agree.

    All of them must pass the same places in the same order.
    """
    peers = _peers()
    return peers.stop_here() if peers else stopping.asked()


def may_stop_here() -> None:
    """A place of an evaluation, in which nothing is saved.

    Raises:
      Stopped: all processes stop here.
    """
    if stop_here():
        raise stopping.Stopped
