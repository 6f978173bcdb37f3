"""The training loop, top to bottom: data, model, step, checkpoint, then step after step."""

import contextlib
import dataclasses
import fcntl
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gin
import jax
from flax import nnx

from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.manager import CheckpointManager, Progress
from xl_flax.data.batches import Prefetcher, global_batch
from xl_flax.data.prepare import prepare
from xl_flax.data.stream import Stream, open_stream
from xl_flax.data.vocabulary import Vocabulary, run_vocabulary
from xl_flax.errors import UserError
from xl_flax.files import write_atomically
from xl_flax.models.heads import build_model
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.distributed import Preemption, barrier, first_process_first
from xl_flax.parallel.mesh import check_batch, make_partitioning
from xl_flax.training import state as state_lib
from xl_flax.training.config import TrainConfig
from xl_flax.training.held_out import make_held_out
from xl_flax.training.logging import Logger, Window, console_line, held_out_line
from xl_flax.training.optimizer import make_optimizer
from xl_flax.training.speed import Speed
from xl_flax.training.step import make_train_step


def train(config: TrainConfig, gin_flags: Sequence[str] = (), dry_run: bool = False) -> bool:
    """Trains the run that `config` describes, from its newest checkpoint on.

    Args:
      config: the run.
      gin_flags: the Gin flags of this command, passed on to the process that builds caches.
      dry_run: build everything and compile the step, but run and write nothing.

    Returns:
      False if the machine asked to stop before the last step; the state is saved.

    Raises:
      UserError: anything that the user can mend; see its message.
    """
    with contextlib.ExitStack() as stack:  # what is closed at the end, also after an error
        return _train(config, gin_flags, dry_run, stack)


