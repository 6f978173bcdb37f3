"""Checkpoints of a run: Orbax, asynchronous and atomic, each complete in itself.

`MODEL_DIR/checkpoints/STEP/` holds three items: `params` and `optimizer` (sharded arrays) and
`model`, plain files: `model.json`, which describes the encoder, the vocabulary file,
`progress.json`, where the run was, and `settings.json`, all that was set. A folder gets its final
name only when all of it is written.

`MODEL_DIR/checkpoints/best.json` says which checkpoint is the best so far (`TrainConfig.best`): its
step, the metric and its value. The file is written as soon as that checkpoint is complete, by a
thread that watches the save, and before the one that it named last is deleted, so the checkpoint
that it names is there at any time.
"""

import asyncio
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from xl_flax.errors import UserError
from xl_flax.files.write import write_atomically

PROGRESS_FILE = "progress.json"
# 1: random keys followed from an objective's place in the list, and states had other names.
PROGRESS_FORMAT = 2
BEST_FILE = "best.json"
BEST_FIELDS = {"step", "metric", "mode", "value"}


@dataclasses.dataclass
class Progress:
    """Where a run was: all that a resumed run must know beside its arrays."""

    step: int
    rows: dict[str, int]  # rows consumed, per objective
    seed: int
    window: dict[str, Any]  # metric sums since the last logged line
    format: int = 1  # PROGRESS_FORMAT when it was written; files of the first one lack it
    # The best evaluation so far, as `training/best.py` keeps it; "step" names its checkpoint, None
    # before there is one.
    best: dict[str, Any] | None = None
    frozen: list[str] = dataclasses.field(default_factory=list)  # parameters that are not trained
    evaluate: bool = False  # the evaluations due after this step are still to be made

    def __post_init__(self):
        counts = (self.step, self.seed, *dict(self.rows).values())
        if not all(type(count) is int and count >= 0 for count in counts):
            raise TypeError("step, seed and rows must be whole numbers")
        if not isinstance(self.window, dict) or not isinstance(self.frozen, list):
            raise TypeError("window must be an object, frozen a list")
        if self.best is not None and not dict(self.best).keys() >= BEST_FIELDS:
            raise TypeError(f"best must have {', '.join(sorted(BEST_FIELDS))}")


class _FilesHandler(ocp.AsyncCheckpointHandler):
    """Writes small files beside the arrays, under the same atomic rename."""

    async def async_save(self, directory: epath.Path, args: "_FilesSave") -> list:
        # The folder is made asynchronously: the write must wait for it, as Orbax's own do.
        return [
            ocp.future.CommitFutureAwaitingContractedSignals(
                self._write(directory, args.files), name="files"
            )
        ]

    async def _write(self, directory: epath.Path, files: Mapping[str, bytes]) -> None:
        if jax.process_index() == 0:
            for name, content in files.items():
                (directory / name).write_bytes(content)

    def save(self, directory: epath.Path, args: "_FilesSave") -> None:
        for future in asyncio.run(self.async_save(directory, args)):
            future.result()

    def restore(self, directory: epath.Path, args: Any = None) -> None:
        raise NotImplementedError("these files are read as files")


@ocp.args.register_with_handler(_FilesHandler, for_save=True)
@dataclasses.dataclass
class _FilesSave(ocp.args.CheckpointArgs):
    files: Mapping[str, bytes]


@ocp.args.register_with_handler(_FilesHandler, for_restore=True)
@dataclasses.dataclass
class _FilesRestore(ocp.args.CheckpointArgs):
    """Orbax asks for it; nothing restores these files through Orbax."""


