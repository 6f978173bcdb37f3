"""XLM-R XL and XXL (Goyal et al. 2021): XLM-R with norms before the blocks."""

from typing import Any

from xl_flax.converters import bert, roberta
from xl_flax.converters import config as configs
from xl_flax.converters.weights import LAYER, norm
from xl_flax.models.config import EncoderConfig

MODEL_TYPES = ("xlm-roberta-xl",)
PREFIX, IGNORED, INPUTS = roberta.PREFIX, roberta.IGNORED, roberta.INPUTS
UNTIED = roberta.UNTIED

HEADS = roberta.HEADS
BODY = [
    *bert.EMBEDDINGS,
    *bert.BLOCKS,
    *bert.POOLER,
    *bert.CHOICE_POOLER,
    *norm(LAYER + "attention_norm", "encoder.layer.{}.attention.self_attn_layer_norm"),
    *norm(LAYER + "mlp_norm", "encoder.layer.{}.LayerNorm"),
    *norm("encoder/final_norm", "encoder.LayerNorm"),
]
read_heads = roberta.read_heads


def read_config(config: configs.Config) -> EncoderConfig:
    """The encoder that a `config.json` describes."""
    defaults = {"type_vocab_size": 1, "max_position_embeddings": 514, "layer_norm_eps": 1e-5}
    sizes = roberta.read_sizes(defaults | dict(config))
    return EncoderConfig(**sizes, pre_norm=True, embedding_norm=False, final_norm=True)


def write_config(encoder: EncoderConfig, heads: configs.Heads) -> dict[str, Any]:
    """The inverse of `read_config`, with the class that opens it."""
    return roberta.write_as("xlm-roberta-xl", "XLMRobertaXL", encoder, heads)
