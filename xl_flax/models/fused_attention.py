"""Attention as one kernel of a TPU or a GPU: the probabilities never leave the chip.

Both are variants of FlashAttention (Dao et al., 2022). That of TPUs is JAX's own, splash attention
(jax.experimental.pallas.ops.tpu.splash_attention), which skips what a window hides; that of GPUs is
cuDNN's (jax.nn.dot_product_attention). Shapes as in `attention`.
"""

import functools
import math
import warnings
from types import ModuleType

import jax

from xl_flax.parallel.rules import on_parts

LANES = 128  # of a TPU's registers: the kernel takes rows of whole multiples
BLOCK = 512  # most queries, and most keys, that are multiplied at once
AXES = ("batch", "heads", None, None)  # each device has whole rows, whatever the rules say


def fits(length: int) -> bool:
    """Whether the kernel takes rows of `length` tokens, and this version of JAX has it."""
    return length % LANES == 0 and _kernel() is not None


@functools.cache
def _kernel() -> ModuleType | None:
    try:
        import jax.experimental.pallas.ops.tpu.splash_attention as splash
    except ImportError as error:
        warnings.warn(
            f"JAX {jax.__version__} lacks splash attention ({error}), JAX 0.10 has it: attention "
            "is not fused, which is slower and needs memory for L x L numbers of each head",
            stacklevel=2,
        )
        return None
    return splash


def fused_attention(
    q_BxHxLxK: jax.Array,
    k_BxHxLxK: jax.Array,
    v_BxHxLxK: jax.Array,
    segment_ids: jax.Array | None,
    window: int | None,
) -> jax.Array:
    """What `attention` returns without dropout, of rows that fit.

    Backward keeps the operands, the result and each query's log-sum-exp, as `attention` does. Each
    device attends in its own rows and heads.
    """
    arrays, names = [q_BxHxLxK, k_BxHxLxK, v_BxHxLxK], [AXES] * 3
    if segment_ids is not None:
        arrays, names = [*arrays, segment_ids], [*names, ("batch", None)]
    return on_parts(functools.partial(_attend, window=window), names, *arrays)


def cudnn_attention(
    q_BxHxLxK: jax.Array, k_BxHxLxK: jax.Array, v_BxHxLxK: jax.Array, visible: jax.Array | None
) -> jax.Array:
    """What `attention` returns without dropout, in bfloat16 on GPUs.

    cuDNN reads a mask of L x L numbers of each row, one for all heads, if not everything is seen.

    Args:
      q_BxHxLxK: queries.
      k_BxHxLxK: keys.
      v_BxHxLxK: values.
      visible: bool, broadcastable to [B, H, L, L]: query i sees key j. None: everything is seen.
    """

    def attend(q, k, v, mask=None):
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        out = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
        return out.transpose(0, 2, 1, 3)

    arrays, names = [q_BxHxLxK, k_BxHxLxK, v_BxHxLxK], [AXES] * 3
    if visible is not None:
        arrays.append(visible.reshape((1,) * (4 - visible.ndim) + visible.shape))
        names.append(("batch", None, None, None))
    return on_parts(attend, names, *arrays)


def _attend(q, k, v, segment_ids=None, *, window):
    splash = _kernel()
    heads, length, size = q.shape[1:]
    if window is None or window // 2 >= length - 1:
        mask = splash.FullMask((length, length))
    else:
        mask = splash.LocalMask((length, length), (window // 2, window // 2), 0)
    attend = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=_blocks(splash, length),
        head_shards=1,
        q_seq_shards=1,
    )
    segments = None if segment_ids is None else splash.SegmentIds(segment_ids, segment_ids)
    return jax.vmap(attend)(q * size**-0.5, k, v, segments)


def _blocks(splash: ModuleType, length: int):
    block = math.gcd(length, BLOCK)
    names = ["block_q", "block_kv", "block_q_dkv", "block_kv_dkv"]
    # One kernel for all three gradients writes those of the queries once for each block of keys.
    one = block == length
    if not one:
        names += ["block_q_dq", "block_kv_dq"]
    # With tokens last: a head's 64 numbers would be padded to 128 in memory.
    layouts = dict.fromkeys(("q_layout", "k_layout", "v_layout"), splash.QKVLayout.SEQ_MINOR)
    return splash.BlockSizes(**dict.fromkeys(names, block), use_fused_bwd_kernel=one, **layouts)