def _train(
    config: TrainConfig, gin_flags: Sequence[str], dry_run: bool, stack: contextlib.ExitStack
) -> bool:
    main_process = jax.process_index() == 0
    say = print if main_process else lambda *_, **__: None

    # ---- Mesh, vocabulary, data: cheap checks first, caches are built where they are missing.
    partitioning = make_partitioning(config.mesh)
    objectives = {o.name: o for o in config.objectives}
    _check(config)
    for name, objective in objectives.items():
        parts = config.accumulate * getattr(objective, "microbatches", 1)
        check_batch(name, objective.batch_size, parts, partitioning)
    vocabulary = run_vocabulary()
    _check_vocabulary(vocabulary, config)
    specs = [spec for o in objectives.values() for spec in o.rows.datasets]
    length = config.objectives[0].rows.length
    specs += [spec for h in config.held_out for spec in h.datasets(length)]
    caches = first_process_first(
        "caches", lambda: prepare(specs, config.cache, vocabulary, gin_flags)
    )
    streams = {
        name: open_stream(o.rows, caches, config.seed, vocabulary) for name, o in objectives.items()
    }

    # ---- Model, optimizer, step.
    heads = _heads(objectives)
    languages = _languages(streams, config)

    def build() -> nnx.Module:
        return build_model(config.encoder, heads, nnx.Rngs(config.seed))

    abstract = params_lib.abstract(build)
    info = params_lib.table(abstract.shapes, abstract.axes, partitioning)
    say(f"\n{info}\n")
    optimizer, schedule = make_optimizer(config.optimizer, config.steps, abstract.axes)
    step_fn = make_train_step(
        abstract.graph,
        list(objectives.values()),
        optimizer,
        schedule,
        partitioning,
        abstract.shardings(partitioning),
        config.accumulate,
        config.optimizer.clip_norm,
    )
    constants = {n: o.bind(vocabulary, streams[n], languages) for n, o in objectives.items()}
    carry = state_lib.carry(objectives, constants)
    constants = jax.device_put(constants, partitioning.sharding(()))
    key = jax.random.key(config.seed)
    held_out = make_held_out(config, abstract.graph, partitioning, caches, vocabulary, languages)

    def rates_at(rows: Mapping[str, int]) -> tuple[Any, ...]:
        return tuple(o.rate_at(rows[name]) for name, o in objectives.items())

    # ---- What is there already: nothing, or this very run.
    description = Description(
        encoder=config.encoder,
        heads=heads,
        vocabulary=vocabulary.fingerprint,
        languages={n: tuple(s.languages) for n, s in streams.items()},
        objectives={n: o.description() for n, o in objectives.items()},
    )
    if main_process and not dry_run:
        stack.enter_context(_alone(config.model_dir))
    progress = state_lib.progress_there(config.model_dir, description, config.seed)
    resumed = progress is not None
    progress = progress or Progress(0, dict.fromkeys(objectives, 0), config.seed, {})
    for name, stream in streams.items():
        left = max(config.steps - progress.step, 0)
        rows = progress.rows[name] + left * objectives[name].batch_size
        say(f"\n{name}: {rows:,} rows of {stream.length} tokens from\n{stream.table(rows)}")
    layout = state_lib.layout(abstract, optimizer, partitioning, carry)
    if dry_run:
        sharding = partitioning.sharding(("batch",))
        batches = {
            n: global_batch(s, 0, objectives[n].batch_size, sharding) for n, s in streams.items()
        }
        rates = rates_at(progress.rows)
        compiled = step_fn.lower(layout, batches, constants, key, rates).compile()
        memory = compiled.memory_analysis()
        say(
            f"dry run: the step compiles; per device {_mib(memory.argument_size_in_bytes)} of "
            f"arguments and {_mib(memory.temp_size_in_bytes)} of temporaries. No step was run"
        )
        return True

    # ---- State: resumed, or fresh, or with another checkpoint's parameters.
    manager = CheckpointManager(config.model_dir, config.keep_last, config.keep_every)
    if resumed:
        state = state_lib.resume(manager, progress.step, layout)
        say(f"resuming {config.model_dir} at step {progress.step:,}")
    else:
        params = params_lib.create(build, partitioning)
        if config.init_from:
            params, message = state_lib.init_from(params, config.init_from, description)
            say(message)
        state = state_lib.fresh(params, optimizer, layout, carry)
    if main_process:
        write_atomically(os.path.join(config.model_dir, "config.gin"), gin.config_str())
        write_atomically(os.path.join(config.model_dir, "model-info.txt"), info + "\n")
    barrier("model_dir")

    # ---- Train.
    files = {vocabulary.file_name: vocabulary.content}
    names = {n: s.languages for n, s in streams.items()}
    logger = Logger(config.model_dir, progress.step if resumed else -1, main_process)
    window = Window(progress.window)
    speed = Speed(config.encoder, config.objectives)
    say(speed.formula)
    preemption = Preemption()
    rows = dict(progress.rows)
    first, tracing = progress.step, False
    pending = None  # metrics of the step before, read while this one runs

    def profiled(step: int) -> bool:
        return bool(config.profile) and config.profile[0] <= step < sum(config.profile)

    def record(step: int, metrics: dict[str, Any]) -> None:
        metrics = jax.device_get(metrics)
        window.add(metrics)
        if metrics["step"]["bad_streak"] >= config.max_bad_steps:
            raise UserError(
                f"loss or gradient was not finite in {config.max_bad_steps} steps in a row, the "
                f"last of them {step:,}; the checkpoints are intact ({config.model_dir}). Lower "
                "OptimizerConfig.learning_rate or lengthen its warm-up, and start again"
            )
        if step % config.log_every == 0 or step == config.steps:
            values = window.means(names) | speed.values()
            logger.write(step, values)
            eta = (config.steps - step) * speed.seconds_per_step
            say(console_line(step, config.steps, values, eta), flush=True)
            window.sums.clear()

    def save(step: int) -> None:
        described = dataclasses.replace(description, step=step)
        manager.save(
            state.params,
            state_lib.pack(state),
            Progress(step, rows, config.seed, window.to_json()),
            files | {"model.json": described.to_json()},
        )

    def evaluate(step: int) -> None:
        values = held_out(state.params)
        logger.write(step, values)
        say(held_out_line(step, values), flush=True)

    def prefetch(name: str) -> Prefetcher:
        size, sharding = objectives[name].batch_size, partitioning.sharding(("batch",))
        return Prefetcher(
            lambda row: global_batch(streams[name], row, size, sharding), rows[name], size
        )

    prefetchers = {name: prefetch(name) for name in objectives}
    finished = True
    stack.callback(manager.close)
    stack.callback(logger.close)
    for prefetcher in prefetchers.values():
        stack.callback(prefetcher.close)
    if not resumed and config.held_out:
        evaluate(0)
    for step in range(first + 1, config.steps + 1):
        if profiled(step) and not tracing:
            jax.profiler.start_trace(os.path.join(config.model_dir, "profile"))
            tracing = True
        rates, batches = rates_at(rows), {}
        for name, prefetcher in prefetchers.items():
            batches[name], waited = prefetcher.next()
            speed.waited(waited)
            rows[name] += objectives[name].batch_size
        state, metrics = step_fn(state, batches, constants, key, rates)
        if pending:
            record(step - 1, pending)
        pending = metrics
        speed.stepped()
        stopping = preemption.reached(step)
        last = step == config.steps
        if tracing and (last or stopping or not profiled(step + 1)):
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            tracing = False
        saving = last or stopping or step % config.checkpoint_every == 0
        evaluating = config.held_out and (last or step % config.eval_every == 0)
        if saving or evaluating:
            record(step, pending)
            pending = None
        if evaluating:
            with speed.paused():
                evaluate(step)
        if saving:
            save(step)
        if stopping and not last:
            say(f"asked to stop: saved step {step:,}; the same command goes on from there")
            finished = False
            break
    manager.wait()
    if finished:
        say(f"done: {config.steps:,} steps, {config.model_dir}")
    return finished