def read_progress(checkpoint: str) -> Progress:
    """Where the run was when it saved this checkpoint folder.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = os.path.join(checkpoint, "model", PROGRESS_FILE)
    try:
        with open(path, "rb") as file:
            return Progress(**json.load(file))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is missing or damaged ({first_line(error)}); to go on from an older "
            f"checkpoint, move {checkpoint} away"
        ) from error


def read_best(directory: str) -> dict[str, Any] | None:
    """What `checkpoints/best.json` says; None if there is none.

    Raises:
      UserError: it is damaged.
    """
    path = os.path.join(directory, BEST_FILE)
    if not os.path.exists(path):
        return None
    try:
        with open(path, "rb") as file:
            best = json.load(file)
        int(best["step"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}); delete it") from error
    return best


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@dataclasses.dataclass
class _Preservation:
    """Which checkpoints stay, as Orbax asks (`PreservationPolicy`)."""

    last: int | None  # the newest ones; None: all
    every: int | None  # those at multiples of this step
    best: set[int]  # steps of the best one, and of the one before until that is marked

    def keeps(self, steps: Sequence[int]) -> list[bool]:
        """Whether each of the steps, oldest first, stays."""
        recent = set(steps if self.last is None else steps[-self.last :])
        return [
            step in recent | self.best or bool(self.every and step % self.every == 0)
            for step in steps
        ]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any = None) -> list[bool]:
        """As `keeps`, of what Orbax knows of the checkpoints."""
        return self.keeps([checkpoint.step for checkpoint in checkpoints])


class CheckpointManager:
    """Saves and restores a run's checkpoints; a thin layer over Orbax's manager."""

    def __init__(
        self, model_dir: str, keep_last: int | None = None, keep_every: int | None = None
    ) -> None:
        """Opens a run's `checkpoints/`.

        Args:
          model_dir: the run's folder.
          keep_last: how many of the newest stay; None: all.
          keep_every: those at multiples of this step stay, too. So does the best one.
        """
        self.directory = os.path.join(os.path.abspath(model_dir), "checkpoints")
        self._marked = read_best(self.directory)
        marked = set() if self._marked is None else {self._marked["step"]}
        self._preservation = _Preservation(keep_last, keep_every, marked)
        self._unmarked: dict[str, Any] | None = None  # the best one, until `wait` has marked it
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._preservation,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(
        self, params: Any, optimizer: Any, progress: Progress, files: Mapping[str, bytes]
    ) -> None:
        """Starts saving; returns when the arrays may be donated again.

        Args:
          params: parameters, a pytree of sharded arrays.
          optimizer: the optimizer's state and whatever else the step carries.
          progress: where the run is; its step names the checkpoint. Its best checkpoint, this or
            one that was saved before, is kept.
          files: `model.json` and the vocabulary file, by name.
        """
        self.wait()  # Orbax would wait, too: one checkpoint is written at a time
        self.expect_best(progress.best)
        record = json.dumps(dataclasses.asdict(progress), indent=1).encode()
        self._manager.save(
            progress.step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                optimizer=ocp.args.StandardSave(optimizer),
                model=_FilesSave({**files, PROGRESS_FILE: record}),
            ),
        )

    def restore(self, step: int, params: Any, optimizer: Any) -> tuple[Any, Any]:
        """Reads one checkpoint into the layout of abstract arrays (`jax.ShapeDtypeStruct`).

        Raises:
          UserError: the files of the checkpoint are damaged or do not fit these shapes.
        """
        try:
            items = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(params),
                    optimizer=ocp.args.StandardRestore(optimizer),
                ),
            )
        except (ValueError, OSError, KeyError) as error:
            raise UserError(
                f"checkpoint {self.directory}/{step} cannot be restored ({first_line(error)}); to "
                "go on from an older one, move this folder away"
            ) from error
        return items["params"], items["optimizer"]

    def expect_best(self, best: dict[str, Any] | None) -> None:
        """Keeps the checkpoint of `Progress.best`, which is marked once it is complete."""
        if best is None or best["step"] is None:
            return
        mark = {key: best[key] for key in sorted(BEST_FIELDS)}
        if mark != self._marked:
            self._unmarked = mark
            self._preservation.best.add(mark["step"])

    def wait(self) -> None:
        """Blocks until everything started is on disk and marked, and deletes what need not stay."""
        self._manager.wait_until_finished()
        steps = sorted(self._manager.all_steps())
        if self._unmarked is None or self._unmarked["step"] not in steps:
            return
        if jax.process_index() == 0:
            self._mark(self._unmarked)
        self._marked, self._unmarked = self._unmarked, None
        self._preservation.best = {self._marked["step"]}
        for step, kept in zip(steps, self._preservation.keeps(steps), strict=True):
            if not kept:
                self._manager.delete(step)

    def close(self) -> None:
        """Finishes and marks what was started, and frees the manager's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _mark(self, mark: Mapping[str, Any]) -> None:
        content = json.dumps(mark, indent=1) + "\n"
        write_atomically(os.path.join(self.directory, BEST_FILE), content)
