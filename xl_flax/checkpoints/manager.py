"""Checkpoints of a run: Orbax, asynchronous and atomic, each complete in itself.

`MODEL_DIR/checkpoints/STEP/` holds three items: `params` and `optimizer` (sharded arrays) and
`model`, plain files: `model.json`, which describes the encoder, the vocabulary file,
`progress.json`, where the run was, and `settings.json`, all that was set. A folder gets its final
name only when all of it is written, and `checksums.json` of it (see `intact.py`).

`MODEL_DIR/checkpoints/best.json` says which checkpoint is the best so far (`TrainConfig.best`): its
step, the metric and its value. The file is written when that checkpoint is complete, at the next
save or at the end, and before the one that it named last is deleted, so the checkpoint that it
names is there at any time.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from xl_flax.checkpoints import apart, intact
from xl_flax.checkpoints.intact import MODEL, OPTIMIZER, PARAMS, PROGRESS_FILE
from xl_flax.checkpoints.remote import BEST_FILE, PART_FILE, Place
from xl_flax.checkpoints.remote_run import place
from xl_flax.checkpoints.threads import raise_only
from xl_flax.checkpoints.uploads import Uploads
from xl_flax.errors import UserError
from xl_flax.files import remote
from xl_flax.files.disk import check_room, naming_full_disk
from xl_flax.files.read import read_json
from xl_flax.files.write import write_atomically
from xl_flax.parallel.distributed import on_first

# 1: random keys followed from an objective's place in the list, and states had other names.
# 2: other tokens of a row were masked by the same keys; queues of vectors had no keys of texts.
PROGRESS_FORMAT = 3
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
    saved: list[int] = dataclasses.field(default_factory=list)  # steps, whether they are there yet
    # Seconds by what they were spent on, see `training/goodput.py`.
    spent: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        counts = (self.step, self.seed, *dict(self.rows).values())
        if not all(type(count) is int and count >= 0 for count in counts):
            raise TypeError("step, seed and rows must be whole numbers")
        lists = (self.frozen, self.saved)
        if not isinstance(self.window, dict) or not all(isinstance(x, list) for x in lists):
            raise TypeError("window must be an object, frozen and saved lists")
        if not all(type(seconds) in (int, float) for seconds in dict(self.spent).values()):
            raise TypeError("spent must be an object of numbers")
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
                write_atomically(directory / name, content)

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


def progress_path(checkpoint: str) -> str:
    """Where a checkpoint that a run saved says where the run was."""
    return os.path.join(checkpoint, MODEL, PROGRESS_FILE)


def read_progress(checkpoint: str) -> Progress:
    """Where the run was when it saved this checkpoint folder.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = progress_path(checkpoint)
    try:
        return Progress(**read_json(path))
    except TypeError as error:
        raise UserError(f"{path} is damaged ({first_line(error)})") from error


def read_best(directory: str) -> dict[str, Any] | None:
    """What `checkpoints/best.json` says; None if there is none.

    Raises:
      UserError: it is damaged.
    """
    path = os.path.join(directory, BEST_FILE)
    if not os.path.lexists(path):
        return None
    mend = "delete it; a run that goes on writes it again"
    best = read_json(path, mend)
    if type(best.get("step")) is not int:
        raise UserError(f"{path} is damaged (no step): {mend}")
    return best


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def kept(last: int | None, every: int | None, best: bool) -> str:
    """Which checkpoints of a run stay, in words for whoever starts it.

    Args:
      last: `TrainConfig.keep_last`.
      every: `TrainConfig.keep_every`.
      best: whether the run looks for its best checkpoint.
    """
    if last is None:
        return "all checkpoints stay (TrainConfig.keep_last = None)"
    those = [f"the newest {f'{last:,}' if last > 1 else 'one'} (TrainConfig.keep_last)"]
    if every:
        those.append(f"those at multiples of {every:,} steps (TrainConfig.keep_every)")
    if best:
        those.append("the best one (TrainConfig.best)")
    return f"checkpoints that stay: {', '.join(those)}; older ones are deleted while it trains"


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


def _wait_for_others(key: str, timeout_ms: int) -> None:
    """Orbax's threads wait here for those of other processes, and after an error, too: not then."""
    if (error := sys.exc_info()[1]) is not None:
        raise error
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


