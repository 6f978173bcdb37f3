"""A run whose folder is remote: what comes down before it goes on, and what goes up meanwhile."""

import contextlib
import json
import os
import secrets
import sys
import threading
from collections.abc import Iterable, Iterator

from xl_flax.checkpoints import intact
from xl_flax.checkpoints import remote as checkpoints
from xl_flax.checkpoints.remote import BEST_FILE, PART_FILE, Place
from xl_flax.errors import UserError, message
from xl_flax.files import remote
from xl_flax.files.folders import entries
from xl_flax.files.mirror import Mirror
from xl_flax.files.read import read_json
from xl_flax.parallel import distributed

# What is small and belongs to a run; caches, too, may lie in its folder.
ENDINGS = (".gin", ".txt", ".jsonl")
FOLDERS = ("metrics", "predictions", "tables")
TRACES = "profile"  # large, and read by people only: they go up and do not come down
DERIVED = os.path.join("metrics", "evaluated")  # drawn anew from results.jsonl, under other names
BEST = f"{intact.FOLDER}/{BEST_FILE}"
LOG_SECONDS = 30.0  # between two uploads of what a run logs: a store has the whole file each time


def place() -> Place:
    """Which process this is, of a start that all of them make together."""
    return Place(*distributed.place(), distributed.on_first(lambda: secrets.randbits(31)))


def mirror(run: str) -> Mirror:
    """What a run logs and what its results are, here and in the store; nothing is copied yet.

    Raises:
      UserError: what is known of the folder is damaged.
    """
    return Mirror(run, lambda: _small_files(run))


def pull(run: Mirror, ours: bool = False) -> None:
    """Fetches the small files of a run; see `Mirror.pull`.

    Raises:
      UserError: the store cannot be read.
    """
    there = {n: e for n, e in remote.beside(run.where).items() if n.endswith(ENDINGS)}
    for folder in FOLDERS:
        found = remote.files(f"{run.where}/{folder}")
        there |= {f"{folder}/{name}": entry for name, entry in found.items()}
    there[BEST] = remote.entry(f"{run.where}/{BEST}")
    there = {n: e for n, e in there.items() if not n.startswith(f"{DERIVED}/")}
    here = (name for name in _small_files(run.folder) if not name.startswith(f"{TRACES}/"))
    run.pull(dict.fromkeys(here) | there, ours)


def _small_files(run: str) -> Iterator[str]:
    for name in entries(run):
        if name.endswith(ENDINGS) and os.path.isfile(os.path.join(run, name)):
            yield name
    for folder in (*FOLDERS, TRACES):
        for where, _, names in os.walk(os.path.join(run, folder)):
            inside = os.path.relpath(where, run)
            if not inside.startswith(DERIVED):
                yield from (os.path.join(inside, n) for n in names if not n.startswith("."))
    if os.path.isfile(os.path.join(run, BEST)):
        yield BEST


@contextlib.contextmanager
def following(run: str) -> Iterator[None]:
    """A block that trains a remote run in its stage, which is up to date when it begins.

    What it logs goes up now and then, and at the end. All processes of the run call this together;
    each has a stage of its own.

    Args:
      run: the stage; no other process of this machine may use it meanwhile.

    Raises:
      UserError: the store cannot be read and written; at the end, too.
    """
    where, here = remote.address(run), place()
    print(f"{where}: kept in {run} while it trains", file=sys.stderr, flush=True)
    remote.try_rights(where)
    ahead = checkpoints.ahead(run)
    small = mirror(run)
    pull(small, ours=bool(ahead))
    if _agreed(ahead, here):
        for checkpoint in ahead:
            print(f"uploading {remote.address(checkpoint)}", file=sys.stderr, flush=True)
            checkpoints.push(checkpoint, here)
    else:
        for checkpoint in ahead:
            print(
                f"WARNING: {checkpoint} is a part of which other parts are gone; moved to "
                f"{intact.put_aside(checkpoint)}",
                file=sys.stderr,
            )
    checkpoints.bring_newest(run)
    if here.index:  # what is logged is process 0's
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_push_now_and_then, args=(small, stop), daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        stop.set()
        thread.join()
        with contextlib.suppress(UserError):  # the other error says more
            small.push()
        raise
    stop.set()
    thread.join()
    push(small)


@contextlib.contextmanager
def following_results(homes: Iterable[str]) -> Iterator[None]:
    """A block that adds to results, of which those of remote runs go up when it ends.

    Args:
      homes: folders of results; nothing is done for those that are only local.

    Raises:
      UserError: a store cannot be read or written.
    """
    writes = distributed.place()[0] == 0
    mirrors = [mirror(home) for home in homes if remote.address(home)]
    for each in mirrors:
        if writes:  # what would be found out at the end
            remote.try_rights(each.where)
        pull(each)
    try:
        yield
    finally:
        for each in mirrors if writes else ():
            push(each)


def push(run: Mirror) -> None:
    """Uploads the small files of a run that have changed.

    Raises:
      UserError: they cannot be uploaded.
    """
    try:
        run.push()
    except UserError as error:
        raise UserError(
            f"logs and results could not be uploaded: {message(error)}. They are in {run.folder}; "
            "the same command on this machine uploads them"
        ) from error


def _push_now_and_then(run: Mirror, stop: threading.Event) -> None:
    while not stop.wait(LOG_SECONDS):
        try:
            run.push()
        except (UserError, OSError) as error:  # a file was renamed, or the network is away
            print(f"WARNING: logs are not uploaded now: {error}", file=sys.stderr, flush=True)


def _agreed(ahead: list[str], here: Place) -> bool:
    """Whether what the stages of all processes are ahead by makes whole checkpoints."""
    parts = []
    for checkpoint in ahead:
        path = os.path.join(checkpoint, PART_FILE)
        part = read_json(path) if os.path.exists(path) else {"index": 0, "count": 1}
        parts.append([int(os.path.basename(checkpoint)), part])
    fits = all(part == {"index": here.index, "count": here.count} for _, part in parts)
    named = json.dumps([step for step, _ in parts])
    everywhere = distributed.gather("ahead", [named, fits])
    return all(other == [named, True] for other in everywhere)
