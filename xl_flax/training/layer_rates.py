"""Learning rates by depth: lower layers learn more slowly, or not at all."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from xl_flax.errors import UserError

FIRST, STACK, EMBEDDINGS = "first", "layers", "embeddings"  # the encoder's parts with a depth


def depth_rates(encoder: Any, decay: float, frozen: int) -> dict[str, jax.Array]:
    """The factor of each part of an encoder.

    The rate of layer i of n is decay^(n - i), the embeddings are layer 0 (Howard and Ruder 2018,
    ULMFiT, §3.2, with decay = 1 / 2.6).

    Args:
      encoder: parameters, or anything else of their shapes, by part.
      decay: factor from a layer to the one below.
      frozen: the embeddings and so many layers do not learn; 0: not even the embeddings are frozen.

    Returns:
      By part, float32[layers in it] for the stack and float32[] for others.

    Raises:
      UserError: there are not so many layers.
    """
    outside = int(FIRST in encoder)  # ModernBERT's first layer stands outside the stack
    stacked = jax.tree.leaves(encoder.get(STACK))
    stack = stacked[0].shape[0] if stacked else 0
    layers = outside + stack
    if frozen > layers:
        raise UserError(
            f"OptimizerConfig.frozen_layers = {frozen}: the encoder has {layers} layers"
        )
    depth = jnp.arange(layers + 1)
    rates = jnp.where((depth <= frozen) & (frozen > 0), 0.0, decay ** (layers - depth))
    return {EMBEDDINGS: rates[0], FIRST: rates[1], STACK: rates[1 + outside :]}


def scale_by_depth(decay: float, frozen: int) -> optax.GradientTransformation:
    """Multiplies updates by `depth_rates`; heads and the last norm keep theirs."""

    def scaled(updates: Any, params: Any) -> Any:
        rates = depth_rates(params["encoder"], decay, frozen)

        def scale(part: str, tree: Any) -> Any:
            if part not in rates:
                return tree
            rate = rates[part]
            return jax.tree.map(lambda u: u * jnp.expand_dims(rate, range(rate.ndim, u.ndim)), tree)

        own = {part: scale(part, tree) for part, tree in updates["encoder"].items()}
        return updates | {"encoder": own}

    return optax.stateless(scaled)