@contextlib.contextmanager
def _alone(model_dir: str) -> Iterator[None]:
    """Keeps other processes from training the same run at the same time.

    Raises:
      UserError: one is at it.
    """
    os.makedirs(model_dir, exist_ok=True)
    with open(os.path.join(model_dir, ".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is training {model_dir}: wait for it, or choose another MODEL_DIR"
            ) from None
        except OSError as error:  # file systems without locks
            print(f"{model_dir} cannot be locked ({error.strerror})", file=sys.stderr)
        yield


def _check(config: TrainConfig) -> None:
    names = [o.name for o in config.objectives]
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"TrainConfig.objectives are named {names}: give at least one, each its own name"
        )
    if config.held_out and not any("mlm" in o.heads for o in config.objectives):
        raise UserError(
            "TrainConfig.held_out measures a masked-token loss, but no objective trains an MLM head"
        )
    for objective in config.objectives:
        if objective.rows.length > config.encoder.max_positions:
            raise UserError(
                f"objective {objective.name!r}: rows of {objective.rows.length} tokens are longer "
                f"than EncoderConfig.max_positions={config.encoder.max_positions}"
            )


def _heads(objectives: Mapping[str, Any]) -> dict[str, Any]:
    heads = {name: settings for o in objectives.values() for name, settings in o.heads.items()}
    for name, objective in objectives.items():
        for head, settings in objective.heads.items():
            if heads[head] != settings:
                raise UserError(f"objective {name!r} and another one want different heads {head!r}")
    return heads


def _languages(streams: Mapping[str, Stream], config: TrainConfig) -> list[str]:
    languages = sorted({language for s in streams.values() for language in s.languages})
    if config.encoder.languages not in (0, len(languages)):
        raise UserError(
            f"EncoderConfig.languages = {config.encoder.languages}, but the objectives read "
            f"{len(languages)} languages ({', '.join(languages)}); set it to {len(languages)}, or "
            "to 0 for an encoder without language embeddings"
        )
    return languages


def _check_vocabulary(vocabulary: Vocabulary, config: TrainConfig) -> None:
    spare = config.encoder.vocab_size - vocabulary.size
    # Tables are rounded up to a multiple of 64 or 128; that of a model which others published may
    # have any number of rows to spare (XLM-R XL: 878).
    if spare < 0 or (spare >= 512 and not config.init_from):
        raise UserError(
            f"the vocabulary {vocabulary.path} has {vocabulary.size:,} pieces, but "
            f"EncoderConfig.vocab_size={config.encoder.vocab_size:,}; set it to the vocabulary's "
            "size, or name another vocabulary"
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
