"""The state of a run before its first step: fresh, from another checkpoint, or resumed."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.load import read_description, replace_params
from xl_flax.checkpoints.manager import CheckpointManager, Progress
from xl_flax.errors import UserError
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.params import Abstract
from xl_flax.parallel.rules import Partitioning
from xl_flax.training.config import InitFrom
from xl_flax.training.step import TrainState


def fresh(params: Any, optimizer: optax.GradientTransformation, layout: TrainState) -> TrainState:
    """The state of step 0; the optimizer's arrays are made in the layout they are to have."""
    shardings = jax.tree.map(lambda s: s.sharding, layout.optimizer)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings)(params)
    # Distinct buffers: the step donates them.
    zero = lambda like: jax.device_put(jnp.zeros((), jnp.int32), like.sharding)  # noqa: E731
    return TrainState(
        params,
        opt_state,
        updates=zero(layout.updates),
        skipped=zero(layout.skipped),
        bad_streak=zero(layout.bad_streak),
    )


def layout(
    abstract: Abstract, optimizer: optax.GradientTransformation, partitioning: Partitioning
) -> TrainState:
    """Shapes, dtypes and shardings of the whole state; the optimizer's follow the parameters'."""
    params = abstract.layout(partitioning)
    whole = partitioning.sharding(())
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    # A moment's path ends with that of its parameter.
    like = dict(params_lib.flat(params))

    def lay_out(path: str, leaf: Any) -> jax.ShapeDtypeStruct:
        parts = path.split("/")
        names = ("/".join(parts[i:]) for i in range(len(parts)))
        name = next((n for n in names if n in like and like[n].shape == leaf.shape), None)
        sharding = like[name].sharding if name else whole
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    shapes = jax.eval_shape(optimizer.init, params)
    leaves = [lay_out(path, leaf) for path, leaf in params_lib.flat(shapes)]
    opt_state = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    return TrainState(params, opt_state, updates=scalar, skipped=scalar, bad_streak=scalar)


def resume(
    manager: CheckpointManager, description: Description, layout: TrainState, seed: int
) -> tuple[TrainState, Progress] | None:
    """Reads the newest checkpoint of the run's folder into `layout`; None if there is none.

    Raises:
      UserError: the folder belongs to another model, vocabulary, objectives or seed; nothing in
        it is touched.
    """
    step = manager.latest_step()
    if step is None:
        return None
    there = read_description(f"{manager.directory}/{step}")
    if lines := there.differences(description):
        raise UserError(
            f"{manager.directory} holds another run: "
            + "; ".join(lines)
            + ". Choose another MODEL_DIR, or restore these settings"
        )
    params, state, progress = manager.restore(step, layout.params, pack(layout))
    if progress.seed != seed:
        raise UserError(
            f"{manager.directory} was trained with TrainConfig.seed={progress.seed}, not {seed}: "
            "the data would come in another order. Choose another MODEL_DIR, or restore the seed"
        )
    return unpack(params, state), progress


def pack(state: TrainState) -> dict[str, Any]:
    """What is saved beside the parameters."""
    return {
        "optimizer": state.optimizer,
        "updates": state.updates,
        "skipped": state.skipped,
        "bad_streak": state.bad_streak,
    }


def unpack(params: Any, rest: dict[str, Any]) -> TrainState:
    """The inverse of `pack`."""
    return TrainState(params, **rest)


def init_from(params: Any, config: InitFrom) -> tuple[Any, str]:
    """Fresh parameters, some of them taken from another checkpoint; says which."""
    params, taken = replace_params(params, config.checkpoint, config.include, config.exclude)
    total = len(jax.tree.leaves(params))
    return params, f"took {len(taken)} of {total} parameter arrays from {config.checkpoint}"
