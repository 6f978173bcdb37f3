"""Checkpoints of remote runs: to their store, and from it to the stage.

A remote checkpoint is whole if, and only if, its `checksums.json` is there: that goes up last, and
is deleted first. What comes down is compared with it. Of several processes each has a stage, and
in it the shards that it wrote; it uploads these and then says so by an object of its own; when all
have, process 0 writes `checksums.json` for all.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from xl_flax.checkpoints import intact
from xl_flax.checkpoints.intact import CHECKSUMS_FILE, FOLDER, MODEL, PARAMS
from xl_flax.errors import UserError, message
from xl_flax.files import remote
from xl_flax.files.checksums import checksums
from xl_flax.files.folders import remove
from xl_flax.files.mirror import alone
from xl_flax.files.read import read_bytes, read_json
from xl_flax.files.write import write_atomically

ARRIVING = ".arriving"  # beside checkpoints: files of a checkpoint that is not whole yet
PART_FILE = "part.json"  # in the checkpoint of one of several processes, which is a part of it
POLL = 2.0  # seconds between two looks for what other processes upload
BEST_FILE = "best.json"
FOREIGN = ("config.json", "modules.json")  # in models of others


class Place(NamedTuple):
    """Which of the processes of a run this is."""

    index: int = 0
    count: int = 1
    run: int = 0  # a number that all processes of this start have, and no others


# ---- What is there


def steps(run: str) -> dict[int, list[str]]:
    """The files of each step that a remote run has in its store, whole or not, oldest first.

    Args:
      run: the stage of the run.

    Raises:
      UserError: the store cannot be read.
    """
    found: dict[int, list[str]] = {}
    for path in remote.files(f"{remote.address(run)}/{FOLDER}"):
        step, slash, name = path.partition("/")
        if slash and step.isdecimal():
            found.setdefault(int(step), []).append(name)
    return dict(sorted(found.items()))


def whole(found: Mapping[int, Sequence[str]]) -> list[int]:
    """The steps whose checkpoints are complete, oldest first."""
    return [step for step, names in found.items() if CHECKSUMS_FILE in names]


# ---- From the store


def pull(checkpoint: str, items: Sequence[str] = intact.ITEMS) -> None:
    """Makes items of a checkpoint what they are in the store; what is right is not fetched again.

    Args:
      checkpoint: its stage.
      items: those that will be read.

    Raises:
      remote.DamagedError: what is in the store is not whole.
      UserError: the store cannot be read.
    """
    with alone(os.path.dirname(checkpoint)):
        _pull(checkpoint, items)


def _pull(checkpoint: str, items: Sequence[str]) -> None:
    where = remote.address(checkpoint)
    content = remote.read(f"{where}/{CHECKSUMS_FILE}")
    expected = _parsed(content, f"{where}/{CHECKSUMS_FILE}")
    _make_room_for(checkpoint, expected)
    arriving = os.path.join(os.path.dirname(checkpoint), ARRIVING, os.path.basename(checkpoint))
    there = remote.files(where)
    wanted = {k: v for k, v in expected.items() if k.startswith(tuple(f"{i}/" for i in items))}
    if gone := sorted(wanted.keys() - there.keys()):
        raise remote.DamagedError(f"{where}/{gone[0]} is gone from the store")
    lacking = _lacking(checkpoint, wanted)
    missing = _lacking(arriving, lacking)
    if missing:
        size = sum(there[name].size for name in missing)
        print(f"fetching {where} ({size / 1e6:,.1f} MB)", file=sys.stderr, flush=True)
    for _ in range(2):  # what was damaged on its way comes again
        remote.download(where, arriving, {name: there[name] for name in missing})
        missing = _lacking(arriving, missing)
        if not missing:
            break
    if missing:
        raise remote.DamagedError(f"{where}/{next(iter(missing))} is not what was written")
    os.makedirs(arriving, exist_ok=True)
    if os.path.isdir(checkpoint):
        for name in lacking:
            os.makedirs(os.path.dirname(os.path.join(checkpoint, name)), exist_ok=True)
            os.replace(os.path.join(arriving, name), os.path.join(checkpoint, name))
        write_atomically(os.path.join(checkpoint, CHECKSUMS_FILE), content)
        remove(arriving)
        remove(os.path.join(checkpoint, PART_FILE))
    else:
        for name in set(_names(arriving)) - wanted.keys():  # of another one of this step
            os.remove(os.path.join(arriving, name))
        write_atomically(os.path.join(arriving, CHECKSUMS_FILE), content)
        os.makedirs(os.path.dirname(checkpoint), exist_ok=True)
        os.rename(arriving, checkpoint)


def _parsed(content: bytes | None, name: str) -> dict[str, str]:
    try:
        value = json.loads(content or b"")
        if not (isinstance(value, dict) and all(isinstance(v, str) for v in value.values())):
            raise ValueError("no JSON object of checksums")
    except ValueError as error:
        raise remote.DamagedError(f"{name} is missing or damaged ({error})") from None
    return value


def _make_room_for(checkpoint: str, expected: Mapping[str, str]) -> None:
    """Puts a checkpoint of the same step aside that holds something else."""
    path = os.path.join(checkpoint, CHECKSUMS_FILE)
    if not os.path.lexists(path):  # a vocabulary alone may have come before
        return
    try:
        own = read_json(path)
    except UserError:
        own = {"": ""}  # whatever it is, it is no part of the other one
    if any(expected.get(name) != value for name, value in own.items()):
        print(
            f"WARNING: {checkpoint} is not what {remote.address(checkpoint)} is; moved to "
            f"{intact.put_aside(checkpoint)}",
            file=sys.stderr,
        )


def _lacking(folder: str, expected: Mapping[str, str]) -> dict[str, str]:
    """Those of some files that are not in a folder as they should be."""
    here = [name for name in expected if os.path.isfile(os.path.join(folder, name))]
    now = checksums(folder, here)
    return {name: value for name, value in expected.items() if now.get(name) != value}


def _names(folder: str) -> list[str]:
    return [
        os.path.relpath(os.path.join(where, name), folder)
        for where, _, names in os.walk(folder)
        for name in names
    ]


def bring(path: str, which: str = "latest") -> None:
    """Fetches what evaluation and conversion read of the checkpoints under a path.

    Args:
      path: a run's folder, its `checkpoints/`, or one checkpoint; nothing is done for one that is
        not the stage of an address.
      which: "latest", "best", "all", or steps as in "500,1000".

    Raises:
      UserError: the store cannot be read, or what is there is damaged.
    """
    where = remote.address(path)
    if where is None:
        return
    path = os.path.abspath(path)
    if os.path.basename(path) == FOLDER:
        path = os.path.dirname(path)
    there = whole(steps(path))
    if not there:
        if remote.entry(f"{where}/{CHECKSUMS_FILE}"):
            pull(path, (MODEL, PARAMS))
        elif any(remote.entry(f"{where}/{name}") for name in FOREIGN):
            there = remote.files(where)
            here = {n for n in there if os.path.isfile(os.path.join(path, n))}
            remote.download(where, path, {n: e for n, e in there.items() if n not in here})
        return
    if which == "best":
        best = remote.read(f"{remote.address(path)}/{FOLDER}/{BEST_FILE}")
        if best is not None:
            write_atomically(os.path.join(path, FOLDER, BEST_FILE), best)
            step = _best_step(best)
            there = [step] if step in there else []
    elif which == "latest":
        there = there[-1:]
    elif which != "all":
        asked = {part.strip() for part in which.split(",")}
        there = [step for step in there if str(step) in asked]
    for step in there:
        pull(os.path.join(path, FOLDER, str(step)), (MODEL, PARAMS))


def _best_step(content: bytes) -> int | None:
    try:
        return json.loads(content)["step"]
    except (ValueError, KeyError, TypeError):  # whoever reads the file says so
        return None


def ahead(run: str) -> list[str]:
    """Checkpoints of a stage that are intact and newer than all of the store, oldest first."""
    newest = max(whole(steps(run)), default=-1)
    own = [f for f in intact.step_folders(run, FOLDER) if int(os.path.basename(f)) > newest]
    return [folder for folder in own if not intact.problems(folder, _items(folder))]


def _items(checkpoint: str) -> Sequence[str]:
    """Those that a checkpoint has: the part of a process other than 0 has no files of the model."""
    part = os.path.exists(os.path.join(checkpoint, PART_FILE))
    return intact.ITEMS[1:] if part else intact.ITEMS


def bring_newest(run: str) -> None:
    """Fetches, in full, the newest checkpoint of a run that is intact in the store.

    Raises:
      UserError: the store cannot be read; or it has checkpoints, but none is intact.
    """
    there = whole(steps(run))
    damaged = []
    for step in reversed(there):
        try:
            pull(os.path.join(run, FOLDER, str(step)))
            break
        except remote.DamagedError as error:
            damaged.append(message(error))
            print(f"WARNING: {damaged[-1]}", file=sys.stderr, flush=True)
    if damaged and len(damaged) == len(there):
        raise UserError(
            f"no checkpoint of {remote.shown(run)} is intact: {'; '.join(damaged)}. Nothing was "
            "changed: copy one back, or choose another MODEL_DIR to begin again"
        )


# ---- To the store


def push(checkpoint: str, place: Place, stop: Callable[[], bool] = lambda: False) -> None:
    """Uploads a checkpoint, `checksums.json` last, unless the same one is there.

    Args:
      checkpoint: its stage; of several processes the part that each of them wrote.
      place: of this process.
      stop: whether to give up waiting for other processes.

    Raises:
      UserError: the store cannot be written, or another process does not upload its part.
    """
    where, path = remote.address(checkpoint), os.path.join(checkpoint, CHECKSUMS_FILE)
    content = read_bytes(path)
    alone = place.count == 1
    if alone and remote.read(f"{where}/{CHECKSUMS_FILE}") == content:
        return
    if place.index == 0:
        remote.delete(where, [CHECKSUMS_FILE])
    own = [name for name in _names(checkpoint) if name not in (CHECKSUMS_FILE, PART_FILE)]
    if place.index:
        own = [name for name in own if _is_chunk(name)]  # process 0 has the same of the others
    remote.upload(checkpoint, where, own)
    if alone:
        remote.write(f"{where}/{CHECKSUMS_FILE}", content)
        return
    sums = {name: value for name, value in json.loads(content).items() if name in own}
    remote.write(f"{where}/{_part(place, place.index)}", json.dumps(sums).encode())
    if place.index == 0:
        parts = [_wait_for(f"{where}/{_part(place, i)}", stop) for i in range(place.count)]
        merged = {name: value for part in parts for name, value in json.loads(part).items()}
        remote.write(f"{where}/{CHECKSUMS_FILE}", json.dumps(merged, indent=1).encode() + b"\n")
        remote.delete(where, [_part(place, i) for i in range(place.count)])
    else:
        _wait_for(f"{where}/{CHECKSUMS_FILE}", stop)


def _part(place: Place, index: int) -> str:
    return f".part-{place.run}-{index}.json"


def _is_chunk(name: str) -> bool:
    """Whether a file holds a part of an array, and nothing that all processes write alike."""
    last = os.path.basename(name)
    return all(number.isdecimal() for number in last.split("."))


def _wait_for(where: str, stop: Callable[[], bool]) -> bytes:
    while (content := remote.read(where)) is None:
        if stop():
            raise UserError(f"{where} has not come: another process has not uploaded its part")
        time.sleep(POLL)
    return content


def withdraw(run: str, step: int, names: Sequence[str], into: str | None = None) -> None:
    """Deletes a checkpoint from the store, or moves it to another folder of the run there."""
    where = f"{remote.address(run)}/{FOLDER}/{step}"
    first = [CHECKSUMS_FILE] if CHECKSUMS_FILE in names else []
    rest = [name for name in names if name != CHECKSUMS_FILE]
    if into:
        target = f"{remote.address(run)}/{into}/{step}"
        remote.move(where, target, [*first, *rest])
    else:
        remote.delete(where, first)
        remote.delete(where, rest)
