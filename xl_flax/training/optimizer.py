"""Optimizers and learning-rate schedules, all from optax."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import gin
import jax
import jax.numpy as jnp
import optax
from annotated_types import Interval, doc

from xl_flax.errors import UserError
from xl_flax.parallel import params as params_lib
from xl_flax.settings import (
    Count,
    Fraction,
    Natural,
    NonNegative,
    Pattern,
    Positive,
    Settings,
    Share,
)
from xl_flax.training.layer_rates import scale_by_depth

RateFactors = Annotated[
    Sequence[tuple[Pattern, NonNegative]],
    doc(
        "pairs of a regular expression and a number, at least 0, as in "
        "[('encoder/embeddings/.*', 0.0)]"
    ),
]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Settings):
    """The optimizer and its schedule."""

    # stable_adamw: steps shrink where gradients outgrow their second moment. muon: orthogonalised
    # momentum of layers' matrices, AdamW of the rest.
    name: Literal["adamw", "stable_adamw", "muon"] = "adamw"
    learning_rate: NonNegative = 1e-4  # the peak
    # After the warm-up; wsd: constant, then a decay, which with wsd_sqrt is steep at first.
    schedule: Literal["constant", "linear", "rsqrt", "cosine", "wsd", "wsd_sqrt"] = "linear"
    warmup_steps: Natural = 0  # linear from zero
    decay_steps: Count | None = None  # of wsd and wsd_sqrt; default: a tenth of the run
    final_scale: Share = 0.0  # linear, cosine, wsd and wsd_sqrt end at this share of the peak
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    eps: Positive = 1e-6
    weight_decay: NonNegative = 0.01  # a step's, times its learning rate; not of biases and norms
    clip_norm: Positive | None = 1.0  # global norm of the gradient
    rate_factors: RateFactors = ()
    """Factors of the learning rate, [(pattern, factor), ...]: a regular expression that matches the
    whole path of a parameter, as in "encoder/embeddings/.*"; the last one that matches counts. With
    a factor of 0 the parameter is frozen: it has no gradient and no optimizer state."""
    # From a layer to the one below, the embeddings being the lowest; 1: all learn alike.
    layer_decay: Annotated[float, Interval(gt=0, le=1)] = 1.0
    frozen_layers: Natural = 0  # the embeddings and so many layers stay as they are; 0: none


def make_schedule(config: OptimizerConfig, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Learning rate as a function of the number of updates made so far.

    `wsd` is warmup-stable-decay (Hu et al. 2024, MiniCPM, §4): constant, then linear decay over
    the last `decay_steps`; `wsd_sqrt` decays by 1 - sqrt instead (Hägele et al. 2024,
    arXiv:2405.18392, §3). `rsqrt` is peak · sqrt(warmup / step) (Vaswani et al. 2017, §5.3).

    Raises:
      UserError: a warm-up or decay longer than the run.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    decay = steps // 10 if config.decay_steps is None else config.decay_steps
    ends = decay if config.schedule in ("wsd", "wsd_sqrt") else 0
    if warmup + ends > steps:
        parts = f"warmup_steps = {warmup:,}" + (f" + decay_steps = {ends:,}" if ends else "")
        raise UserError(
            f"OptimizerConfig.{parts} is longer than the run, TrainConfig.steps = {steps:,}: train "
            "for more steps, or shorten the warm-up, as in --gin.OptimizerConfig.warmup_steps="
            f"{max(steps - ends, 0) // 20}"
        )
    final = peak * config.final_scale
    rest = max(steps - warmup, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, final, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=config.final_scale),
        "rsqrt": lambda: _rsqrt(peak, max(warmup, 1)),
        "wsd": lambda: _stable_decay(peak, final, rest - decay, decay, 1.0),
        "wsd_sqrt": lambda: _stable_decay(peak, final, rest - decay, decay, 0.5),
    }[config.schedule]()
    if not warmup:
        return after
    # The first update already moves: step 0 uses peak / warmup.
    ramp = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(
    config: OptimizerConfig, steps: int, axes: Any
) -> tuple[optax.GradientTransformation, Callable[[jax.Array], jax.Array]]:
    """The optax transformation (without clipping, which the step does) and its schedule.

    Args:
      config: the optimizer's settings.
      steps: updates in the whole run.
      axes: the parameters' pytree with a tuple of logical axis names at each leaf; it says which
        leaves are matrices.

    Raises:
      UserError: a schedule longer than the run, or factors that make no sense.
    """
    schedule = make_schedule(config, steps)
    optimizer = _base_optimizer(config, schedule, axes)
    by_depth = []
    if config.layer_decay < 1 or config.frozen_layers:
        by_depth = [scale_by_depth(config.layer_decay, config.frozen_layers)]
    if not config.rate_factors:
        return optax.chain(optimizer, *by_depth) if by_depth else optimizer, schedule
    factors = rate_factors(config, axes)

    def scaled(updates: Any, params: Any) -> Any:
        del params
        # A frozen parameter's update is a placeholder of optax here.
        return jax.tree.map(lambda f, u: u * f if f else u, factors, updates)

    labels = jax.tree.map(lambda factor: "trained" if factor else "frozen", factors)
    kinds = {"trained": optimizer, "frozen": optax.set_to_zero()}
    optimizer = optax.partition(kinds, labels)
    if any(factor not in (0, 1) for factor in jax.tree.leaves(factors)):
        optimizer = optax.chain(optimizer, optax.stateless(scaled))
    return optax.chain(optimizer, *by_depth) if by_depth else optimizer, schedule


def rate_factors(config: OptimizerConfig, axes: Any) -> Any:
    """The factor of the learning rate of each parameter, as a float at each leaf of `axes`.

    Raises:
      UserError: a pattern matches no parameter, or nothing is left to train.
    """
    paths = [path for path, _ in params_lib.flat(axes, is_leaf=_is_axes)]
    factors = dict.fromkeys(paths, 1.0)
    for pattern, factor in config.rate_factors:
        matching = [path for path in paths if re.fullmatch(pattern, path)]
        if not matching:
            config.fail(
                f"rate_factors: ({pattern!r}, {factor!r}) matches no parameter; paths look like "
                + ", ".join(paths[:3])
            )
        factors |= dict.fromkeys(matching, float(factor))
    if not any(factors.values()):
        raise UserError("OptimizerConfig.rate_factors freezes every parameter")
    return jax.tree.unflatten(jax.tree.structure(axes, is_leaf=_is_axes), list(factors.values()))


def frozen_params(config: OptimizerConfig, axes: Any) -> Any:
    """Which parameters are never updated, a bool at each leaf of `axes`; None: all are trained."""
    if not config.rate_factors:
        return None
    return jax.tree.map(lambda factor: not factor, rate_factors(config, axes))


def _base_optimizer(
    config: OptimizerConfig, schedule: Callable[[jax.Array], jax.Array], axes: Any
) -> optax.GradientTransformation:
    """The optimizer with one learning rate for all parameters."""
    matrices = jax.tree.map(_is_matrix, axes, is_leaf=_is_axes)
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    decay = optax.add_decayed_weights(config.weight_decay, matrices)
    follow = optax.scale_by_learning_rate(schedule)
    if config.name == "adamw":
        return optax.chain(adam, decay, follow)
    if config.name == "stable_adamw":
        return optax.chain(_stable(adam, decay, config, axes), follow)
    kinds = jax.tree.map(lambda a: "muon" if _dimensions(a) else "adamw", axes, is_leaf=_is_axes)
    halves = {"muon": _muon(config, axes), "adamw": adam}
    return optax.chain(optax.partition(halves, kinds), decay, follow)


def _stable(
    adam: optax.GradientTransformation,
    decay: optax.GradientTransformation,
    config: OptimizerConfig,
    axes: Any,
) -> optax.GradientTransformation:
    """AdamW whose step is divided by RMS = sqrt(mean(g² / max(v, eps²))) where that exceeds 1.

    StableAdamW (Wortsman et al. 2023, arXiv:2304.13013, algorithm 2), in place of clipping the
    gradient: v is the second moment without bias, the mean is over a weight of one layer, and the
    weight decay shrinks with the step.
    """

    def update(grads: Any, states: Any, params: Any) -> tuple[Any, Any]:
        updates, adam_state = adam.update(grads, states[0], params)
        updates, decay_state = decay.update(updates, states[1], params)
        unbiased = 1 - config.b2**adam_state.count

        def shrink(axes: tuple, *leaves: Any) -> Any:
            within = tuple(i for i, name in enumerate(axes) if name != "layers")

            def one(u: jax.Array, g: jax.Array, v: jax.Array) -> jax.Array:
                ratio = jnp.square(g) / jnp.maximum(v / unbiased, config.eps**2)
                return u / jnp.maximum(1, jnp.sqrt(ratio.mean(within, keepdims=True)))

            return jax.tree.map(one, *leaves)  # of a frozen parameter there is none

        updates = jax.tree.map(shrink, axes, updates, grads, adam_state.nu, is_leaf=_is_axes)
        return updates, (adam_state, decay_state)

    return optax.GradientTransformation(lambda p: (adam.init(p), decay.init(p)), update)


def _muon(config: OptimizerConfig, axes: Any) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) of layers' matrices, the other parameters being left out.

    Its updates are made as large as AdamW's (Liu et al. 2025, arXiv:2502.16982, §2.2), so that one
    learning rate fits both. Without the rate, and pointing uphill as gradients do.
    """

    def dimensions(params: Any) -> Any:
        given = lambda a, p: jax.tree.map(lambda _: _dimensions(a), p)  # noqa: E731
        return jax.tree.map(given, axes, params, is_leaf=_is_axes)

    return optax.contrib.muon(
        -1.0, eps=config.eps, muon_weight_dimension_numbers=dimensions, consistent_rms=0.2
    )


