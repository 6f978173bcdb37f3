"""What sits on an encoder, and the whole model."""

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from xl_flax.errors import UserError
from xl_flax.models.biaffine import BiaffineHead
from xl_flax.models.config import EncoderConfig
from xl_flax.models.encoder import Encoder
from xl_flax.models.layers import ACTIVATIONS, Norm, gelu, normal, param, project, zeros
from xl_flax.ops.pooling import Pooling, pool

MLM_HEAD = "mlm"  # name and kind of the MLM head
MLM_PARAMS = f"heads/{MLM_HEAD}/"  # begins the paths of its parameters
# Paths of the parameters with a row for each piece of the vocabulary.
TOKEN_TABLES = ("encoder/embeddings/tokens", f"{MLM_PARAMS}table", f"{MLM_PARAMS}bias")


class MlmHead(nnx.Module):
    """Masked-token prediction: features · table + bias.

    The table [V, D] is the encoder's token table if `config.tie_head`, and is then not held here
    (modules share no variables); see `mlm_prediction`.
    """

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        d, init = config.width, normal(config.init_std)
        self.activation = config.activation
        has, biased = config.head_dense, config.head_dense and config.bias
        self.dense = param(init, rngs, (d, d), ("embed", None)) if has else None
        self.dense_bias = param(zeros, rngs, (d,), (None,)) if biased else None
        self.norm = Norm(config, rngs) if has else None
        has_bias = config.head_bias
        self.bias = param(zeros, rngs, (config.vocab_size,), ("vocab",)) if has_bias else None
        own_table = not config.tie_head
        table_shape = (config.vocab_size, d)
        self.table = param(init, rngs, table_shape, ("vocab", "embed")) if own_table else None

    def features(self, hidden_xD: jax.Array) -> jax.Array:
        """What is multiplied with the table: [..., D] from hidden states [..., D]."""
        if self.dense is None:
            return hidden_xD
        y = project(hidden_xD, self.dense[...])
        if self.dense_bias is not None:
            y += self.dense_bias[...].astype(y.dtype)
        return self.norm(ACTIVATIONS[self.activation](y))


