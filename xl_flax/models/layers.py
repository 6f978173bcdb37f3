"""The parts of an encoder: parameters with logical axes, norm, embeddings, one layer.

Shapes: Batch, Length, D = width, Heads, K = head size, M = feed-forward width.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from xl_flax.models.attention import attention, rotate
from xl_flax.models.config import EncoderConfig
from xl_flax.models.dropout import dropout, row_keys
from xl_flax.parallel.parts import whole
from xl_flax.parallel.rules import constrain

PRODUCT = "product"  # the name, for remat policies, of what a matrix product with weights returns

zeros, ones = jax.nn.initializers.zeros, jax.nn.initializers.ones


def normal(std: float):
    """A normal distribution cut at two standard deviations, as in BERT."""
    return jax.nn.initializers.truncated_normal(std)


def param(init, rngs: nnx.Rngs, shape: tuple[int, ...], names: tuple[str | None, ...]) -> nnx.Param:
    """A float32 parameter that carries the logical names of its axes as metadata.

    Shardings follow from the names by the rules of a mesh, outside of this package. Flax's eager
    sharding is off: it would want mesh axes, and a mesh, here and now.
    """
    value = init(_next_key(rngs.params), shape, jnp.float32)
    return nnx.Param(value, out_sharding=names, eager_sharding=False, whole_shape=shape)


def weight(variable: nnx.Param, dtype: jnp.dtype) -> jax.Array:
    """A layer's float32 parameter, whole: where devices have parts of it, sent in `dtype`."""
    value = variable[...]
    last = slice(-value.ndim, None)  # without the stack's axis
    return whole(value, variable.out_sharding[last], variable.whole_shape[last], dtype)


def _next_key(stream: nnx.RngStream) -> jax.Array:
    """What calling the stream gives.

    That counts in place, for which Flax asks tracers for their sharding; JAX refuses with a message
    about all that was traced before. Constructors took most of their time for that.
    """
    key = jax.random.fold_in(stream.key[...], stream.count[...])
    stream.count.set_value(stream.count[...] + 1)
    return key


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x: jax.Array, kernel: jax.Array, axes: int = 1) -> jax.Array:
    """Contracts the last `axes` axes of x with the first of a float32 kernel, in x's dtype.

    The kernel's gradient is summed and returned in float32.
    """
    return jnp.tensordot(x, kernel.astype(x.dtype), axes)


def _project_backward(axes, residuals, gradient):
    x, kernel = residuals
    batch, out = x.ndim - axes, kernel.ndim - axes
    last = tuple(range(axes, kernel.ndim))
    dx = jnp.tensordot(gradient, kernel.astype(x.dtype), (tuple(range(batch, batch + out)), last))
    # On CPU the first operand of this product is transposed in memory: let it be the narrow one.
    narrow, wide, swap = (
        x,
        gradient,
        math.prod(kernel.shape[:axes]) > math.prod(kernel.shape[axes:]),
    )
    if swap:
        narrow, wide = wide, narrow
    tokens = tuple(range(batch))
    d_kernel = jnp.tensordot(narrow, wide, (tokens, tokens), preferred_element_type=jnp.float32)
    if swap:
        d_kernel = jnp.moveaxis(d_kernel, range(out), range(axes, axes + out))
    return dx, d_kernel


project.defvjp(lambda x, kernel, axes: (project(x, kernel, axes), (x, kernel)), _project_backward)


