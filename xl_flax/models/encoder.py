"""The encoder: embeddings and one stack of layers, scanned or unrolled."""

import jax
import jax.numpy as jnp
from flax import nnx

from xl_flax.errors import UserError
from xl_flax.models.attention import rotary_table
from xl_flax.models.config import EncoderConfig
from xl_flax.models.dropout import row_keys
from xl_flax.models.layers import PRODUCT, Embeddings, Layer, Norm, rotary_attention

REMAT_POLICIES = {
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
        all_layers: bool = False,
        layer: int | None = None,
    ) -> jax.Array:
        """Hidden states of tokens.

        Args:
          tokens_BxL: int [B, L].
          segment_ids: int [B, L], attention stays inside equal ids; 0 is padding. None: each row is
            one segment without padding.
          positions: int [B, L], in packed rows from 0 in each segment. None: 0 … L - 1.
          token_types: int [B, L]; None: all 0.
          languages: int [B, L], rows of the language table; beyond it, and None: none is added.
          dropout_keys: key array [B], one per row; None: no dropout.
          all_layers: return the embeddings and each layer's output instead of the last.
          layer: stop after this many layers and return their output, 0 = the embeddings; None: run
            all of them. The final norm belongs to the last one.

        Returns:
          [B, L, D] in the dtype of computation; [layer + 1, B, L, D] if `all_layers`, the last of
          which is what is returned otherwise.

        Raises:
          UserError: L is more than `max_positions`.
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
        depth = config.num_layers if layer is None else layer
        x = self.embeddings(tokens_BxL, positions, token_types, languages, embedding_keys)
        outputs = [x[None]]

        apply = self._layer_function(segment_ids, positions, layers_keys)
        if self.first is not None and depth:
            x = apply(self.first, 0, True, x)
            outputs.append(x[None])
        if self.layers is not None and depth > (self.first is not None):
            x, rest = self._run_stack(apply, x, all_layers, depth)
            outputs.append(rest)
        if self.final_norm is not None and depth == config.num_layers:
            x = self.final_norm(x)
        if not all_layers:
            return x
        return jnp.concatenate(outputs).at[-1].set(x)

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

    def _run_stack(self, apply, x, all_layers, depth):
        """Runs the stacked layers; returns the last output and, if asked, all of them."""
        config = self.config
        graph, stacked = nnx.split(self.layers)
        indices = range(0 if self.first is None else 1, depth)
        if depth < config.num_layers:
            stacked = jax.tree.map(lambda leaf: leaf[: len(indices)], stacked)
        is_global = [config.window(index) is None for index in indices]

        def layer_function(is_global, index, params, x):
            return apply(nnx.merge(graph, params), index, is_global, x)

        def remat(function):
            if config.remat == "none":
                return function
            policy = REMAT_POLICIES[config.remat]
            # Inside a scan nothing outside can share the recomputation: no barrier is needed.
            return jax.checkpoint(function, policy=policy, prevent_cse=config.scan != "scan")

        if config.scan == "scan":
            flags = jnp.asarray(is_global) if len(set(is_global)) > 1 else None

            @remat
            def body(x, scanned):
                params, index, flag = scanned
                x = layer_function(is_global[0] if flag is None else flag, index, params, x)
                return x, (x if all_layers else None)

            return jax.lax.scan(body, x, (stacked, jnp.asarray(indices), flags))

        outputs = []
        for i, index in enumerate(indices):
            params = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)

            @remat
            def body(params, x, i=i, index=index):
                return layer_function(is_global[i], index, params, x)

            x = body(params, x)
            outputs.append(x)
        return x, (jnp.stack(outputs) if all_layers else None)
