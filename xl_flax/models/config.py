"""What an encoder is: one frozen dataclass for BERT, XLM-R, XLM, ModernBERT/mmBERT and EuroBERT."""

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import gin
from annotated_types import Ge, MultipleOf

from xl_flax.errors import UserError
from xl_flax.settings import Count, Fraction, Natural, NonNegative, Positive, Settings


# Registered only: made in Python, as from a checkpoint, it has nothing of what Gin binds.
@gin.register
@dataclasses.dataclass(frozen=True)
class EncoderConfig(Settings):
    """Sizes and choices of one encoder; `gin/models/*.gin` holds the published ones.

    Raises:
      UserError: the values do not make an encoder (says which field and what would).
    """

    vocab_size: Count = gin.REQUIRED  # rows of the token table, special tokens included
    num_layers: Count = gin.REQUIRED
    width: Count = gin.REQUIRED  # size of a token's hidden state
    num_heads: Count = gin.REQUIRED  # attention heads; each is width / num_heads wide
    num_kv_heads: Count | None = None  # of keys and values, shared by groups of queries (GQA)
    mlp_width: Count = gin.REQUIRED  # inner size of the feed-forward block (each half, if gated)
    max_positions: Count = 512  # longest input, in tokens

    positions: Literal["learned", "rotary"] = "learned"
    position_offset: Natural = 0  # first used row of a learned table: 2 in RoBERTa and XLM-R
    rotary_base: Positive = 160_000.0  # of layers with global attention
    local_rotary_base: Positive = 10_000.0  # of layers with local attention
    token_types: Natural = 0  # rows of the token type table; 0: there is none
    languages: Natural = 0  # rows of the language table (XLM); 0: there is none
    # Local layers see |i - j| <= local_window / 2; None: all global.
    local_window: Annotated[int, Ge(2), MultipleOf(2)] | None = None
    global_every: Count = 3  # layers 0, n, 2n, … have global attention, if there is a local_window

    pre_norm: bool = False  # normalise the input of each block (ModernBERT), else its sum (BERT)
    embedding_norm: bool = True  # normalise the embeddings
    first_attention_norm: bool = (
        True  # False: layer 0 has none (ModernBERT), as embeddings have one
    )
    final_norm: bool = False  # normalise the last layer's output (pre-norm encoders need it)
    norm: Literal["layer", "rms"] = "layer"  # "rms" subtracts no mean
    norm_eps: NonNegative = 1e-12  # added to the variance
    norm_bias: bool = True  # norms have a bias
    bias: bool = True  # linear maps have a bias
    activation: Literal["gelu", "gelu_tanh", "silu", "relu"] = "gelu"  # of feed-forward and head
    gated_mlp: bool = False  # GeGLU: gelu(x U) * (x V) instead of gelu(x U)
    tie_head: bool = True  # the MLM head multiplies with the token table, else with its own
    head_dense: bool = True  # the MLM head transforms the states first
    head_bias: bool = True  # the MLM head adds a bias to each token's logit

    embedding_dropout: Fraction = 0.0  # of the embeddings
    attention_dropout: Fraction = 0.0  # of attention probabilities
    attention_out_dropout: Fraction = 0.0  # of what the attention block adds to the residual
    mlp_out_dropout: Fraction = 0.0  # of what the feed-forward block adds to the residual

    init_std: Positive = 0.02  # of all weights: a normal distribution cut at two of these
    scale_residual_init: bool = False  # divide it by sqrt(2 num_layers) for maps into the residual

    dtype: Literal["float32", "bfloat16"] = "float32"  # of computation; parameters are float32
    # "auto": a kernel on TPUs (models/fused_attention.py), without attention_dropout, for rows of
    # a multiple of 128 tokens. "plain": matrix products and a softmax everywhere. "cudnn": a kernel
    # on NVIDIA's GPUs, without attention_dropout and in bfloat16; elsewhere plain.
    attention: Literal["auto", "plain", "cudnn"] = "auto"
    scan: Literal["scan", "unroll"] = "scan"  # one compiled layer in a loop, or a copy per layer
    remat: Literal["none", "full", "dots"] = (
        "none"  # kept for backward: all, nothing, weight products
    )

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.num_heads:
            self.fail(f"width = {self.width} is not divisible by num_heads = {self.num_heads}")
        if self.num_heads % self.kv_heads:
            self.fail(
                f"num_heads = {self.num_heads} is not divisible by num_kv_heads = {self.kv_heads}"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            self.fail(
                f"positions = 'rotary' needs an even head size; width / num_heads = {self.head_dim}"
            )
        if not self.first_attention_norm and not self.pre_norm:
            self.fail("first_attention_norm = False has a meaning only with pre_norm = True")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def position_rows(self) -> int:
        """Rows of the position table: those before the offset are never read."""
        return self.max_positions + self.position_offset if self.positions == "learned" else 0

    def window(self, layer: int) -> int | None:
        """The attention window of a layer (0-based); None if it sees its whole segment."""
        return None if layer % self.global_every == 0 else self.local_window

    def attended_span(self, layer: int, length: int) -> int:
        """Most keys that a query of this layer sees in rows of `length` tokens."""
        window = self.window(layer)
        return length if window is None else min(length, window + 1)

    def layer_numbers(self, layers: Sequence[int], what: str = "layers") -> tuple[int, ...]:
        """Numbers of layers from 0 to `num_layers`, where negative ones may count from the end.

        Args:
          layers: 0 = embeddings, i = after layer i, -1 = the last.
          what: names the parameter in errors.

        Raises:
          UserError: there is no such layer, or `layers` is not a sequence of at least one.
        """
        if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
            raise UserError(f"{what} = {layers!r}: give a sequence of layers, as in (0, -1).")
        last = self.num_layers
        for layer in layers:
            whole = isinstance(layer, numbers.Integral) and not isinstance(layer, bool)
            if not whole or not -last - 1 <= layer <= last:
                raise UserError(
                    f"{what}: there is no layer {layer!r}; the encoder has 0 (the embeddings) to "
                    f"{last}, or -{last + 1} to -1 counted from the end."
                )
        return tuple(int(layer) % (last + 1) for layer in layers)

    def body_params(self, num_layers: int | None = None) -> int:
        """Parameters of the first `num_layers` layers; None: of all of them."""
        layers = self.num_layers if num_layers is None else num_layers
        kv_width = 2 * self.kv_heads * self.head_dim
        linear = self.width * (2 * self.width + kv_width + (2 + self.gated_mlp) * self.mlp_width)
        biases = self.bias * (3 * self.width + kv_width + (1 + self.gated_mlp) * self.mlp_width)
        norms = 2 * layers - (layers > 0 and not self.first_attention_norm)
        return layers * (linear + biases) + norms * self._norm_params

    @property
    def num_params(self) -> int:
        """Parameters of the encoder: embeddings, layers and norms, without heads."""
        rows = self.vocab_size + self.position_rows + self.token_types + self.languages
        norms = self.embedding_norm + self.final_norm
        return rows * self.width + self.body_params() + norms * self._norm_params

    @property
    def _norm_params(self) -> int:
        return self.width * (1 + self.norm_bias)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EncoderConfig":
        """The inverse of `to_dict`; a field that is not there takes its default, never Gin's value.

        Raises:
          UserError: an unknown field, or a required one that is missing.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - set(defaults)):
            _fail(f"unknown fields {', '.join(unknown)}; was it written by a newer version?")
        values = defaults | dict(values)
        if missing := [name for name, value in values.items() if value is gin.REQUIRED]:
            _fail(f"missing fields {', '.join(missing)}")
        return cls(**values)


def _fail(message: str):
    raise UserError(f"EncoderConfig: {message}.")