class Norm(nnx.Module):
    """Layer normalisation (Ba et al., 2016), float32 inside; `stack` adds leading axes.

    With `config.norm` = "rms" the mean stays (Zhang and Sennrich, 2019, arXiv:1910.07467).
    """

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        names = ("layers",) * len(stack) + (None,)
        self.scale = param(ones, rngs, (*stack, config.width), names)
        self.bias = param(zeros, rngs, (*stack, config.width), names) if config.norm_bias else None
        self.eps, self.center = config.norm_eps, config.norm == "layer"

    def __call__(self, x_xD: jax.Array) -> jax.Array:
        """Normalises the last axis."""
        x = x_xD.astype(jnp.float32)
        if self.center:
            x -= x.mean(axis=-1, keepdims=True)
        variance = jnp.square(x).mean(axis=-1, keepdims=True)
        x *= jax.lax.rsqrt(variance + self.eps) * weight(self.scale, x.dtype)
        if self.bias is not None:
            x += weight(self.bias, x.dtype)
        return x.astype(x_xD.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """x·Φ(x) with the exact Φ (Hendrycks and Gimpel, 2016)."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": jax.nn.gelu,  # its approximation by tanh, in BERT's first code
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


class Embeddings(nnx.Module):
    """Token, position, token type and language tables, summed, normalised and dropped."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        def table(rows, name):
            if not rows:
                return None
            return param(normal(config.init_std), rngs, (rows, config.width), (name, "embed"))

        self.config = config
        self.tokens = table(config.vocab_size, "vocab")
        self.positions = table(config.position_rows, "positions")
        self.token_types = table(config.token_types, None)
        self.languages = table(config.languages, None)
        self.norm = Norm(config, rngs) if config.embedding_norm else None

    def __call__(
        self, tokens_BxL, positions_BxL, token_types_BxL, languages_BxL, dropout_keys
    ) -> jax.Array:
        """[B, L, D] in the dtype of computation; `positions_BxL` may be [1, L]."""
        # Gathered over the mesh axes of "embed" first: what is looked up would be split along the
        # width, and comes to be split along the batch only by a copy of it all on each device.
        x_BxLxD = constrain(self.tokens[...], ("vocab", None))[tokens_BxL]
        if self.token_types is not None:
            x_BxLxD += self.token_types[...][0 if token_types_BxL is None else token_types_BxL]
        if self.languages is not None and languages_BxL is not None:
            own = self.languages[...].at[languages_BxL].get(mode="fill", fill_value=0)
            x_BxLxD += own
        if self.positions is not None:
            table = constrain(self.positions[...], ("positions", None))
            x_BxLxD += table[positions_BxL + self.config.position_offset]
        x_BxLxD = x_BxLxD.astype(self.config.dtype)
        if self.norm is not None:
            x_BxLxD = self.norm(x_BxLxD)
        x_BxLxD = dropout(x_BxLxD, dropout_keys, self.config.embedding_dropout)
        return constrain(x_BxLxD, ("batch", "length", "embed"))


class Layer(nnx.Module):
    """Attention and feed-forward block; with `stack`, the parameters of that many layers."""

    def __init__(
        self,
        config: EncoderConfig,
        rngs: nnx.Rngs,
        stack: tuple[int, ...] = (),
        attention_norm: bool = True,
    ):
        d, m = config.width, config.mlp_width
        heads, heads_names = (config.num_heads, config.head_dim), ("heads", "head_dim")
        halves, halves_names = ((2, m), (None, "mlp")) if config.gated_mlp else ((m,), ("mlp",))
        std_in = std_out = config.init_std
        if config.scale_residual_init:
            std_out /= math.sqrt(2 * config.num_layers)

        def stacked(init, shape, names):
            return param(init, rngs, (*stack, *shape), ("layers",) * len(stack) + names)

        def bias(shape, names):
            return stacked(zeros, shape, names) if config.bias else None

        self.config = config
        self.attention_norm = Norm(config, rngs, stack) if attention_norm else None
        if config.kv_heads == config.num_heads:
            self.qkv = stacked(normal(std_in), (d, 3, *heads), ("embed", None, *heads_names))
            self.qkv_bias = bias((3, *heads), (None, *heads_names))
        else:
            kv, kv_names = (2, config.kv_heads, config.head_dim), (None, "kv_heads", "head_dim")
            self.q = stacked(normal(std_in), (d, *heads), ("embed", *heads_names))
            self.q_bias = bias(heads, heads_names)
            self.kv = stacked(normal(std_in), (d, *kv), ("embed", *kv_names))
            self.kv_bias = bias(kv, kv_names)
        self.out = stacked(normal(std_out), (*heads, d), (*heads_names, "embed"))
        self.out_bias = bias((d,), (None,))
        self.mlp_norm = Norm(config, rngs, stack)
        self.up = stacked(normal(std_in), (d, *halves), ("embed", *halves_names))
        self.up_bias = bias(halves, halves_names)
        self.down = stacked(normal(std_out), (m, d), ("mlp", "embed"))
        self.down_bias = bias((d,), (None,))

    def __call__(self, x_BxLxD: jax.Array, attend, dropout_keys) -> jax.Array:
        """One layer; `attend(q, k, v, dropout_keys)` knows positions, segments and the window."""
        attention_keys, out_keys, mlp_keys = (row_keys(dropout_keys, site) for site in range(3))
        config = self.config

        def add(x, block, norm, keys, rate):
            if not config.pre_norm:
                return norm(x + dropout(block(x), keys, rate))
            return x + dropout(block(x if norm is None else norm(x)), keys, rate)

        def attention_block(x):
            return self._attention(x, attend, attention_keys)

        rates = config.attention_out_dropout, config.mlp_out_dropout
        x_BxLxD = add(x_BxLxD, attention_block, self.attention_norm, out_keys, rates[0])
        x_BxLxD = add(x_BxLxD, self._mlp, self.mlp_norm, mlp_keys, rates[1])
        return constrain(x_BxLxD, ("batch", "length", "embed"))

    def _attention(self, x_BxLxD, attend, dropout_keys):
        # A split, whose gradient is one concatenation; that of three slices is three padded sums.
        if self.config.kv_heads == self.config.num_heads:
            qkv_BxLx3xHxK = _linear(x_BxLxD, self.qkv, self.qkv_bias)
            q, k, v = (y[0] for y in jnp.split(qkv_BxLx3xHxK.transpose(2, 0, 3, 1, 4), 3))
        else:
            q = _linear(x_BxLxD, self.q, self.q_bias).transpose(0, 2, 1, 3)
            kv_BxLx2xGxK = _linear(x_BxLxD, self.kv, self.kv_bias)
            # Consecutive queries share a key (Ainslie et al., 2023, arXiv:2305.13245).
            shared = self.config.num_heads // self.config.kv_heads
            k, v = (
                jnp.repeat(y[0], shared, axis=1)
                for y in jnp.split(kv_BxLx2xGxK.transpose(2, 0, 3, 1, 4), 2)
            )
        q, k, v = (constrain(y, ("batch", "heads", "length", "head_dim")) for y in (q, k, v))
        y_BxLxHxK = attend(q, k, v, dropout_keys).transpose(0, 2, 1, 3)
        return _linear(y_BxLxHxK, self.out, self.out_bias, axes=2)

    def _mlp(self, x_BxLxD):
        y_BxLxM = _linear(x_BxLxD, self.up, self.up_bias)
        act = ACTIVATIONS[self.config.activation]
        if self.config.gated_mlp:
            y_BxLxM = act(y_BxLxM[:, :, 0]) * y_BxLxM[:, :, 1]
        else:
            y_BxLxM = act(y_BxLxM)
        y_BxLxM = constrain(y_BxLxM, ("batch", "length", "mlp"))
        return _linear(y_BxLxM, self.down, self.down_bias)


def _linear(x, kernel, bias, axes=1):
    y = checkpoint_name(project(x, weight(kernel, x.dtype), axes), PRODUCT)
    return y if bias is None else y + weight(bias, y.dtype).astype(y.dtype)


def rotary_attention(config: EncoderConfig, window, table, segment_ids):
    """The `attend` of a layer: rotates by `table` (None: positions are learned), then attends."""

    def attend(q, k, v, dropout_keys):
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        return attention(
            q,
            k,
            v,
            segment_ids=segment_ids,
            window=window,
            dropout_keys=dropout_keys,
            dropout_rate=config.attention_dropout,
            kernel=config.attention,
        )

    return attend