def _dimensions(axes: tuple) -> optax.contrib.MuonDimensionNumbers | None:
    """How a leaf holds matrices of layers, which Muon trains; None: embeddings, heads, norms, ….

    A leaf is a batch of matrices from or to the "embed" axis: the stack of layers and unnamed axes
    (query, key, value) count as batch.
    """
    if not _is_matrix(axes) or not {"heads", "kv_heads", "mlp"} & set(axes):
        return None
    embed = (axes.index("embed"),)
    others = tuple(i for i, x in enumerate(axes) if x not in ("layers", "embed", None))
    inputs, outputs = sorted((embed, others))
    return optax.contrib.MuonDimensionNumbers(inputs, outputs)


def _is_axes(leaf: Any) -> bool:
    return isinstance(leaf, tuple)


def _is_matrix(axes: tuple) -> bool:
    """Weights map from or to the embedding axis; biases and norms have at most that one axis."""
    return "embed" in axes and len([a for a in axes if a != "layers"]) >= 2


def _rsqrt(peak: float, warmup: int) -> Callable[[jax.Array], jax.Array]:
    return lambda count: peak * jnp.sqrt(warmup / (count + warmup))


def _stable_decay(
    peak: float, final: float, stable: int, decay: int, power: float
) -> Callable[[jax.Array], jax.Array]:
    """`stable` steps at the peak, then `decay` steps by 1 - (part of the decay) ** power."""

    def rate(count: jax.Array) -> jax.Array:
        part = jnp.clip((count - stable) / max(decay, 1), 0, 1)
        return peak + (final - peak) * part**power

    return rate
