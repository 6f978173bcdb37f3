"""The state of a run before its first step: fresh, from another checkpoint, or resumed."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.load import (
    complete_checkpoints,
    read_description,
    replace_params,
    vocabulary_path,
)
from xl_flax.checkpoints.manager import CheckpointManager, Progress, read_progress
from xl_flax.errors import UserError
from xl_flax.models.heads import TOKEN_TABLES
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.params import Abstract
from xl_flax.parallel.rules import Partitioning
from xl_flax.training.config import InitFrom
from xl_flax.training.step import TrainState

LANGUAGE_TABLE = "encoder/embeddings/languages"

QUEUES = ("queue", "filled")  # what objectives carry with a place for each row of a batch


def fresh(
    params: Any,
    optimizer: optax.GradientTransformation,
    layout: TrainState,
    carry: Callable[[Any], dict[str, Any]] = lambda params: {},
) -> TrainState:
    """The state of step 0; its arrays are made in the layout they are to have."""
    shardings = jax.tree.map(lambda s: s.sharding, (layout.optimizer, layout.carried))
    make = lambda params: (optimizer.init(params), carry(params))  # noqa: E731
    opt_state, carried = jax.jit(make, out_shardings=shardings)(params)
    # Distinct buffers: the step donates them.
    zero = lambda like: jax.device_put(jnp.zeros((), jnp.int32), like.sharding)  # noqa: E731
    return TrainState(
        params,
        opt_state,
        carried,
        updates=zero(layout.updates),
        skipped=zero(layout.skipped),
        bad_streak=zero(layout.bad_streak),
    )


def carry(objectives: Mapping[str, Any], constants: Mapping[str, Any]) -> Callable:
    """A function from parameters to what the objectives hand on from step to step, by name."""
    having = {name: o for name, o in objectives.items() if hasattr(o, "carry")}
    return lambda params: {n: o.carry(params, constants[n]) for n, o in having.items()}


def layout(
    abstract: Abstract,
    optimizer: optax.GradientTransformation,
    partitioning: Partitioning,
    carry: Callable[[Any], dict[str, Any]] = lambda params: {},
) -> TrainState:
    """Shapes, dtypes and shardings of the whole state.

    The optimizer's moments and the copies of parameters that objectives carry lie as the parameters
    do, a queue as the batch, everything else on each device.
    """
    params = abstract.layout(partitioning)
    whole = partitioning.sharding(())
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    like = dict(params_lib.flat(params))
    heads = {n.split("/", 2)[2]: s for n, s in like.items() if n.startswith("heads/")}

    def lay_out(path: str, leaf: Any) -> jax.ShapeDtypeStruct:
        # The path of a moment or a copy ends with that of its parameter, or of a head's own.
        parts = path.split("/")
        names = ["/".join(parts[i:]) for i in range(len(parts))]
        found = (table.get(name) for name in names for table in (like, heads))
        sharding = next((s.sharding for s in found if s and s.shape == leaf.shape), whole)
        if parts[-1] in QUEUES:
            sharding = partitioning.sharding(("batch",), leaf.shape)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    shapes = jax.eval_shape(lambda params: (optimizer.init(params), carry(params)), params)
    leaves = [lay_out(path, leaf) for path, leaf in params_lib.flat(shapes)]
    opt_state, carried = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    return TrainState(params, opt_state, carried, updates=scalar, skipped=scalar, bad_streak=scalar)


def progress_there(model_dir: str, description: Description, seed: int) -> Progress | None:
    """Where the run in this folder is; None if no checkpoint is there. Changes nothing.

    Raises:
      UserError: the folder belongs to another model, vocabulary, objectives or seed.
    """
    found = complete_checkpoints(model_dir)
    if not found:
        return None
    progress = read_progress(found[-1])
    lines = read_description(found[-1]).differences(description)
    if progress.seed != seed:
        lines.append(f"TrainConfig.seed was {progress.seed} and is now {seed}")
    if lines:
        raise UserError(
            f"{model_dir} holds another run: "
            + "; ".join(lines)
            + ". Choose another MODEL_DIR, or restore these settings"
        )
    return progress


def resume(manager: CheckpointManager, step: int, layout: TrainState) -> TrainState:
    """Reads a checkpoint's arrays into `layout`, whatever mesh they were saved on."""
    params, rest = manager.restore(step, layout.params, pack(layout))
    return TrainState(params, **rest)


def pack(state: TrainState) -> dict[str, Any]:
    """What is saved beside the parameters."""
    return {
        "optimizer": state.optimizer,
        "carried": state.carried,
        "updates": state.updates,
        "skipped": state.skipped,
        "bad_streak": state.bad_streak,
    }


def init_from(params: Any, config: InitFrom, description: Description) -> tuple[Any, str]:
    """Fresh parameters, some of them taken from another checkpoint; says which.

    Raises:
      UserError: nothing matches, shapes differ, a token table is for another vocabulary, or a
        language table for other languages.
    """
    params, taken, checkpoint = replace_params(
        params, config.checkpoint, config.include, config.exclude
    )
    tables = [name for name in taken if name in TOKEN_TABLES]
    if tables and read_description(checkpoint).vocabulary != description.vocabulary:
        raise UserError(
            f"InitFrom: {', '.join(tables)} of {checkpoint} belong to another vocabulary; exclude "
            f"them, or use its own: --gin.VOCABULARY={vocabulary_path(checkpoint)}"
        )
    before = read_description(checkpoint).all_languages
    if LANGUAGE_TABLE in taken and before != description.all_languages:
        raise UserError(
            f"InitFrom: the rows of {LANGUAGE_TABLE} of {checkpoint} are {', '.join(before)}, and "
            f"the objectives read {', '.join(description.all_languages)}; exclude the table, or "
            "train on those"
        )
    total = len(jax.tree.leaves(params))
    return params, f"took {len(taken)} of {total} parameter arrays from {checkpoint}"
