"""BERT: mBERT, LaBSE, MiniLM and other encoders of its shape (Devlin et al. 2019)."""

from collections.abc import Collection
from typing import Any

from xl_flax.converters import config as configs
from xl_flax.converters.weights import LAYER, Weight, attention, linear, norm, same
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import MLM_HEAD, MLM_PARAMS

MODEL_TYPES = ("bert",)
PREFIX = "bert."  # of what is not a head; a folder without heads lacks it
IGNORED = r".*position_ids|cls\.predictions\.decoder\.(weight|bias)|cls\.seq_relationship\..*"
INPUTS = ("input_ids", "token_type_ids", "attention_mask")

# Where the head has a table of its own, its bias is the table's; Transformers keeps both.
UNTIED = {"cls.predictions.bias": "cls.predictions.decoder.bias"}

# What RoBERTa names the same.
EMBEDDINGS = [
    same("encoder/embeddings/tokens", "embeddings.word_embeddings.weight"),
    same("encoder/embeddings/positions", "embeddings.position_embeddings.weight"),
    same("encoder/embeddings/token_types", "embeddings.token_type_embeddings.weight"),
]
BLOCKS = [
    *attention(
        "encoder.layer.{}.attention.self.query",
        "encoder.layer.{}.attention.self.key",
        "encoder.layer.{}.attention.self.value",
        "encoder.layer.{}.attention.output.dense",
    ),
    *linear(LAYER + "up", "encoder.layer.{}.intermediate.dense"),
    *linear(LAYER + "down", "encoder.layer.{}.output.dense"),
]
NORMS = [
    *norm("encoder/embeddings/norm", "embeddings.LayerNorm"),
    *norm(LAYER + "attention_norm", "encoder.layer.{}.attention.output.LayerNorm"),
    *norm(LAYER + "mlp_norm", "encoder.layer.{}.output.LayerNorm"),
]
POOLER = linear("heads/pooler/dense", "pooler.dense")
SPANS = [
    Weight("heads/question/out", ("qa_outputs.weight",), 1),
    same("heads/question/bias", "qa_outputs.bias"),
]
TOKENS = [
    Weight("heads/tokens/out", ("classifier.weight",), 1),
    same("heads/tokens/bias", "classifier.bias"),
]

# Multiple choice: a score of the pooler's vector.
CHOICE_POOLER = linear("heads/choice/dense", "pooler.dense")
CHOICE = [
    Weight("heads/choice/out", ("classifier.weight",), 1),
    same("heads/choice/bias", "classifier.bias"),
]

BODY = [
    *EMBEDDINGS,
    *BLOCKS,
    *NORMS,
    *POOLER,
    *linear("heads/sequence/dense", "pooler.dense"),
    *CHOICE_POOLER,
]
HEADS = [
    *linear(MLM_PARAMS + "dense", "cls.predictions.transform.dense"),
    *norm(MLM_PARAMS + "norm", "cls.predictions.transform.LayerNorm"),
    same(MLM_PARAMS + "bias", "cls.predictions.bias"),
    same(MLM_PARAMS + "table", "cls.predictions.decoder.weight"),
    Weight("heads/sequence/out", ("classifier.weight",), 1),
    same("heads/sequence/bias", "classifier.bias"),
    *TOKENS,
    *SPANS,
    *CHOICE,
]


def read_sizes(config: configs.Config) -> dict[str, Any]:
    """What BERT and RoBERTa name the same, as arguments of `EncoderConfig`."""
    required = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size"
    configs.missing_keys(config, required.split())
    configs.require(config, "positions are learned", position_embedding_type="absolute")
    configs.require(config, "an encoder sees both sides", is_decoder=False)
    return {
        "vocab_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "num_heads": config["num_attention_heads"],
        "mlp_width": config["intermediate_size"],
        "token_types": config.get("type_vocab_size", 2),
        "activation": configs.activation(config, "hidden_act"),
        "tie_head": config.get("tie_word_embeddings", True),
        **configs.dropouts(
            config.get("hidden_dropout_prob", 0.1), config.get("attention_probs_dropout_prob", 0.1)
        ),
    }


def read_config(config: configs.Config) -> EncoderConfig:
    """The encoder that a `config.json` describes."""
    return EncoderConfig(
        **read_sizes(config),
        max_positions=config.get("max_position_embeddings", 512),
        norm_eps=config.get("layer_norm_eps", 1e-12),
    )


def read_heads(config: configs.Config, names: Collection[str]) -> dict[str, Any]:
    """The heads that a folder's tensors make."""
    heads: dict[str, Any] = {}
    if "cls.predictions.bias" in names:
        heads[MLM_HEAD] = {}
    if "classifier.weight" in names:
        if configs.architecture(config).endswith("ForTokenClassification"):
            heads["tokens"] = configs.classification(config, "tokens")
        elif configs.is_choice(config):
            heads["choice"] = configs.choice("cls", dense="tanh")
        else:
            heads["sequence"] = configs.classification(config, "cls", dense="tanh")
    if "qa_outputs.weight" in names:
        heads["question"] = configs.classification(config, "tokens")
    if PREFIX + "pooler.dense.weight" in names and not {"sequence", "choice"} & heads.keys():
        heads["pooler"] = {}
    return heads


def write_sizes(encoder: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_sizes`."""
    return {
        "vocab_size": encoder.vocab_size,
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.num_layers,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": encoder.mlp_width,
        "type_vocab_size": encoder.token_types or 1,
        "hidden_act": configs.THEIR_ACTIVATIONS[encoder.activation],
        "tie_word_embeddings": encoder.tie_head,
        "layer_norm_eps": encoder.norm_eps,
        "initializer_range": encoder.init_std,
        **configs.write_dropouts(encoder),
    }


def write_config(encoder: EncoderConfig, heads: configs.Heads) -> dict[str, Any]:
    """The inverse of `read_config`, with the class that opens it."""
    names = {
        "sequence": "BertForSequenceClassification",
        "tokens": "BertForTokenClassification",
        "question": "BertForQuestionAnswering",
        "choice": "BertForMultipleChoice",
        MLM_HEAD: "BertForMaskedLM",
    }
    return {
        "model_type": "bert",
        "architectures": configs.architectures(heads, "BertModel", names),
        **write_sizes(encoder),
        "max_position_embeddings": encoder.max_positions,
        **configs.write_labels(heads),
    }
