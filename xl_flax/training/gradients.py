"""Gradients of objectives: one by one, or of several together; whole, or by microbatches."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from xl_flax.errors import UserError
from xl_flax.objectives.base import Batch, Inputs, Loss, Objective
from xl_flax.parallel.rules import constrain_as
from xl_flax.parallel.sums import Layouts, sum_over_devices

ARRAYS = ("key", "buffers", "state")  # of Inputs


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
    if not objective.compares_rows:
        gradient = _rows_gradient(graph, objective, inputs, layouts, accumulate, frozen)
        return sum_over_devices(gradient, layouts, frozen)(params, batch, arrays_of(inputs))
    parts = accumulate * objective.microbatches
    merge = functools.partial(_merge, graph, frozen)
    loss = functools.partial(_loss, merge, objective, inputs)
    keep_layout = functools.partial(_keep_layout, layouts)

    def encode(params: Any, batch: Batch) -> Any:
        return objective.encode(merge(params), batch, inputs)

    if parts > 1:
        return _compare_in_parts(loss, encode, params, batch, parts, keep_layout)
    whole = lambda params: loss(params, batch, encode(params, batch))  # noqa: E731
    (_, result), grads = jax.value_and_grad(whole, has_aux=True)(params)
    return keep_layout(grads), result


def joint_gradient(
    graph: nnx.GraphDef,
    objectives: Sequence[Objective],
    params: Any,
    batches: Mapping[str, Batch],
    inputs: Mapping[str, Inputs],
    layouts: Layouts,
    accumulate: int = 1,
    frozen: Any = None,
) -> tuple[Any, dict[str, Loss], dict[str, dict[str, jax.Array]]]:
    """The gradient of several sums over rows together, which devices send once.

    Args:
      graph: the model's graph definition.
      objectives: whose losses.
      params: the model's parameters.
      batches: by objective, perhaps of others, too.
      inputs: the same.
      layouts: of the parameters and their gradient.
      accumulate: microbatches, beside `Objective.microbatches`.
      frozen: a bool per parameter; the gradient of frozen ones is 0 and not computed.

    Returns:
      The gradient of the weighted sum of the mean losses; the losses; and of each objective
      "grad_squares", the sum over devices of the squares of what each contributes: not the square
      of a norm, but 0 just where nothing has a gradient.
    """
    rows_gradient = functools.partial(_rows_gradient, graph)
    names = [o.name for o in objectives]
    functions = {
        o.name: rows_gradient(o, inputs[o.name], layouts, accumulate, frozen) for o in objectives
    }

    def gradients(params: Any, batches: Mapping[str, Batch], arrays: Mapping[str, tuple]) -> tuple:
        both = {n: functions[n](params, batches[n], arrays[n]) for n in names}
        squares = {n: optax.tree.norm(grads, squared=True) for n, (grads, _) in both.items()}
        return {n: g for n, (g, _) in both.items()}, ({n: r for n, (_, r) in both.items()}, squares)

    def weigh(grads: Mapping[str, Any], sums: tuple) -> Any:
        scales = {o.name: scale_of(o, sums[0][o.name]) for o in objectives}
        return sum_trees([times(grads[n], scales[n]) for n in names])

    total, (results, squares) = sum_over_devices(gradients, layouts, frozen, weigh)(
        params, {n: batches[n] for n in names}, {n: arrays_of(inputs[n]) for n in names}
    )
    return total, results, {n: {"grad_squares": squares[n]} for n in names}


def scale_of(objective: Objective, result: Loss) -> jax.Array:
    """By what the sum of an objective's losses counts in the step's loss."""
    count = result.sums["count"]
    return objective.weight / jnp.where(count > 0, count, 1.0)


def arrays_of(inputs: Inputs) -> tuple:
    """What of the inputs is arrays, which all devices are given."""
    return tuple(getattr(inputs, name) for name in ARRAYS)


def _rows_gradient(
    graph: nnx.GraphDef,
    objective: Objective,
    inputs: Inputs,
    layouts: Layouts,
    accumulate: int,
    frozen: Any,
) -> Callable[[Any, Batch, tuple], tuple[Any, Loss]]:
    """A function of parameters, some rows and `arrays_of` inputs: gradient and loss of these."""
    merge = functools.partial(_merge, graph, frozen)

    def gradient(params: Any, batch: Batch, arrays: tuple) -> tuple[Any, Loss]:
        given = dataclasses.replace(inputs, **dict(zip(ARRAYS, arrays, strict=True)))
        loss = functools.partial(_loss, merge, objective, given)

        def part_gradient(batch: Batch) -> tuple[Any, Loss]:
            (_, result), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
            return _keep_layout(layouts, grads), result

        return sum_parts(part_gradient, batch, accumulate * objective.microbatches)

    return gradient


def _merge(graph: nnx.GraphDef, frozen: Any, params: Any) -> nnx.Module:
    if frozen is not None:
        stop = lambda p, is_frozen: jax.lax.stop_gradient(p) if is_frozen else p  # noqa: E731
        params = jax.tree.map(stop, params, frozen)
    return nnx.merge(graph, params)


def _loss(
    merge: Callable[[Any], nnx.Module],
    objective: Objective,
    inputs: Inputs,
    params: Any,
    batch: Batch,
    encoded: Any = None,
) -> tuple[jax.Array, Loss]:
    given = dataclasses.replace(inputs, encoded=encoded)
    result = objective.loss(merge(params), batch, given)
    if "count" not in result.sums:
        raise UserError(
            f"objective {objective.name!r}: the sums of its Loss have no 'count', by which the "
            f"total is divided; there are {', '.join(result.sums) or 'none'}"
        )
    return result.total, result


def _keep_layout(layouts: Layouts, grads: Any) -> Any:
    # Without this the compiler may drop the fsdp axis and gather whole gradients.
    return constrain_as(grads, layouts.gradients)


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


def times(tree: Any, factor: jax.Array) -> Any:
    """A pytree of arrays, each multiplied."""
    return jax.tree.map(lambda x: x * factor, tree)


def sum_trees(trees: Any) -> Any:
    """The sum of pytrees, leaf by leaf."""
    first, *others = trees
    for tree in others:
        first = jax.tree.map(jnp.add, first, tree)
    return first
