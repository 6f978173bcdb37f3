"""Whether a checkpoint holds what was written, and which of a run's checkpoints do.

`checksums.json` in a checkpoint's folder is written before the folder gets its final name. It is
compared with what lies there whenever the checkpoint is read: training looks for the newest intact
one and puts newer ones aside; evaluation and conversion stop at a damaged one.
"""

import functools
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence

from xl_flax.checkpoints.description import FORMAT
from xl_flax.errors import UserError
from xl_flax.files.checksums import checksums, differences
from xl_flax.files.folders import entries, is_empty, set_aside
from xl_flax.files.read import read_json
from xl_flax.files.write import write_atomically
from xl_flax.parallel.distributed import on_first

FOLDER = "checkpoints"  # in a run's folder
SET_ASIDE = "set_aside"  # beside it
CHECKSUMS_FILE = "checksums.json"
MODEL, PARAMS, OPTIMIZER = ITEMS = ("model", "params", "optimizer")  # folders in a checkpoint
PROGRESS_FILE = "progress.json"


def write_checksums(checkpoint: str) -> None:
    """Writes `checksums.json` of a checkpoint whose items are all there."""
    there = [item for item in ITEMS if os.path.isdir(os.path.join(checkpoint, item))]
    content = {
        f"{item}/{name}": value
        for item in there
        for name, value in checksums(os.path.join(checkpoint, item)).items()
    }
    write_atomically(os.path.join(checkpoint, CHECKSUMS_FILE), json.dumps(content, indent=1) + "\n")


def problems(checkpoint: str, items: Sequence[str] = ITEMS) -> list[str]:
    """What is wrong with a checkpoint, one line each; [] if it is intact.

    Of a checkpoint that an older version saved, without checksums, only what lacks is found.

    Args:
      checkpoint: its folder.
      items: those that are going to be read.
    """
    if lines := incomplete(checkpoint):
        return lines
    lacking = [os.path.join(checkpoint, item) for item in items]
    lacking = [path for path in lacking if not os.path.isdir(path)]
    path = os.path.join(checkpoint, CHECKSUMS_FILE)
    try:
        if not os.path.lexists(path):
            description = read_json(os.path.join(checkpoint, MODEL, "model.json"))
            if description.get("format") == FORMAT:
                return [f"{path} is missing"]
            _say_unchecked(checkpoint)
            return [f"{path} is missing" for path in lacking]
        expected = read_json(path)
    except UserError as error:
        return [str(error)]
    if lacking:
        return [f"{path} is missing" for path in lacking]
    under = [f"{item}/" for item in items]
    if unknown := [each for each in under if not any(name.startswith(each) for name in expected)]:
        return [f"{path} is damaged (nothing of {', '.join(unknown)})"]
    return differences(checkpoint, expected, under)


def check(checkpoint: str, items: Sequence[str] = (MODEL, PARAMS)) -> None:
    """Sees to it that what is going to be read of a checkpoint is what was written.

    Raises:
      UserError: naming the damaged file, and the newest intact checkpoint beside this one.
    """
    lines = problems(checkpoint, items)
    if not lines:
        return
    others = [p for p in step_folders(checkpoint, "..") if p != os.path.abspath(checkpoint)]
    intact = next((path for path in reversed(others) if not problems(path, items)), None)
    instead = f"the newest intact checkpoint is {intact}" if intact else "none beside it is intact"
    raise UserError(f"{checkpoint} is damaged: {_first(lines)}; {instead}")


def newest(model_dir: str, move: bool = True) -> str | None:
    """The newest intact checkpoint of a run, from which training goes on; None: it begins.

    Process 0 looks for it, and all call this together.

    Args:
      model_dir: the run's folder.
      move: what is newer but damaged, or incomplete, to `set_aside/`; otherwise say so only.

    Raises:
      UserError: there are checkpoints, but none is intact; nothing is moved.
    """
    none = -1

    def look() -> int:
        found = _newest(model_dir, move)
        return none if found is None else int(os.path.basename(found))

    step = on_first(look)
    return None if step == none else os.path.join(os.path.abspath(model_dir), FOLDER, str(step))


def _newest(model_dir: str, move: bool) -> str | None:
    found, bad = None, {}
    for path in reversed(step_folders(model_dir, FOLDER)):
        # Older ones than that which is found are not read.
        lines = incomplete(path) if found else problems(path) or _wrong_step(path)
        if lines:
            bad[path] = lines
        else:
            found = found or path
    if found is None and not all(is_empty(path) for path in bad):
        each = "; ".join(f"{path} ({_first(lines)})" for path, lines in bad.items())
        raise UserError(
            f"no checkpoint of {model_dir} is intact: {each}. Nothing was changed: copy one back, "
            "or choose another MODEL_DIR to begin again"
        )
    for path, lines in bad.items():
        where = f"moved to {put_aside(path)}" if move else "left out"
        print(f"WARNING: {path} is no intact checkpoint: {_first(lines)}; {where}", file=sys.stderr)
    if bad:
        where = f"going on from {found}" if found else "no other is there: the run begins at step 0"
        print(f"WARNING: {where}", file=sys.stderr, flush=True)
    return found


def put_aside(checkpoint: str) -> str:
    """Moves a checkpoint of a run out of its way; returns where it is now."""
    run = os.path.dirname(os.path.dirname(os.path.abspath(checkpoint)))
    return set_aside(checkpoint, os.path.join(run, SET_ASIDE))


def step_folders(*folder: str) -> list[str]:
    """Whatever is named as a step in a folder, complete or not, oldest step first."""
    path = os.path.abspath(os.path.join(*folder))
    numbers = sorted((int(name), name) for name in entries(path) if re.fullmatch("[0-9]+", name))
    return [os.path.join(path, name) for _, name in numbers]


def is_checkpoint(folder: str) -> bool:
    """Whether a folder is a checkpoint, or what damage left of one; half a copy is none."""
    names = os.path.join(MODEL, "model.json"), CHECKSUMS_FILE
    return any(os.path.exists(os.path.join(folder, name)) for name in names)


def incomplete(checkpoint: str) -> list[str]:
    """What shows that something is no checkpoint, or half of one, before its files are read."""
    if not os.path.isdir(checkpoint):
        return [f"{checkpoint} is no folder"]
    if is_empty(checkpoint):
        return [f"{checkpoint} is empty"]
    for entry in os.scandir(checkpoint):  # reading a FIFO waits for ever
        if not (entry.is_file() or entry.is_dir()):
            return [f"{entry.path} is no regular file"]
    return [] if is_checkpoint(checkpoint) else [f"{checkpoint}/{MODEL}/model.json is missing"]


def _wrong_step(checkpoint: str) -> list[str]:
    """Whether a folder was renamed: Orbax counts steps by names."""
    name = os.path.basename(checkpoint)
    try:
        step = read_json(os.path.join(checkpoint, MODEL, PROGRESS_FILE)).get("step")
    except UserError as error:
        return [str(error)]
    return [] if str(step) == name else [f"it is the checkpoint of step {step}, not {name}"]


def _first(lines: Iterable[str]) -> str:
    first, *others = lines
    return first + (f" (and {len(others)} more)" if others else "")


@functools.cache  # once for each
def _say_unchecked(checkpoint: str) -> None:
    print(
        f"note: {checkpoint} cannot be checked: an older version saved it, without checksums",
        file=sys.stderr,
        flush=True,
    )
