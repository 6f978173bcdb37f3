"""The training step: any weighted sum of objectives, on any mesh, in one jitted function."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from xl_flax.parallel.rules import Partitioning

Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """What a step reads and replaces; its buffers are donated."""

    params: Any  # nested dict of float32 arrays
    optimizer: Any  # optax state
    carried: dict[str, Any]  # by objective: what it hands on, as a momentum encoder and a queue
    updates: jax.Array  # int32[]: updates made, which the schedule counts
    skipped: jax.Array  # int32[]: updates skipped since the run began
    bad_streak: jax.Array  # int32[]: of those, the latest in a row


def make_train_step(
    graph: nnx.GraphDef,
    objectives: Sequence[Any],
    optimizer: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    partitioning: Partitioning,
    shardings: Any,
    accumulate: int = 1,
    clip_norm: float | None = None,
) -> Callable[..., tuple[TrainState, dict[str, Sums]]]:
    """Builds `step(state, batches, constants, key, rates) -> (state, metrics)`.

    The loss is Σ weight · (loss sum / count) over the objectives; sums and counts run over all
    microbatches before they are divided, so accumulation gives the gradient of the whole batch.
    A loss or gradient that is not finite leaves the state as it was, but for its counters.

    An objective whose loss is a sum over rows has `loss`. One that compares rows with one another
    has `encode`, row by row, and `compare`, of all of them; in microbatches it encodes twice: first
    for the vectors, then, with the loss's gradient in these, for that in the parameters (Gao et al.
    2021, GradCache, arXiv:2101.06983).

    Args:
      graph: the model's graph definition.
      objectives: what to train; each has `name`, `weight` and the above.
      optimizer: the transformation applied to the clipped gradient.
      schedule: the learning rate by number of updates, for the metrics.
      partitioning: mesh and rules.
      shardings: NamedSharding per parameter; gradients are kept in the same layout.
      accumulate: microbatches per step, each with an equal share of every device's rows.
      clip_norm: the gradient's largest global norm.

    Returns:
      The jitted step. `batches`, `constants` and `rates` are keyed by the objective's name;
      `rates` must be hashable and is static: another masking rate compiles another step.
      `metrics` holds each objective's sums and, under "step", loss, grad_norm, learning_rate,
      skipped and bad_streak.
    """

    def keep_layout(grads: Any) -> Any:
        # Without this the compiler may drop the fsdp axis and gather whole gradients.
        return jax.lax.with_sharding_constraint(grads, shardings)

    def summed(objective: Any, params: Any, batch: Batch, constants: Any, key: Any, rate: Any):
        """Gradient and sums of an objective that is a sum over rows."""

        def loss(params: Any, batch: Batch) -> tuple[jax.Array, Sums]:
            return objective.loss(nnx.merge(graph, params), batch, key, constants, rate)

        def one(batch: Batch) -> tuple[Any, Sums]:
            (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
            return keep_layout(grads), sums

        if accumulate == 1:
            return one(batch)
        parts = cut(batch, accumulate)
        zeros = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype),
            jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts)),
        )
        add = lambda carry, batch: (jax.tree.map(jnp.add, carry, one(batch)), None)  # noqa: E731
        return jax.lax.scan(add, zeros, parts)[0]

    def compared(objective: Any, params: Any, batch: Batch, constants: Any, key: Any, carried: Any):
        """Gradient, sums and news of an objective that compares rows with one another."""

        def encode(params: Any, batch: Batch) -> Any:
            return objective.encode(nnx.merge(graph, params), batch, key, constants, carried)

        def compare(params: Any, vectors: Any) -> tuple[jax.Array, tuple[Sums, Any]]:
            model = nnx.merge(graph, params)
            total, sums, news = objective.compare(model, vectors, batch, key, constants, carried)
            return total, (sums, news)

        count = accumulate * objective.microbatches
        if count == 1:
            whole = lambda params: compare(params, encode(params, batch))  # noqa: E731
            (_, (sums, news)), grads = jax.value_and_grad(whole, has_aux=True)(params)
            return keep_layout(grads), sums, news
        parts = cut(batch, count)
        vectors = joined(jax.lax.map(lambda part: encode(params, part), parts))
        gradient = jax.value_and_grad(compare, (0, 1), has_aux=True)
        (_, (sums, news)), (grads, d_vectors) = gradient(params, vectors)

        def add(grads: Any, part: Any) -> tuple[Any, None]:
            batch, d_vectors = part
            _, pull = jax.vjp(lambda params: encode(params, batch), params)
            return jax.tree.map(jnp.add, grads, keep_layout(pull(d_vectors)[0])), None

        return jax.lax.scan(add, keep_layout(grads), (parts, cut(d_vectors, count)))[0], sums, news

    def step(
        state: TrainState,
        batches: Mapping[str, Batch],
        constants: Mapping[str, Any],
        key: jax.Array,
        rates: tuple[Any, ...],
    ) -> tuple[TrainState, dict[str, Sums]]:
        with partitioning.activate():
            total, loss, metrics, news = None, 0.0, {}, {}
            for i, (objective, rate) in enumerate(zip(objectives, rates, strict=True)):
                name = objective.name
                given = batches[name], constants[name], jax.random.fold_in(key, i)
                if hasattr(objective, "compare"):
                    carried = state.carried.get(name)
                    grads, sums, new = compared(objective, state.params, *given, carried)
                    news |= {name: new} if name in state.carried else {}
                else:
                    grads, sums = summed(objective, state.params, *given, rate)
                scale = objective.weight / jnp.maximum(sums["count"], 1.0)
                grads = jax.tree.map(lambda g, scale=scale: g * scale, grads)
                total = grads if total is None else jax.tree.map(jnp.add, total, grads)
                loss += scale * sums["loss"]
                metrics[name] = sums
            norm = optax.global_norm(total)
            if clip_norm is not None:
                factor = jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-12))
                total = jax.tree.map(lambda g: g * factor, total)
            finite = jnp.isfinite(norm) & jnp.isfinite(loss)

            def update(grads: Any, opt_state: Any, params: Any, carried: Any) -> tuple:
                updates, opt_state = optimizer.update(grads, opt_state, params)
                params = optax.apply_updates(params, updates)
                advance = {o.name: o.advance for o in objectives if o.name in carried}
                carried = {n: f(carried[n], params, news[n]) for n, f in advance.items()}
                return params, opt_state, carried

            # A conditional, not a select: selecting keeps old and new state alive side by side.
            params, opt_state, carried = jax.lax.cond(
                finite,
                update,
                lambda grads, *unchanged: (unchanged[1], unchanged[0], unchanged[2]),
                total,
                state.optimizer,
                state.params,
                state.carried,
            )
            bad = 1 - finite.astype(jnp.int32)
            new = TrainState(
                params=params,
                optimizer=opt_state,
                carried=carried,
                updates=state.updates + 1 - bad,
                skipped=state.skipped + bad,
                bad_streak=(state.bad_streak + 1) * bad,
            )
            metrics["step"] = {
                "loss": loss,
                "grad_norm": norm,
                "learning_rate": schedule(state.updates),
                "skipped": new.skipped,
                "bad_streak": new.bad_streak,
            }
        return new, metrics

    return jax.jit(step, donate_argnums=0, static_argnums=4)


def cut(batch: Any, count: int) -> Any:
    """Microbatches on a new leading axis; the i-th takes rows i, i + count, ….

    So every device keeps its own rows. Consecutive blocks would gather the batch on all devices.
    """
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1), batch)


def joined(parts: Any) -> Any:
    """Undoes `cut`."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), parts)
