"""RoBERTa and XLM-R (Liu et al. 2019; Conneau et al. 2020): positions start at 2, another head."""

from collections.abc import Collection
from typing import Any

from xl_flax.converters import bert
from xl_flax.converters import config as configs
from xl_flax.converters.weights import Weight, linear, norm, same
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import MLM_HEAD, MLM_PARAMS

MODEL_TYPES = ("xlm-roberta", "roberta", "camembert")
PREFIX = "roberta."
IGNORED = r".*position_ids|lm_head\.decoder\.(weight|bias)"
INPUTS = ("input_ids", "attention_mask")

UNTIED = {"lm_head.bias": "lm_head.decoder.bias"}

OFFSET = 2  # the first position that is used; the pad token's id, 1, and 0 stand before it

HEADS = [
    *linear(MLM_PARAMS + "dense", "lm_head.dense"),
    *norm(MLM_PARAMS + "norm", "lm_head.layer_norm"),
    same(MLM_PARAMS + "bias", "lm_head.bias"),
    same(MLM_PARAMS + "table", "lm_head.decoder.weight"),
    *linear("heads/sequence/dense", "classifier.dense"),
    Weight("heads/sequence/out", ("classifier.out_proj.weight",), 1),
    same("heads/sequence/bias", "classifier.out_proj.bias"),
    *bert.TOKENS,
    *bert.SPANS,
    *bert.CHOICE,
]
BODY = [*bert.EMBEDDINGS, *bert.BLOCKS, *bert.NORMS, *bert.POOLER, *bert.CHOICE_POOLER]


def read_config(config: configs.Config) -> EncoderConfig:
    """The encoder that a `config.json` describes."""
    return EncoderConfig(**read_sizes(config))


def read_sizes(config: configs.Config) -> dict[str, Any]:
    """What all sizes of XLM-R share, as arguments of `EncoderConfig`."""
    configs.require(config, "the head's is GELU", hidden_act="gelu")
    configs.require(config, "positions start behind it", pad_token_id=OFFSET - 1)
    return bert.read_sizes(config) | {
        "token_types": config.get("type_vocab_size", 2),
        "max_positions": config.get("max_position_embeddings", 512) - OFFSET,
        "position_offset": OFFSET,
        "norm_eps": config.get("layer_norm_eps", 1e-12),
    }


def read_heads(config: configs.Config, names: Collection[str]) -> dict[str, Any]:
    """The heads that a folder's tensors make."""
    heads: dict[str, Any] = {}
    if "lm_head.bias" in names:
        heads[MLM_HEAD] = {}
    if "classifier.out_proj.weight" in names:
        heads["sequence"] = configs.classification(config, "cls", dense="tanh")
    if "classifier.weight" in names and configs.is_choice(config):
        heads["choice"] = configs.choice("cls", dense="tanh")
    elif "classifier.weight" in names:
        heads["tokens"] = configs.classification(config, "tokens")
    if "qa_outputs.weight" in names:
        heads["question"] = configs.classification(config, "tokens")
    if PREFIX + "pooler.dense.weight" in names and "choice" not in heads:
        heads["pooler"] = {}
    return heads


def write_config(encoder: EncoderConfig, heads: configs.Heads) -> dict[str, Any]:
    """The inverse of `read_config`, with the class that opens it."""
    return write_as("xlm-roberta", "XLMRoberta", encoder, heads)


def write_as(
    model_type: str, name: str, encoder: EncoderConfig, heads: configs.Heads
) -> dict[str, Any]:
    """A `config.json` for classes of this name."""
    names = {
        "sequence": f"{name}ForSequenceClassification",
        "tokens": f"{name}ForTokenClassification",
        "question": f"{name}ForQuestionAnswering",
        "choice": f"{name}ForMultipleChoice",
        MLM_HEAD: f"{name}ForMaskedLM",
    }
    return {
        "model_type": model_type,
        "architectures": configs.architectures(heads, f"{name}Model", names),
        **bert.write_sizes(encoder),
        "max_position_embeddings": encoder.max_positions + OFFSET,
        "pad_token_id": OFFSET - 1,
        **configs.write_labels(heads),
    }
