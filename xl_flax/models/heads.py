"""What sits on an encoder, and the whole model."""

from collections.abc import Sequence

import jax
from flax import nnx

from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.encoder import Encoder
from xl_flax.models.layers import Norm, gelu, normal, param, project, zeros


class MlmHead(nnx.Module):
    """Masked-token prediction: features · table + bias.

    The table [V, D] is the encoder's token table if `config.tie_head`, and is then not held here
    (modules share no variables); see `token_table`.
    """

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        d, init = config.width, normal(config.init_std)
        self.dense = param(init, rngs, (d, d), ("embed", None))
        self.dense_bias = param(zeros, rngs, (d,), ("embed",)) if config.bias else None
        self.norm = Norm(config, rngs)
        self.bias = param(zeros, rngs, (config.vocab_size,), ("vocab",))
        own_table = not config.tie_head
        table_shape = (config.vocab_size, d)
        self.table = param(init, rngs, table_shape, ("vocab", "embed")) if own_table else None

    def features(self, hidden_xD: jax.Array) -> jax.Array:
        """What is multiplied with the table: [..., D] from hidden states [..., D]."""
        y = project(hidden_xD, self.dense[...])
        if self.dense_bias is not None:
            y += self.dense_bias[...].astype(y.dtype)
        return self.norm(gelu(y))


HEADS = {"mlm": MlmHead}


class Model(nnx.Module):
    """An encoder and its heads by name; `heads[name]`."""

    def __init__(self, config: EncoderConfig, heads: Sequence[str], *, rngs: nnx.Rngs):
        if unknown := sorted(set(heads) - set(HEADS)):
            raise UserError(
                f"unknown heads {', '.join(unknown)}; there are {', '.join(sorted(HEADS))}."
            )
        self.encoder = Encoder(config, rngs=rngs)
        self.heads = nnx.Dict({name: HEADS[name](config, rngs) for name in sorted(set(heads))})


def build_model(config: EncoderConfig, heads: Sequence[str], rngs: nnx.Rngs) -> Model:
    """A freshly initialised model; works under `jax.jit` and `jax.eval_shape`."""
    return Model(config, heads, rngs=rngs)


def token_table(model: Model) -> jax.Array:
    """The table [V, D], float32, that the MLM head multiplies with: the encoder's or its own."""
    own = model.heads["mlm"].table
    return (model.encoder.embeddings.tokens if own is None else own)[...]
