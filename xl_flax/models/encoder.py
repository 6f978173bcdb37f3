"""The encoder: embeddings and one stack of layers, scanned or unrolled."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from xl_flax.errors import UserError
from xl_flax.models.attention import rotary_table
from xl_flax.models.config import EncoderConfig
from xl_flax.models.dropout import row_keys
from xl_flax.models.layers import PRODUCT, Embeddings, Layer, Norm, rotary_attention
from xl_flax.parallel.parts import has_parts


def _all_but_weights(primitive: Any, *_, **__) -> bool:
    """Of what to keep: not the weights that a device gathered, as it would keep all layers'."""
    return primitive.name not in ("all_gather", "convert_element_type")


REMAT_POLICIES = {
    "none": _all_but_weights,  # where devices have parts of them
    "full": None,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
}


class Encoder(nnx.Module):
    """A bidirectional Transformer encoder.

    Parameters of all layers are stacked on a leading "layers" axis. Where layer 0 lacks its
    attention norm (ModernBERT) it stands outside the stack, as `first`.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Embeddings(config, rngs)
        outside = 0 if config.first_attention_norm else 1
        self.first = Layer(config, rngs, attention_norm=False) if outside else None
        stack = (config.num_layers - outside,)
        self.layers = Layer(config, rngs, stack) if stack[0] else None
        self.final_norm = Norm(config, rngs) if config.final_norm else None

    def __call__(
        self,
        tokens_BxL: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        languages: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
        layers: Sequence[int] | None = None,
    ) -> jax.Array | tuple[jax.Array, ...]:
        """Hidden states of tokens.

        The encoder stops after the deepest layer that is asked for, and keeps the states of no
        layer that is not.

        Args:
          tokens_BxL: int [B, L].
          segment_ids: int [B, L], attention stays inside equal ids; 0 is padding. None: each row is
            one segment without padding.
          positions: int [B, L], in packed rows from 0 in each segment. None: 0 … L - 1.
          token_types: int [B, L]; None: all 0.
          languages: int [B, L], rows of the language table; beyond it, and None: none is added.
          dropout_keys: key array [B], one per row; None: no dropout.
          layers: whose states are returned: 0 = the embeddings, i = after layer i, negative numbers
            count from the end. None: those of the last layer.

        Returns:
          [B, L, D] in the dtype of computation; with `layers` a tuple of these, one for each layer
          in the order given. The final norm is a part of the last layer: no other state has it.

        Raises:
          UserError: L is more than `max_positions`, or there is no such layer.
        """
        config, length = self.config, tokens_BxL.shape[1]
        if length > config.max_positions:
            raise UserError(
                f"rows of {length} tokens are longer than what the encoder reads, "
                f"EncoderConfig.max_positions = {config.max_positions}."
            )
        if positions is None:
            positions = jnp.arange(length)[None]
        embedding_keys, layers_keys = (row_keys(dropout_keys, site) for site in range(2))
        wanted = (config.num_layers,) if layers is None else config.layer_numbers(layers)
        depth = max(wanted)
        x = self.embeddings(tokens_BxL, positions, token_types, languages, embedding_keys)
        states = {0: x}

        apply = self._layer_function(segment_ids, positions, layers_keys)
        if self.first is not None and depth:
            x = states[1] = apply(self.first, 0, True, x)
        if self.layers is not None and depth > (self.first is not None):
            states |= self._run_stack(apply, x, wanted)
        if self.final_norm is not None and depth == config.num_layers:
            states[depth] = self.final_norm(states[depth])
        return states[depth] if layers is None else tuple(states[layer] for layer in wanted)

    def _layer_function(self, segment_ids, positions, dropout_keys):
        """A function (layer, index, is_global, x) -> x; index and is_global may be traced."""
        config = self.config
        tables = [None, None]
        if config.positions == "rotary":
            bases = config.rotary_base, config.local_rotary_base
            tables = [rotary_table(positions, config.head_dim, base) for base in bases]
        attend_all = rotary_attention(config, None, tables[0], segment_ids)
        attend_near = rotary_attention(config, config.local_window, tables[1], segment_ids)

        def apply(layer, index, is_global, x):
            if config.local_window is None or is_global is True:
                attend = attend_all
            elif is_global is False:
                attend = attend_near
            else:

                def attend(*args):
                    return jax.lax.cond(is_global, attend_all, attend_near, *args)

            return layer(x, attend, row_keys(dropout_keys, index))

        return apply

    def _run_stack(self, apply, x, wanted: Collection[int]) -> dict[int, jax.Array]:
        """Runs the stacked layers up to the deepest one wanted; the states after those wanted."""
        graph, stacked = nnx.split(self.layers)
        outside = 0 if self.first is None else 1

        def layer_function(is_global, index, params, x):
            return apply(nnx.merge(graph, params), index, is_global, x)

        run = self._scan if self.config.scan == "scan" else self._unroll
        return run(layer_function, stacked, x, outside, wanted)

    def _scan(self, layer_function, stacked, x, outside, wanted):
        """`_run_stack` as one scan for each stretch of layers, see `stretches`."""
        parts = list(stretches(outside, wanted))
        ends = [end - outside for _, end, _ in parts]
        if ends == [self.config.num_layers - outside]:
            params = [stacked]
        else:
            # A split, whose gradient is one concatenation; that of slices is a sum of padded ones.
            leaves, structure = jax.tree.flatten(stacked)
            leaves = zip(*(jnp.split(leaf, ends)[: len(ends)] for leaf in leaves), strict=True)
            params = [jax.tree.unflatten(structure, part) for part in leaves]
        states = {}
        for (begin, end, keep), part in zip(parts, params, strict=True):
            is_global = [self.config.window(index) is None for index in range(begin, end)]
            flags = jnp.asarray(is_global) if len(set(is_global)) > 1 else None

            @self._remat
            def body(x, scanned, keep=keep, is_global=is_global[0]):
                params, index, flag = scanned
                x = layer_function(is_global if flag is None else flag, index, params, x)
                return x, (x if keep else None)

            x, kept = jax.lax.scan(body, x, (part, jnp.asarray(range(begin, end)), flags))
            if keep:
                states |= {begin + 1 + i: kept[i] for i in range(end - begin)}
            else:
                states[end] = x
        return states

    def _unroll(self, layer_function, stacked, x, outside, wanted):
        """`_run_stack` as a copy of the program for each layer."""
        states = {}
        for i, index in enumerate(range(outside, max(wanted))):
            params = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
            is_global = self.config.window(index) is None

            @self._remat
            def body(params, x, index=index, is_global=is_global):
                return layer_function(is_global, index, params, x)

            x = body(params, x)
            if index + 1 in wanted:
                states[index + 1] = x
        return states

    def _remat(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if self.config.remat == "none" and not has_parts():
            return function
        policy = REMAT_POLICIES[self.config.remat]
        # Inside a scan nothing outside can share the recomputation: no barrier is needed.
        return jax.checkpoint(function, policy=policy, prevent_cse=self.config.scan != "scan")


def stretches(begin: int, wanted: Collection[int]) -> Iterator[tuple[int, int, bool]]:
    """Cuts the layers from `begin` to the deepest one wanted into stretches, each for one scan.

    Yields (begin, end, keep): of the layers with 0-based numbers begin … end - 1 the state after
    each is wanted (`keep`), or only the one after the last, which is what the scan carries.

    Args:
      begin: 0-based number of the first layer.
      wanted: i = the state after layer i, counted from 1.
    """
    while begin < max(wanted):
        keep, end = begin + 1 in wanted, begin + 1
        while (end + 1 in wanted) if keep else (end not in wanted):
            end += 1
        yield begin, end, keep and end - begin > 1
        begin = end
