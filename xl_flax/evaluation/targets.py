"""What is evaluated: checkpoints that are found, and where the results of each belong."""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.load import (
    best_checkpoint,
    find_checkpoints,
    gone,
    read_description,
)
from xl_flax.errors import UserError
from xl_flax.evaluation import results as results_lib
from xl_flax.evaluation.results import Source
from xl_flax.text_table import wrapped


class Target(NamedTuple):
    """A checkpoint whose description could be read."""

    checkpoint: str  # its folder
    home: str  # the folder of its results
    description: Description
    source: Source


def read(checkpoint: str, home: str) -> Target:
    """Reads what a checkpoint says of itself.

    Raises:
      UserError: it is damaged.
    """
    description = read_description(checkpoint)
    source = results_lib.checkpoint_source(checkpoint, description.step)
    return Target(checkpoint, home, description, source)


def homes(checkpoints: Iterable[str], output: str | None) -> dict[str, str]:
    """Where the results of each checkpoint go.

    That is its run's folder. Or a folder in `output` that is called as the run's folder and the one
    above it, as in "mlm/0", with more of the path where two runs would share a name.
    """
    runs = {checkpoint: results_lib.run_folder(checkpoint) for checkpoint in checkpoints}
    if output is None:
        return runs
    names, count = {}, 1
    while len({*names.values()}) < len({*runs.values()}):
        count += 1
        names = {run: os.path.join(*run.split(os.sep)[-count:]) for run in runs.values()}
    return {k: os.path.join(os.path.abspath(output), names[run]) for k, run in runs.items()}


def choose_checkpoints(path: str, which: str) -> list[str]:
    """The checkpoint folders that `--checkpoint` asks for, oldest first.

    Args:
      path: a run's folder, its `checkpoints/`, or one checkpoint.
      which: "latest", "best" (that the run marked by `TrainConfig.best`), "all", or steps as in
        "500,1000".

    Raises:
      UserError: there is no such checkpoint.
    """
    if which == "best":
        return [best_checkpoint(path)]
    checkpoints = find_checkpoints(path)
    if which == "all":
        if deleted := gone(path):
            print(
                wrapped(
                    f"{path}: {len(deleted)} more were saved and deleted while it trained "
                    f"(TrainConfig.keep_last): steps {_listed(deleted)}"
                )
            )
        return checkpoints
    if which == "latest":
        return checkpoints[-1:]
    if len(checkpoints) == 1:  # which may have any name
        names = [str(read_description(checkpoints[0]).step)]
    else:  # others may be damaged
        names = [os.path.basename(checkpoint) for checkpoint in checkpoints]
    by_step = dict(zip(names, checkpoints, strict=True))
    steps = [step.strip() for step in which.split(",")]
    if missing := [step for step in steps if step not in by_step]:
        raise UserError(
            f"--checkpoint={which}: no checkpoint of step {', '.join(missing)} under {path}; "
            f'there are {", ".join(by_step)}; or say "latest", "best" or "all"'
        )
    return [by_step[step] for step in sorted(steps, key=int)]


def _listed(steps: Sequence[int]) -> str:
    shown = [f"{step:,}" for step in steps]
    return ", ".join(shown if len(shown) < 8 else [*shown[:3], "…", *shown[-3:]])
