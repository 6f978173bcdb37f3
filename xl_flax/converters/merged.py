"""Several checkpoints of one shape become one: their mean, or TIES."""

import os
import re

from xl_flax.checkpoints import merging
from xl_flax.checkpoints.load import (
    find_checkpoints,
    one_checkpoint,
    read_description,
    unflatten,
    vocabulary_path,
)
from xl_flax.checkpoints.save import save_checkpoint
from xl_flax.converters.folders import new_folder
from xl_flax.errors import UserError
from xl_flax.evaluation.targets import choose_checkpoints
from xl_flax.files.read import read_bytes
from xl_flax.progress import progress

LAST = re.compile(r"last:(\d+)")


def average(source: str, which: str, target: str) -> list[str]:
    """Writes the mean of a run's checkpoints as a new one.

    Args:
      source: the run's folder.
      which: "last:5", the five newest; "all"; or steps, as in "500,1000".
      target: the folder to write; it must not exist yet.

    Returns:
      The checkpoints.

    Raises:
      UserError: there are no such checkpoints, or one of them is damaged.
    """
    if match := LAST.fullmatch(which):
        every, count = find_checkpoints(source), int(match[1])
        if not 1 < count <= len(every):
            raise UserError(
                f"--average={which}: {source} has {len(every)} checkpoints; say last:2 to "
                f"last:{len(every)}"
            )
        checkpoints = every[-count:]
    else:
        checkpoints = choose_checkpoints(source, which)
    if len(checkpoints) < 2:
        raise UserError(f"--average={which}: a mean needs two or more checkpoints")
    _write(checkpoints, merging.mean, target)
    return checkpoints


def ties(base: str, others: list[str], target: str) -> list[str]:
    """Writes what TIES makes of models that were trained on from another one.

    Args:
      base: the run or checkpoint that they come from.
      others: runs or checkpoints, two or more; ":best" behind a run is its best one.
      target: the folder to write; it must not exist yet.

    Returns:
      The checkpoints, that of the base first.

    Raises:
      UserError: they are no such models.
    """
    if len(others) < 2:
        raise UserError("--ties needs two or more models, as in --ties=runs/a,runs/b")
    checkpoints = [one_checkpoint(path) for path in (base, *others)]
    _write(checkpoints, merging.ties(checkpoints), target)
    return checkpoints


def _write(checkpoints: list[str], how: merging.Merge, target: str) -> None:
    newest = checkpoints[-1]
    description = read_description(newest)
    shapes = merging.shapes_of(checkpoints)
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in shapes.values())
    vocabulary = vocabulary_path(newest)
    with new_folder(target, needed) as folder, progress(needed, "merging", "bytes") as done:
        params = merging.merge(checkpoints, how, done)
        files = {
            "model.json": description.to_json(),
            os.path.basename(vocabulary): read_bytes(vocabulary),
        }
        save_checkpoint(folder, unflatten(params), files)