class CheckpointManager:
    """Saves and restores a run's checkpoints; a thin layer over Orbax's manager."""

    def __init__(
        self, model_dir: str, keep_last: int | None = None, keep_every: int | None = None
    ) -> None:
        """Opens a run's `checkpoints/`, of which all must be complete: see `intact.newest`.

        Args:
          model_dir: the run's folder.
          keep_last: how many of the newest stay; None: all.
          keep_every: those at multiples of this step stay, too. So does the best one.
        """
        raise_only()
        self.directory = os.path.join(os.path.abspath(model_dir), intact.FOLDER)
        self._marked = read_best(self.directory)
        marked = set() if self._marked is None else {self._marked["step"]}
        self._preservation = _Preservation(keep_last, keep_every, marked)
        self._unmarked: dict[str, Any] | None = None  # the best one, until `wait` has marked it
        self._saving: int | None = None  # the step that is being saved, until `wait` has seen it
        stage = remote.address(self.directory) is not None
        self._place = place() if stage else Place()
        keeps = self._preservation.keeps
        self._uploads = Uploads(os.path.abspath(model_dir), keeps, self._place) if stage else None
        self._needed = 0  # bytes, of that
        # Chunks are written as they are: compression makes them 8 % smaller and saving takes twice
        # as long.
        own, whole = (apart.arrays, apart.manager()) if self._place.count > 1 else (dict, {})
        arrays = lambda: ocp.PyTreeCheckpointHandler(  # noqa: E731
            use_ocdbt=False, use_compression=False, **own()
        )
        handlers = {PARAMS: arrays(), OPTIMIZER: arrays(), MODEL: _FilesHandler()}
        options = ocp.CheckpointManagerOptions(
            **whole,
            preservation_policy=self._preservation,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._write_checksums, barrier_sync_fn=_wait_for_others
            ),
        )
        os.makedirs(self.directory, exist_ok=True)
        try:
            self._manager = ocp.CheckpointManager(
                self.directory, options=options, item_handlers=handlers
            )
        except (ValueError, TypeError) as error:  # of a file without which it does
            raise UserError(
                f"one of {self.directory}/*/_CHECKPOINT_METADATA is damaged ({first_line(error)}): "
                "delete it, nothing needs it"
            ) from error

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint, which may still be being saved."""
        return self._manager.latest_step()

    def path(self, step: int) -> str:
        """Where the checkpoint of a step is."""
        return os.path.join(self.directory, str(step))

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

        Raises:
          UserError: there is no room for it, or the one before could not be written.
        """
        self.wait()  # Orbax would wait, too: one checkpoint is written at a time
        self.expect_best(progress.best)
        step, what = progress.step, f"the checkpoint of step {progress.step:,}"
        self._needed = sum(x.nbytes for x in jax.tree.leaves((params, optimizer)))
        on_first(lambda: check_room(self.directory, self._needed, what))
        self._saving = step
        record = json.dumps(dataclasses.asdict(progress), indent=1).encode()
        items = ocp.args.Composite(
            params=ocp.args.PyTreeSave(params),
            optimizer=ocp.args.PyTreeSave(optimizer),
            model=_FilesSave({**files, PROGRESS_FILE: record}),
        )
        with naming_full_disk(self.directory, what, self._needed):
            started = self._manager.save(step, args=items)
        if not started:
            self._saving = None
            raise UserError(f"{what} is older than that of step {self.newest:,}, which is there")
        if self._uploads:
            self._uploads.start(step)

    def restore(self, step: int, params: Any, optimizer: Any) -> tuple[Any, Any]:
        """Reads one checkpoint into the layout of abstract arrays (`jax.ShapeDtypeStruct`).

        Raises:
          UserError: the checkpoint, whose files are intact, has other arrays.
        """
        return self._restore(step, PARAMS, params), self._restore(step, OPTIMIZER, optimizer)

    def _restore(self, step: int, item: str, layout: Any) -> Any:
        path = os.path.join(self.path(step), item)
        try:
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
                return checkpointer.restore(path, args=ocp.args.StandardRestore(layout))
        except Exception as error:  # Orbax raises bare ones, too
            reason = "its arrays are not those of this run: restore the settings it was saved with"
            if not os.path.exists(os.path.join(self.path(step), intact.CHECKSUMS_FILE)):
                reason = "it was saved without checksums and may be damaged: an older one may not"
            raise UserError(f"{path} cannot be restored ({first_line(error)}); {reason}") from error

    def expect_best(self, best: dict[str, Any] | None) -> None:
        """Keeps the checkpoint of `Progress.best`, which is marked once it is complete."""
        if best is None or best["step"] is None:
            return
        mark = {key: best[key] for key in sorted(BEST_FIELDS)}
        if mark != self._marked:
            self._unmarked = mark
            self._preservation.best.add(mark["step"])

    def wait(self) -> None:
        """Blocks until everything started is on disk and marked, and deletes what need not stay.

        Of a remote run it is in the store then.

        Raises:
          UserError: the disk is full, or the checkpoint is not there all the same; or it could not
            be uploaded.
        """
        step = self._saving
        try:
            with naming_full_disk(self.directory, f"the checkpoint of step {step}", self._needed):
                self._manager.wait_until_finished()
        finally:
            self._saving = None
        if step is not None and not os.path.exists(f"{self.path(step)}/{intact.CHECKSUMS_FILE}"):
            raise UserError(f"{self.path(step)} was written, but is not there: check the disk")
        if self._uploads:
            self._uploads.wait()
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
        if self._uploads and self._place.index == 0:
            self._uploads.prune()

    def close(self) -> None:
        """Finishes and marks what was started, and frees the manager's threads.

        Raises:
          UserError: as `wait`.
        """
        try:
            self.wait()
        finally:
            if self._uploads:
                self._uploads.close()
            with contextlib.suppress(Exception):  # of other writes of a save that failed
                self._manager.close()

    def put_aside(self, step: int) -> str:
        """Moves a checkpoint out of the run's way; returns where it is now. Process 0 only."""
        self.wait()
        if self._uploads:
            self._uploads.withdraw(step)
        path = intact.put_aside(self.path(step))
        self._manager.reload()
        return path

    def _write_checksums(self) -> None:
        """Orbax calls this, when all is written, before it renames the folder.

        It does so on process 0; on each where each has a folder of its own.
        """
        folder = self.path(self._saving) + ocp.utils.TMP_DIR_SUFFIX
        if self._place.count > 1:
            part = {"index": self._place.index, "count": self._place.count}
            write_atomically(os.path.join(folder, PART_FILE), json.dumps(part))
        intact.write_checksums(folder)

    def _mark(self, mark: Mapping[str, Any]) -> None:
        content = json.dumps(mark, indent=1) + "\n"
        write_atomically(os.path.join(self.directory, BEST_FILE), content)
        if self._uploads:  # before the one that it named last is deleted
            remote.write(f"{remote.address(self.directory)}/{BEST_FILE}", content.encode())