class Pooler(nnx.Module):
    """BERT's pooler: tanh of a map of the first token's state (Devlin et al. 2019)."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        d, init = config.width, normal(config.init_std)
        self.dense = param(init, rngs, (d, d), ("embed", None))
        self.dense_bias = param(zeros, rngs, (d,), (None,))

    def __call__(self, first_xD: jax.Array) -> jax.Array:
        """[..., D] from the states [..., D] of first tokens."""
        y = project(first_xD, self.dense[...])
        return jnp.tanh(y + self.dense_bias[...].astype(y.dtype))


class ClassificationHead(nnx.Module):
    """Scores of labels, for sequences or for each token (an answer's start and end are two labels).

    The published families differ in what stands between a state and its scores: nothing, a dense
    layer with tanh (BERT, RoBERTa), with GELU (EuroBERT), or with GELU and a norm (ModernBERT).
    """

    def __init__(
        self,
        config: EncoderConfig,
        rngs: nnx.Rngs,
        *,
        labels: Sequence[str],
        pooling: Pooling | Literal["tokens", "scores"] = "cls",
        dense: Literal["tanh", "gelu", "gelu_norm"] | None = None,
        dense_bias: bool = True,
    ):
        """The head.

        Args:
          config: of the encoder.
          rngs: for its parameters.
          labels: names, in the order of the scores.
          pooling: "tokens": scores of each token; "scores": the mean of all tokens' scores; else
            how a sequence's states are pooled before, see `xl_flax.ops.pooling`.
          dense: what comes before the scores.
          dense_bias: of that map.

        Raises:
          UserError: a setting that makes no head.
        """
        if pooling not in ("tokens", "scores", *get_args(Pooling)):
            raise UserError(f"pooling = {pooling!r} of a classification head is not known")
        if dense not in (None, "tanh", "gelu", "gelu_norm"):
            raise UserError(f"dense = {dense!r} of a classification head is not known")
        if isinstance(labels, str) or not labels:
            raise UserError(f"labels = {labels!r} of a classification head: give a list of names")
        d, init = config.width, normal(config.init_std)
        self.pooling = pooling
        self.tanh = dense == "tanh"
        self.dense = param(init, rngs, (d, d), ("embed", None)) if dense else None
        self.dense_bias = param(zeros, rngs, (d,), (None,)) if dense and dense_bias else None
        self.norm = Norm(config, rngs) if dense == "gelu_norm" else None
        self.out = param(init, rngs, (d, len(labels)), ("embed", None))
        self.bias = param(zeros, rngs, (len(labels),), (None,))

    def __call__(
        self, hidden_BxLxD: jax.Array, segment_ids_BxL: jax.Array, sequences: int = 1
    ) -> jax.Array:
        """Scores float32: [B, L, labels] of tokens, else [B, sequences, labels].

        Args:
          hidden_BxLxD: the encoder's states.
          segment_ids_BxL: int; sequence s is where they equal s + 1; 0 is padding.
          sequences: how many of each row are wanted.
        """
        x = hidden_BxLxD.astype(jnp.float32)
        if self.pooling in get_args(Pooling):
            x = pool(x, segment_ids_BxL, sequences, self.pooling)
        if self.dense is not None:
            x = project(x, self.dense[...])
            x = x if self.dense_bias is None else x + self.dense_bias[...]
            x = jnp.tanh(x) if self.tanh else gelu(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.pooling == "scores":  # their mean is what the mean of their inputs scores
            x = pool(x, segment_ids_BxL, sequences, "mean_all")
        return project(x, self.out[...]) + self.bias[...]


class SentenceHead(nnx.Module):
    """Turns pooled states into the vectors that a contrastive objective compares.

    Which layer is pooled, and how, are its settings, so that evaluation embeds as training did.
    """

    def __init__(
        self,
        config: EncoderConfig,
        rngs: nnx.Rngs,
        *,
        pooling: Pooling = "mean",
        layer: int = -1,
        projection: Literal["linear", "affine", "tanh", "mlp"] | None = None,
        width: int | None = None,
        normalise: bool = True,
        scale: float | None = None,
        bias: float | None = None,
    ):
        """The head.

        Args:
          config: of the encoder.
          rngs: for its parameters.
          pooling: see `xl_flax.ops.pooling`.
          layer: whose states are pooled: 0 = embeddings, i = after layer i, -1 = the last.
          projection: one matrix (InfoXLM); with a bias, "affine"; and with a "tanh" (LaBSE); two
            with a ReLU between, "mlp" (MoCo v2), or None.
          width: of the vectors; None: the encoder's.
          normalise: scale vectors to length 1.
          scale: initial value of a learnt factor of similarities; None: there is none.
          bias: initial value of a learnt summand of similarities; None: there is none.

        Raises:
          UserError: a setting that makes no head.
        """
        d = config.width
        if pooling not in get_args(Pooling):
            raise UserError(
                f"pooling = {pooling!r} of a sentence head: choose 'cls', 'mean' or 'mean_all'"
            )
        if projection not in (None, "linear", "affine", "tanh", "mlp"):
            raise UserError(
                f"projection = {projection!r}: choose 'linear', 'affine', 'tanh', 'mlp' or None"
            )
        if projection is None and width not in (None, d):
            raise UserError(
                f"width = {width} of a sentence head differs from the encoder's {d}: it needs a "
                "projection, 'linear' or 'mlp'"
            )
        if scale is not None and scale <= 0:
            raise UserError(f"scale = {scale} of a sentence head must be positive")
        (self.layer,) = config.layer_numbers((layer,), "layer of a sentence head")
        self.pooling, self.normalise = pooling, normalise
        init, names = normal(config.init_std), ("embed", None)
        two = projection == "mlp"
        self.hidden = param(init, rngs, (d, d), names) if two else None
        self.hidden_bias = param(zeros, rngs, (d,), (None,)) if two else None
        self.out = param(init, rngs, (d, width or d), names) if projection else None
        biased = projection in ("affine", "tanh")
        self.out_bias = param(zeros, rngs, (width or d,), (None,)) if biased else None
        self.tanh = projection == "tanh"
        log_scale = None if scale is None else jax.nn.initializers.constant(math.log(scale))
        self.log_scale = None if scale is None else param(log_scale, rngs, (), ())
        constant = None if bias is None else jax.nn.initializers.constant(bias)
        self.bias = None if bias is None else param(constant, rngs, (), ())

    def __call__(self, pooled_xD: jax.Array) -> jax.Array:
        """Vectors float32 [..., width] from pooled states [..., D]."""
        x = pooled_xD.astype(jnp.float32)
        if self.hidden is not None:
            x = jax.nn.relu(project(x, self.hidden[...]) + self.hidden_bias[...])
        if self.out is not None:
            x = project(x, self.out[...])
        if self.out_bias is not None:
            x += self.out_bias[...]
        if self.tanh:
            x = jnp.tanh(x)
        if self.normalise:
            # The clamp's place keeps the gradient of a zero vector finite.
            x *= jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
        return x


HEADS = {
    MLM_HEAD: MlmHead,
    "sentence": SentenceHead,
    "classification": ClassificationHead,
    "pooler": Pooler,
    "biaffine": BiaffineHead,
}

UNLABELLED = (MLM_HEAD, "sentence")  # kinds of heads that text alone trains

HeadSettings = Mapping[str, Any]  # arguments of a head; "kind" where it is not the head's name


def full_settings(name: str, settings: HeadSettings) -> dict[str, Any]:
    """A head's settings with its kind and the defaults of those that are not set."""
    kind = settings.get("kind", name)
    parameters = inspect.signature(HEADS[kind].__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return json.loads(json.dumps(defaults | {"kind": kind} | dict(settings)))


class Model(nnx.Module):
    """An encoder and its heads by name; `heads[name]`."""

    def __init__(self, config: EncoderConfig, heads: Mapping[str, HeadSettings], *, rngs: nnx.Rngs):
        kinds = {name: settings.get("kind", name) for name, settings in heads.items()}
        if unknown := sorted(set(kinds.values()) - set(HEADS)):
            raise UserError(
                f"unknown heads {', '.join(unknown)}; there are {', '.join(sorted(HEADS))}; one of "
                "your own is known when its module has been imported: `import my_head` in the Gin "
                "file (or --module_import=my_head for xl_flax.convert)"
            )
        self.encoder = Encoder(config, rngs=rngs)
        built = {}
        for name in sorted(heads):
            settings = {k: v for k, v in heads[name].items() if k != "kind"}
            try:
                built[name] = HEADS[kinds[name]](config, rngs, **settings)
            except TypeError as error:
                raise UserError(f"head {name!r}: {error}") from error
        self.heads = nnx.Dict(built)


def build_model(config: EncoderConfig, heads: Mapping[str, HeadSettings], rngs: nnx.Rngs) -> Model:
    """A freshly initialised model; works under `jax.jit` and `jax.eval_shape`."""
    return Model(config, heads, rngs=rngs)


class MlmPrediction(NamedTuple):
    """What predicts tokens: logits are head.features(hidden) · table_VxD.T + bias_V."""

    head: MlmHead
    table_VxD: jax.Array  # float32; the encoder's token table, or the head's own
    bias_V: jax.Array  # float32; zeros if the head has none


def mlm_prediction(model: Model) -> MlmPrediction:
    """The MLM head of a model, with the table and bias over the vocabulary that belong to it."""
    head: MlmHead = model.heads[MLM_HEAD]
    table = model.encoder.embeddings.tokens if head.table is None else head.table
    bias = jnp.zeros(model.encoder.config.vocab_size) if head.bias is None else head.bias[...]
    return MlmPrediction(head, table[...], bias)
