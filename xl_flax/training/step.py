"""The training step: any weighted sum of objectives, on any mesh, in one jitted function."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from xl_flax.data.stream import Stream
from xl_flax.errors import UserError
from xl_flax.objectives.base import Batch, Inputs, Loss, Objective, objective_key
from xl_flax.parallel.params import Abstract
from xl_flax.parallel.rules import Partitioning, constrain_as
from xl_flax.parallel.sums import Layouts, sum_over_devices

Sums = dict[str, jax.Array]

ARRAYS = ("key", "buffers", "state")  # of Inputs


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

    Returns:
      The jitted step. `batches` and `buffers` are keyed by the objective's name. `phases`, a tuple
      in the order of the objectives, must be hashable and is static: another masking rate compiles
      another step. `metrics` holds each objective's sums with "loss" and "grad_norm" (of its
      weighted gradient) and, under "step", loss, grad_norm, learning_rate, skipped and bad_streak.
    """
    shardings = jax.tree.map(lambda s: s.sharding, layout)
    layouts = abstract.layouts(partitioning)

    def step(
        state: TrainState,
        batches: Mapping[str, Batch],
        buffers: Mapping[str, Any],
        key: jax.Array,
        phases: tuple[Any, ...],
    ) -> tuple[TrainState, dict[str, Sums]]:
        with partitioning.activate():
            gradients, loss, metrics, state_updates = {}, 0.0, {}, {}
            for objective, phase in zip(objectives, phases, strict=True):
                name = objective.name
                inputs = Inputs(
                    key=objective_key(key, name),
                    stream=streams[name],
                    buffers=buffers[name],
                    state=state.objectives.get(name),
                    phase=phase,
                )
                grads, result = objective_gradient(
                    *(abstract.graph, objective, state.params, batches[name], inputs),
                    *(layouts, accumulate, frozen),
                )
                count = result.sums["count"]
                scale = objective.weight / jnp.where(count > 0, count, 1.0)
                gradients[name] = jax.tree.map(lambda g, scale=scale: g * scale, grads)
                loss += scale * result.total
                metrics[name] = result.sums | {"loss": result.total}
                state_updates[name] = result.state_update
            total = sum_trees(gradients.values())
            norm = optax.global_norm(total)
            for name, grads in gradients.items():
                metrics[name]["grad_norm"] = (
                    norm if len(gradients) == 1 else optax.global_norm(grads)
                )
            if clip_norm is not None:
                factor = jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-12))
                total = jax.tree.map(lambda g: g * factor, total)
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


