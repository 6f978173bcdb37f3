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

    Args:
      graph: the model's graph definition.
      objectives: what to train; each has `name`, `weight` and `loss`.
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

    def gradients(objective: Any, params: Any, batch: Batch, constants: Any, key: Any, rate: Any):
        def loss(params: Any, batch: Batch) -> tuple[jax.Array, Sums]:
            model = nnx.merge(graph, params)
            return objective.loss(model, batch, key, constants, rate)

        def one(batch: Batch) -> tuple[Any, Sums]:
            (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
            # Without this the compiler may drop the fsdp axis and gather whole gradients.
            return jax.lax.with_sharding_constraint(grads, shardings), sums

        if accumulate == 1:
            return one(batch)
        # Microbatch i takes rows i, i + n, …: every device keeps its own rows. Splitting the axis
        # into consecutive blocks instead would gather the batch on all devices.
        micro = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), batch
        )
        zeros = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype),
            jax.eval_shape(one, jax.tree.map(lambda x: x[0], micro)),
        )
        add = lambda carry, batch: (jax.tree.map(jnp.add, carry, one(batch)), None)  # noqa: E731
        return jax.lax.scan(add, zeros, micro)[0]

    def step(
        state: TrainState,
        batches: Mapping[str, Batch],
        constants: Mapping[str, Any],
        key: jax.Array,
        rates: tuple[Any, ...],
    ) -> tuple[TrainState, dict[str, Sums]]:
        with partitioning.activate():
            total, loss, metrics = None, 0.0, {}
            for i, (objective, rate) in enumerate(zip(objectives, rates, strict=True)):
                name = objective.name
                grads, sums = gradients(
                    objective,
                    state.params,
                    batches[name],
                    constants[name],
                    jax.random.fold_in(key, i),
                    rate,
                )
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

            def update(grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
                updates, opt_state = optimizer.update(grads, opt_state, params)
                return optax.apply_updates(params, updates), opt_state

            # A conditional, not a select: selecting keeps old and new state alive side by side.
            params, opt_state = jax.lax.cond(
                finite,
                update,
                lambda grads, opt_state, params: (params, opt_state),
                total,
                state.optimizer,
                state.params,
            )
            bad = 1 - finite.astype(jnp.int32)
            new = TrainState(
                params=params,
                optimizer=opt_state,
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
