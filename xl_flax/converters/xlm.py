"""XLM (Lample and Conneau 2019): a table of languages, and no transform in the MLM head."""

from collections.abc import Collection, Sequence
from typing import Any

from xl_flax.converters import bert
from xl_flax.converters import config as configs
from xl_flax.converters.weights import LAYER, Weight, attention, linear, norm, same
from xl_flax.data.vocabulary import SpecialIds
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import MLM_HEAD, MLM_PARAMS

MODEL_TYPES = ("xlm",)
PREFIX = "transformer."
IGNORED = r".*position_ids|pred_layer\.proj\.weight"
INPUTS = ("input_ids", "attention_mask")
UNTIED: dict[str, str] = {}

BODY = [
    same("encoder/embeddings/tokens", "embeddings.weight"),
    same("encoder/embeddings/positions", "position_embeddings.weight"),
    same("encoder/embeddings/languages", "lang_embeddings.weight"),
    *norm("encoder/embeddings/norm", "layer_norm_emb"),
    *attention(
        "attentions.{}.q_lin", "attentions.{}.k_lin", "attentions.{}.v_lin", "attentions.{}.out_lin"
    ),
    *norm(LAYER + "attention_norm", "layer_norm1.{}"),
    *linear(LAYER + "up", "ffns.{}.lin1"),
    *linear(LAYER + "down", "ffns.{}.lin2"),
    *norm(LAYER + "mlp_norm", "layer_norm2.{}"),
]
HEADS = [
    same(MLM_PARAMS + "bias", "pred_layer.proj.bias"),
    same(MLM_PARAMS + "table", "pred_layer.proj.weight"),
    Weight("heads/sequence/out", ("sequence_summary.summary.weight",), 1),
    same("heads/sequence/bias", "sequence_summary.summary.bias"),
    *bert.TOKENS,
    *bert.SPANS,
]


def read_config(config: configs.Config) -> EncoderConfig:
    """The encoder that a `config.json` describes."""
    configs.missing_keys(config, ("emb_dim", "n_layers", "n_heads"))
    configs.require(config, "this is no encoder", asm=False, causal=False, is_encoder=True)
    languages = config.get("n_langs", 1) if config.get("use_lang_emb", True) else 1
    width = config["emb_dim"]
    return EncoderConfig(
        vocab_size=config.get("vocab_size", config.get("n_words", 30145)),
        num_layers=config["n_layers"],
        width=width,
        num_heads=config["n_heads"],
        mlp_width=4 * width,
        max_positions=config.get("max_position_embeddings", 512),
        languages=languages if languages > 1 else 0,
        norm_eps=config.get("layer_norm_eps", 1e-12),
        activation="gelu" if config.get("gelu_activation", True) else "relu",
        tie_head=config.get("tie_word_embeddings", True),
        head_dense=False,
        **configs.dropouts(config.get("dropout", 0.1), config.get("attention_dropout", 0.1)),
    )


def read_heads(config: configs.Config, names: Collection[str]) -> dict[str, Any]:
    """The heads that a folder's tensors make."""
    heads: dict[str, Any] = {}
    if "pred_layer.proj.bias" in names:
        heads[MLM_HEAD] = {}
    if "sequence_summary.summary.weight" in names:
        configs.require(
            config,
            "another summary",
            summary_type="first",
            summary_use_proj=True,
            summary_proj_to_labels=True,
            summary_activation=None,
        )
        heads["sequence"] = configs.classification(config, "cls")
    if "classifier.weight" in names:
        heads["tokens"] = configs.classification(config, "tokens")
    if "qa_outputs.weight" in names:
        heads["question"] = configs.classification(config, "tokens")
    return heads


def write_config(encoder: EncoderConfig, heads: configs.Heads) -> dict[str, Any]:
    """The inverse of `read_config`, with the class that opens it."""
    names = {
        "sequence": "XLMForSequenceClassification",
        "tokens": "XLMForTokenClassification",
        "question": "XLMForQuestionAnsweringSimple",
        MLM_HEAD: "XLMWithLMHeadModel",
    }
    return {
        "model_type": "xlm",
        "architectures": configs.architectures(heads, "XLMModel", names),
        "vocab_size": encoder.vocab_size,
        "emb_dim": encoder.width,
        "n_layers": encoder.num_layers,
        "n_heads": encoder.num_heads,
        "max_position_embeddings": encoder.max_positions,
        "n_langs": max(encoder.languages, 1),
        "use_lang_emb": bool(encoder.languages),
        "gelu_activation": encoder.activation == "gelu",
        "layer_norm_eps": encoder.norm_eps,
        "dropout": encoder.mlp_out_dropout,
        "attention_dropout": encoder.attention_dropout,
        "init_std": encoder.init_std,
        "tie_word_embeddings": encoder.tie_head,
        **configs.write_labels(heads),
    }


def write_ids(special: SpecialIds, languages: Sequence[str]) -> dict[str, Any]:
    """What only XLM's `config.json` says of the vocabulary and the language table."""
    return {
        "pad_index": special.pad,
        "unk_index": special.unk,
        "bos_index": special.cls,
        "eos_index": special.sep,
        "mask_index": special.mask,
        "lang2id": {name: i for i, name in enumerate(languages)},
        "id2lang": {str(i): name for i, name in enumerate(languages)},
    }
