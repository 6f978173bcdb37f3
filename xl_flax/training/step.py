"""The training step: any weighted sum of objectives, on any mesh, in one jitted function."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xl_flax.data.stream import Stream
from xl_flax.errors import UserError
from xl_flax.objectives.base import Batch, Inputs, Objective, objective_key
from xl_flax.parallel.params import Abstract
from xl_flax.parallel.rules import Partitioning, constrain_as
from xl_flax.training.gradients import (
    joint_gradient,
    objective_gradient,
    scale_of,
    sum_trees,
    times,
)

Sums = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """What a step reads and replaces; its buffers are donated."""

    params: Any  # nested dict of float32 arrays
    optimizer: Any  # optax state
    objectives: dict[str, Any]  # the state of each objective that has one, by name
    updates: jax.Array  # int32[]: updates made, which the schedule counts
    skipped: jax.Array  # int32[]: updates skipped since the run began
    bad_streak: jax.Array  # int32[]: of those, the latest in a row


def make_train_step(
    abstract: Abstract,
    objectives: Sequence[Objective],
    streams: Mapping[str, Stream],
    optimizer: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    partitioning: Partitioning,
    layout: TrainState,
    accumulate: int = 1,
    clip_norm: float | None = None,
    frozen: Any = None,
    norms: bool = True,
) -> Callable[..., tuple[TrainState, dict[str, Sums]]]:
    """Builds `step(state, batches, buffers, key, phases) -> (state, metrics)`.

    The loss is Σ weight · (loss sum / count) over the objectives; sums and counts run over all
    microbatches before they are divided, so accumulation gives the gradient of the whole batch.
    A loss or gradient that is not finite leaves the state as it was, but for its counters.

    Args:
      abstract: the model.
      objectives: what to train.
      streams: the rows of each objective by its name; the objectives read their static properties.
      optimizer: the transformation applied to the clipped gradient.
      schedule: the learning rate by number of updates, for the metrics.
      partitioning: mesh and rules.
      layout: shapes with shardings of the state, as it is before and after the step.
      accumulate: microbatches per step, each with an equal share of every device's rows.
      clip_norm: the gradient's largest global norm.
      frozen: a bool per parameter, is it never updated; None: all are trained.
      norms: whether the gradient's norm is wanted of each objective. Otherwise the gradients of
        those that are sums over rows are one sum, which devices send once.

    Returns:
      The jitted step. `batches` and `buffers` are keyed by the objective's name. `phases`, a tuple
      in the order of the objectives, must be hashable and is static: another masking rate compiles
      another step. `metrics` holds each objective's sums with "loss" and "grad_norm" (of its
      weighted gradient; without `norms` "grad_squares", see `joint_gradient`) and, under "step",
      loss, grad_norm, learning_rate, skipped and bad_streak.
    """
    shardings = jax.tree.map(lambda s: s.sharding, layout)
    layouts = abstract.layouts(partitioning)
    joint = [] if norms else [o for o in objectives if not o.compares_rows]
    joint = joint if len(joint) > 1 else []
    apart = [o for o in objectives if o not in joint]

    def step(
        state: TrainState,
        batches: Mapping[str, Batch],
        buffers: Mapping[str, Any],
        key: jax.Array,
        phases: tuple[Any, ...],
    ) -> tuple[TrainState, dict[str, Sums]]:
        with partitioning.activate():
            phase_of = dict(zip((o.name for o in objectives), phases, strict=True))
            inputs = {
                name: Inputs(
                    key=objective_key(key, name),
                    stream=streams[name],
                    buffers=buffers[name],
                    state=state.objectives.get(name),
                    phase=phase,
                )
                for name, phase in phase_of.items()
            }
            fixed = layouts, accumulate, frozen
            gradients, results, measured = [], {}, {}
            if joint:
                total, results, measured = joint_gradient(
                    abstract.graph, joint, state.params, batches, inputs, *fixed
                )
                gradients.append(total)
            for objective in apart:
                name = objective.name
                grads, results[name] = objective_gradient(
                    *(abstract.graph, objective, state.params, batches[name], inputs[name]),
                    *fixed,
                )
                grads = times(grads, scale_of(objective, results[name]))
                gradients.append(grads)
                measured[name] = {"grad_norm": optax.global_norm(grads)}
            total = sum_trees(gradients)
            norm = optax.global_norm(total)
            loss, metrics = 0.0, {}
            for objective in objectives:
                name, result = objective.name, results[objective.name]
                loss += scale_of(objective, result) * result.total
                metrics[name] = result.sums | {"loss": result.total} | measured[name]
            state_updates = {name: result.state_update for name, result in results.items()}
            if clip_norm is not None:
                factor = jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-12))
                total = times(total, factor)
            finite = jnp.isfinite(norm) & jnp.isfinite(loss)
            new = guarded_update(state, total, state_updates, finite, objectives, optimizer)
            # Moments may be divided further than their parameters, which are gathered here.
            new = constrain_as(new, shardings)
            metrics["step"] = {
                "loss": loss,
                "grad_norm": norm,
                "learning_rate": schedule(state.updates),
                "skipped": new.skipped,
                "bad_streak": new.bad_streak,
            }
        return new, metrics

    return jax.jit(step, donate_argnums=0, static_argnums=4)


def guarded_update(
    state: TrainState,
    grads: Any,
    state_updates: Mapping[str, Any],
    finite: jax.Array,
    objectives: Sequence[Objective],
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """The state after a step; where something was not finite, only its counters change.

    Args:
      state: before the step.
      grads: the clipped gradient of all objectives together.
      state_updates: `Loss.state_update` of each objective by its name.
      finite: bool[], whether loss and gradient are finite.
      objectives: of the run.
      optimizer: of the run.
    """

    def update(grads: Any, opt_state: Any, params: Any, states: Any) -> tuple:
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        having = {o.name: o for o in objectives if o.name in states}
        states = {n: _updated(o, states[n], params, state_updates[n]) for n, o in having.items()}
        return params, opt_state, states

    # A conditional, not a select: selecting keeps old and new state alive side by side.
    params, opt_state, states = jax.lax.cond(
        finite,
        update,
        lambda grads, *unchanged: (unchanged[1], unchanged[0], unchanged[2]),
        grads,
        state.optimizer,
        state.params,
        state.objectives,
    )
    bad = 1 - finite.astype(jnp.int32)
    return TrainState(
        params=params,
        optimizer=opt_state,
        objectives=states,
        updates=state.updates + 1 - bad,
        skipped=state.skipped + bad,
        bad_streak=(state.bad_streak + 1) * bad,
    )


def _updated(objective: Objective, state: Any, params: Any, update: Any) -> Any:
    """An objective's state after an update, which must have the same arrays as before."""
    shapes = lambda tree: jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)  # noqa: E731
    new = objective.update_state(state, params, update)
    if shapes(new) != shapes(state):
        raise UserError(
            f"objective {objective.name!r}: {type(objective).__name__}.update_state returns "
            f"{shapes(new)}, but its state is {shapes(state)} (shapes and dtypes)"
        )
    return new
