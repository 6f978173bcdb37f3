"""The training loop, top to bottom: set-up, state, then step after step."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gin
import jax

from xl_flax import stopping
from xl_flax.checkpoints.intact import newest as newest_intact
from xl_flax.checkpoints.load import read_description
from xl_flax.checkpoints.manager import PROGRESS_FORMAT, CheckpointManager, Progress, kept
from xl_flax.checkpoints.remote_run import following
from xl_flax.errors import UserError
from xl_flax.files import remote
from xl_flax.files.disk import naming_full_disk
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.distributed import any_process, barrier, check_shared, stop_here
from xl_flax.text_table import shown, wrapped
from xl_flax.training import going_on
from xl_flax.training import state as state_lib
from xl_flax.training.best import BestTracker
from xl_flax.training.checks import check_first_metrics
from xl_flax.training.config import TrainConfig
from xl_flax.training.divergence import diverged, unsaved
from xl_flax.training.dry_run import compile_with_data, compile_without_data
from xl_flax.training.folder import CONFIG_FILE, alone, write_config, write_info
from xl_flax.training.goodput import Goodput, last_logged
from xl_flax.training.logging import Logger, Window, console_line, earlier_lines
from xl_flax.training.periodic import make_periodic
from xl_flax.training.setup import Setup, data_missing, set_up
from xl_flax.training.speed import Speed
from xl_flax.training.watchdog import Watchdog


def train(config: TrainConfig, gin_flags: Sequence[str] = (), dry_run: bool = False) -> bool:
    """Trains the run that `config` describes, from its newest checkpoint on.

    Args:
      config: the run.
      gin_flags: the Gin flags of this command, passed on to the process that builds caches.
      dry_run: compile the step, but run and write nothing; without data, for what is assumed.

    Returns:
      False if the machine asked to stop before the last step; the state is saved.

    Raises:
      UserError: anything that the user can mend; see its message.
    """
    with (
        naming_full_disk(config.model_dir, "what the run logs"),
        contextlib.ExitStack() as stack,  # what is closed at the end, also after an error
    ):
        return _train(config, gin_flags, dry_run, stack)


def _train(
    config: TrainConfig, gin_flags: Sequence[str], dry_run: bool, stack: contextlib.ExitStack
) -> bool:
    main_process = jax.process_index() == 0
    say = print if main_process else lambda *_, **__: None
    begin = time.perf_counter()

    # ---- A remote folder's stage, before anything looks there.
    stage = remote.address(config.model_dir) is not None
    if stage and not dry_run:
        stack.enter_context(alone(config.model_dir))
        stack.enter_context(following(config.model_dir))

    missing = data_missing(config) if dry_run else ""
    if any_process(bool(missing)):
        say(compile_without_data(config, missing))
        return True

    # ---- Mesh, vocabulary, data, model, step.
    setup = set_up(config, gin_flags)
    program, feeds, description = setup.program, setup.feeds, setup.description
    held_out = make_periodic(
        config,
        program.abstract.graph,
        program.partitioning,
        setup.vocabulary,
        description,
        setup.caches,
    )

    # ---- What is there already: nothing, or this very run.
    if main_process and not dry_run and not stage:
        stack.enter_context(alone(config.model_dir))
    if not dry_run and not stage:
        check_shared(config.model_dir, "MODEL_DIR")
    checkpoint = newest_intact(config.model_dir, move=not dry_run)
    progress = state_lib.progress_there(
        checkpoint, config.model_dir, description, config.seed, program.frozen
    )
    resumed = progress is not None
    if resumed:
        items = {"params": program.layout.params, "optimizer": state_lib.pack(program.layout)}
        lines = going_on.check(config, checkpoint, progress.step, items, setup.settings)
        say(f"resuming {remote.shown(config.model_dir)} at step {progress.step:,}")
        say("".join(wrapped(f"  {line}") + "\n" for line in lines), end="")
    else:
        progress = Progress(
            0, dict.fromkeys(feeds, 0), config.seed, {}, PROGRESS_FORMAT, frozen=program.frozen
        )
    first = progress.step
    best = BestTracker(config.best, progress.best)
    from_step, earlier = first if resumed else -1, []
    logged = None
    if main_process:
        logged = last_logged(config.model_dir) if resumed else None
        earlier = earlier_lines(config.model_dir, from_step, not progress.evaluate)
    goodput = Goodput(progress.spent, logged, time.perf_counter() - begin)
    for name, feed in feeds.items():
        feed.rows = progress.rows[name]
    if dry_run:
        say("\n\n".join(_tables(setup, config.steps - first)), compile_with_data(setup), sep="\n")
        return True

    # ---- State: resumed, or fresh, or with another checkpoint's parameters.
    manager = CheckpointManager(config.model_dir, config.keep_last, config.keep_every)
    manager.expect_best(best.record)
    if resumed and (best.exhausted or first == config.steps) and not progress.evaluate:
        manager.wait()
        manager.close()
        say(_done(first, best, config))
        return True
    if resumed:
        description = state_lib.with_history(description, read_description(checkpoint))
        state = state_lib.resume(manager, first, program.layout)
    else:
        params = params_lib.create(program.build, program.partitioning)
        if config.init_from:
            taken = state_lib.init_from(params, config.init_from, description)
            params, message, description = taken
            say(message)
        streams = {name: feed.stream for name, feed in feeds.items()}
        state = state_lib.fresh(
            params, program.optimizer, program.layout, program.objectives, streams
        )
    if main_process:
        if earlier_config := write_config(config.model_dir, first):
            say(f"the configuration up to step {first:,} is now {earlier_config}")
        *data, model = _tables(setup, config.steps - first)
        data_file = write_info(config.model_dir, "data", data)
        model_file = write_info(config.model_dir, "model", [params_lib.table(*program.parameters)])
        say("", *(f"{shown(table, data_file)}\n" for table in data), model, sep="\n")
        say(f"each parameter with its shape and sharding: {model_file}")
    barrier("model_dir")

    # ---- Train.
    logger = Logger(config.model_dir, from_step, earlier, main_process)
    window = Window(progress.window)
    speed = Speed(config.encoder, feeds, config.accumulate)
    say(speed.formula(frozen=bool(program.frozen)))
    say(wrapped(kept(config.keep_last, config.keep_every, config.best is not None)))
    watchdog = stack.enter_context(Watchdog(config.stall_seconds))
    trace = _Trace(config)
    # Objectives whose first step with something to learn is still to be checked.
    unchecked = set() if resumed else set(feeds)
    streak = 0  # steps that were skipped in a row, up to the one that was recorded last
    postponed = False  # saving, until that streak ends
    pending = None  # metrics of the step before, read while this one runs

    @contextlib.contextmanager
    def unwatched(what: str) -> Iterator[None]:
        with goodput.on(what), watchdog.asleep():
            yield

    def record(step: int, metrics: dict[str, Any]) -> None:
        nonlocal streak
        metrics = jax.device_get(metrics)
        check_first_metrics(metrics, feeds, unchecked)
        window.add(metrics)
        streak = int(metrics["step"]["bad_streak"])
        if streak >= config.max_bad_steps:
            raise UserError(diverged(manager, step, streak, first))
        if step % config.log_every == 0 or step == config.steps:
            log(step)

    def log(step: int) -> None:
        values = window.means(feeds) | speed.values()
        logger.write(step, values, goodput.now())
        eta = (config.steps - step) * speed.seconds_per_step
        say(console_line(step, config.steps, values, feeds, eta), flush=True)
        window.sums.clear()

    def announce(step: int, changes: dict[str, Any]) -> None:
        logger.write_phases(step, changes)
        begins = ", ".join(f"{what} {value}" for what, value in changes.items())
        say(f"step {step:,}  from here on: {begins}", flush=True)

    def save(step: int, evaluate: bool) -> None:
        described = dataclasses.replace(description, step=step, chosen_by=best.chosen_by(step))
        rows = {name: feed.rows for name, feed in feeds.items()}
        progress.saved.append(step)
        manager.save(
            state.params,
            state_lib.pack(state),
            Progress(
                *(step, rows, config.seed, window.to_json(), PROGRESS_FORMAT, best.record),
                frozen=program.frozen,
                evaluate=evaluate,
                saved=progress.saved,
                spent=goodput.now(),
            ),
            {
                setup.vocabulary.file_name: setup.vocabulary.content,
                "model.json": described.to_json(),
                going_on.SETTINGS_FILE: going_on.to_json(setup.settings),
                CONFIG_FILE: gin.config_str().encode(),
            },
        )

    def evaluate(step: int) -> dict[str, float]:
        with unwatched("evaluating"):
            values = held_out(step, state.params)
        logger.write(step, values)
        return values

    stack.callback(manager.close)
    stack.callback(logger.close)
    for feed in feeds.values():
        feed.start()
        stack.callback(feed.close)
    if not resumed and config.held_out:
        best.check(evaluate(0))
    elif best.is_new:
        with unwatched("evaluating"):
            best.check(held_out(0, state.params))
    if progress.evaluate:  # this step was saved in a hurry
        best.update(first, evaluate(first))
        manager.expect_best(best.record)
    step, finished = first, True
    goodput.begin("training")
    for step in range(first + 1, first + 1 if best.exhausted else config.steps + 1):
        watchdog.step(step)
        trace.before(step)
        phases, changes, batches = setup.phases(), setup.changes(), {}
        for name, feed in feeds.items():
            batches[name], waited = feed.next()
            speed.waited(waited)
            goodput.waited(waited)
        compiles = step == first + 1 or changes
        with unwatched("compiling") if compiles else contextlib.nullcontext():
            state, metrics = program.step(state, batches, setup.buffers, setup.key, phases)
        if pending:
            record(step - 1, pending)
        if changes:
            announce(step, changes)
        pending = metrics
        speed.stepped(phases)
        if step == first + 1:  # until then nothing is lost where the machine asks to stop
            stack.enter_context(stopping.deferred())
        asked = stop_here()
        last = step == config.steps
        trace.after(step, state, last or asked)
        saving = postponed or last or asked or step % config.checkpoint_every == 0
        evaluating = held_out.due(step)
        if saving or evaluating:
            record(step, pending)
            pending = None
        if evaluating and not asked:
            try:
                with speed.paused():
                    values = evaluate(step)
            except stopping.Stopped:  # whoever asks may not wait so long: evaluated later
                asked = saving = True
            else:
                improved = not streak and best.update(step, values)
                saving = saving or improved or best.exhausted
                if best.exhausted and window.sums:
                    log(step)
        postponed = saving and streak > 0
        if saving and not postponed:
            with unwatched("saving"):
                save(step, evaluating and asked)
        if best.exhausted:
            trace.after(step, state, True)
            break
        if asked and (evaluating or not last):
            with unwatched("saving"):
                manager.wait()
            if postponed:
                print(f"asked to stop: {unsaved(manager, step, streak)}")
            else:
                print(f"asked to stop: saved step {step:,}; the same command goes on from there")
            finished = False
            break
    with unwatched("saving"):
        manager.wait()
    if finished and postponed:
        raise UserError(unsaved(manager, step, streak))
    if finished:
        say(_done(step, best, config))
    say(wrapped(str(goodput)))
    return finished


def _done(step: int, best: BestTracker, config: TrainConfig) -> str:
    early = f"stopped early at step {step:,}: {best}" if best.exhausted else ""
    return f"done: {early or f'{config.steps:,} steps'}, {remote.shown(config.model_dir)}"


def _tables(setup: Setup, steps: int) -> list[str]:
    """What each objective reads in so many more steps, and how large the model is."""
    tables = []
    for name, feed in setup.feeds.items():
        rows = feed.objective.row_after(feed.rows, steps)
        head = f"{name}: {rows:,} rows of {feed.stream.length} tokens from"
        tables.append(f"{head}\n{feed.stream.table(rows)}")
    return [*tables, params_lib.summary(*setup.program.parameters)]


class _Trace:
    """JAX's profiler on the steps that `TrainConfig.profile` names."""

    def __init__(self, config: TrainConfig):
        begin, count = config.profile or (0, 0)
        self._steps = range(begin, begin + count)
        self._folder = os.path.join(config.model_dir, "profile")
        self._running = False

    def before(self, step: int) -> None:
        """Starts the profiler where it is to start."""
        if step in self._steps and not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, state: Any, ending: bool) -> None:
        """Stops it after the last of its steps, or where the run ends."""
        if self._running and (ending or step + 1 not in self._steps):
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._running = False