def objective_gradient(
    graph: nnx.GraphDef,
    objective: Objective,
    params: Any,
    batch: Batch,
    inputs: Inputs,
    layouts: Layouts,
    accumulate: int = 1,
    frozen: Any = None,
) -> tuple[Any, Loss]:
    """The gradient of one objective's loss sum, apart from the other objectives'.

    On a mesh it is called while its `Partitioning` is active.

    Args:
      graph: the model's graph definition.
      objective: whose loss.
      params: the model's parameters.
      batch: of the objective, whole.
      inputs: of the objective.
      layouts: of the parameters and their gradient.
      accumulate: microbatches, beside `objective.microbatches`.
      frozen: a bool per parameter; the gradient of frozen ones is 0 and not computed.

    Returns:
      The gradient, as the parameters, of `Loss.total`, and the loss of the whole batch.
    """
    parts = accumulate * objective.microbatches

    def merge(params: Any) -> nnx.Module:
        if frozen is not None:
            stop = lambda p, is_frozen: jax.lax.stop_gradient(p) if is_frozen else p  # noqa: E731
            params = jax.tree.map(stop, params, frozen)
        return nnx.merge(graph, params)

    def loss(
        params: Any, batch: Batch, encoded: Any = None, inputs: Inputs = inputs
    ) -> tuple[jax.Array, Loss]:
        given = dataclasses.replace(inputs, encoded=encoded)
        result = objective.loss(merge(params), batch, given)
        if "count" not in result.sums:
            raise UserError(
                f"objective {objective.name!r}: the sums of its Loss have no 'count', by which the "
                f"total is divided; there are {', '.join(result.sums) or 'none'}"
            )
        return result.total, result

    def encode(params: Any, batch: Batch) -> Any:
        return objective.encode(merge(params), batch, inputs)

    def keep_layout(grads: Any) -> Any:
        # Without this the compiler may drop the fsdp axis and gather whole gradients.
        return constrain_as(grads, layouts.gradients)

    if objective.compares_rows and parts > 1:
        return _compare_in_parts(loss, encode, params, batch, parts, keep_layout)
    if objective.compares_rows:
        whole = lambda params: loss(params, batch, encode(params, batch))  # noqa: E731
        (_, result), grads = jax.value_and_grad(whole, has_aux=True)(params)
        return keep_layout(grads), result

    def gradient(params: Any, batch: Batch, arrays: tuple) -> tuple[Any, Loss]:
        given = dataclasses.replace(inputs, **dict(zip(ARRAYS, arrays, strict=True)))

        def part_gradient(batch: Batch) -> tuple[Any, Loss]:
            own = functools.partial(loss, inputs=given)
            (_, result), grads = jax.value_and_grad(own, has_aux=True)(params, batch)
            return keep_layout(grads), result

        return sum_parts(part_gradient, batch, parts)

    arrays = tuple(getattr(inputs, name) for name in ARRAYS)
    return sum_over_devices(gradient, layouts, frozen)(params, batch, arrays)


def _compare_in_parts(
    loss: Callable,
    encode: Callable,
    params: Any,
    batch: Batch,
    parts: int,
    keep_layout: Callable[[Any], Any],
) -> tuple[Any, Loss]:
    """Encodes each part twice and keeps the activations of none (Gao et al. 2021, GradCache).

    First for the vectors, of which the loss gives a gradient; then, with that gradient, for the one
    in the parameters (arXiv:2101.06983).
    """
    batches = split_batch(batch, parts)
    encoded = join_batch(jax.lax.map(lambda part: encode(params, part), batches))
    gradient = jax.value_and_grad(
        lambda params, encoded: loss(params, batch, encoded), (0, 1), has_aux=True
    )
    (_, result), (grads, d_encoded) = gradient(params, encoded)

    def add(grads: Any, part: Any) -> tuple[Any, None]:
        batch, d_encoded = part
        _, pull = jax.vjp(lambda params: encode(params, batch), params)
        return jax.tree.map(jnp.add, grads, keep_layout(pull(d_encoded)[0])), None

    grads, _ = jax.lax.scan(add, keep_layout(grads), (batches, split_batch(d_encoded, parts)))
    return grads, result


def sum_parts(function: Callable[[Any], Any], batch: Any, parts: int) -> Any:
    """The sum of `function` over microbatches, one after the other."""
    if parts == 1:
        return function(batch)
    batches = split_batch(batch, parts)
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        jax.eval_shape(function, jax.tree.map(lambda x: x[0], batches)),
    )
    add = lambda sums, batch: (jax.tree.map(jnp.add, sums, function(batch)), None)  # noqa: E731
    return jax.lax.scan(add, zeros, batches)[0]


def split_batch(batch: Any, count: int) -> Any:
    """Microbatches on a new leading axis; the i-th takes rows i, i + count, ….

    So every device keeps its own rows. Consecutive blocks would gather the batch on all devices.
    """
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1), batch)


def join_batch(parts: Any) -> Any:
    """Undoes `split_batch`."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), parts)


def sum_trees(trees: Any) -> Any:
    """The sum of pytrees, leaf by leaf."""
    first, *others = trees
    for tree in others:
        first = jax.tree.map(jnp.add, first, tree)
    return first
