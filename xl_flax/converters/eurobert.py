"""EuroBERT (Boizard et al. 2025, arXiv:2503.05500): Llama's layers, seen from both sides."""

from collections.abc import Collection
from typing import Any

from xl_flax.converters import bert
from xl_flax.converters import config as configs
from xl_flax.converters.weights import LAYER, Weight, attention, linear, norm, same
from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import MLM_HEAD, MLM_PARAMS

MODEL_TYPES = ("eurobert",)
PREFIX = "model."
IGNORED = r".*rotary_emb\.inv_freq|lm_head\.weight"
INPUTS = ("input_ids", "attention_mask")
UNTIED: dict[str, str] = {}
POOLING = {"bos": "cls", "mean": "mean_all", "late": "scores"}

BODY = [
    same("encoder/embeddings/tokens", "embed_tokens.weight"),
    *norm(LAYER + "attention_norm", "layers.{}.input_layernorm"),
    *attention(
        "layers.{}.self_attn.q_proj",
        "layers.{}.self_attn.k_proj",
        "layers.{}.self_attn.v_proj",
        "layers.{}.self_attn.o_proj",
    ),
    *norm(LAYER + "mlp_norm", "layers.{}.post_attention_layernorm"),
    *linear(LAYER + "up", "layers.{}.mlp.gate_proj", "layers.{}.mlp.up_proj"),
    *linear(LAYER + "down", "layers.{}.mlp.down_proj"),
    *norm("encoder/final_norm", "norm"),
]
HEADS = [
    same(MLM_PARAMS + "table", "lm_head.weight"),
    same(MLM_PARAMS + "bias", "lm_head.bias"),
    *linear("heads/sequence/dense", "dense"),
    Weight("heads/sequence/out", ("classifier.weight",), 1),
    same("heads/sequence/bias", "classifier.bias"),
    *bert.TOKENS,
]


def read_config(config: configs.Config) -> EncoderConfig:
    """The encoder that a `config.json` describes."""
    required = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size"
    configs.missing_keys(config, required.split())
    width, heads = config["hidden_size"], config["num_attention_heads"]
    bias = config.get("mlp_bias", False)
    configs.require(config, "all maps have a bias or none", attention_bias=bias)
    if config.get("head_dim") not in (None, width // heads):
        raise UserError(f"config.json: head_dim = {config['head_dim']} is not {width} / {heads}")
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default" or config.get("rope_scaling"):
        raise UserError("config.json: scaled rotary positions cannot be converted")
    kv_heads = config.get("num_key_value_heads") or heads
    return EncoderConfig(
        vocab_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        width=width,
        num_heads=heads,
        num_kv_heads=None if kv_heads == heads else kv_heads,
        mlp_width=config["intermediate_size"],
        max_positions=config.get("max_position_embeddings", 8192),
        positions="rotary",
        rotary_base=float(rope.get("rope_theta", config.get("rope_theta", 250_000.0))),
        pre_norm=True,
        embedding_norm=False,
        final_norm=True,
        norm="rms",
        norm_bias=False,
        norm_eps=config.get("rms_norm_eps", 1e-5),
        bias=bias,
        activation=configs.activation({"hidden_act": "silu", **config}, "hidden_act"),
        gated_mlp=True,
        tie_head=config.get("tie_word_embeddings", False),
        head_dense=False,
        head_bias=bias,
        attention_dropout=config.get("attention_dropout", 0.0),
    )


def read_heads(config: configs.Config, names: Collection[str]) -> dict[str, Any]:
    """The heads that a folder's tensors make."""
    if "classifier.weight" in names and "dense.weight" in names:
        pooling = POOLING[config.get("classifier_pooling", "late")]
        return {"sequence": configs.classification(config, pooling, dense="gelu")}
    if "classifier.weight" in names:
        return {"tokens": configs.classification(config, "tokens")}
    tied = config.get("tie_word_embeddings", False)
    masked = configs.architecture(config).endswith("ForMaskedLM")
    return {MLM_HEAD: {}} if "lm_head.weight" in names or (tied and masked) else {}


def write_config(encoder: EncoderConfig, heads: configs.Heads) -> dict[str, Any]:
    """The inverse of `read_config`, with the class that opens it."""
    names = {
        "sequence": "EuroBertForSequenceClassification",
        "tokens": "EuroBertForTokenClassification",
        MLM_HEAD: "EuroBertForMaskedLM",
    }
    pooling = {ours: theirs for theirs, ours in POOLING.items()}
    return {
        "model_type": "eurobert",
        "architectures": configs.architectures(heads, "EuroBertModel", names),
        "vocab_size": encoder.vocab_size,
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.num_layers,
        "num_attention_heads": encoder.num_heads,
        "num_key_value_heads": encoder.kv_heads,
        "intermediate_size": encoder.mlp_width,
        "max_position_embeddings": encoder.max_positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": encoder.rotary_base},
        "rms_norm_eps": encoder.norm_eps,
        "attention_bias": encoder.bias,
        "mlp_bias": encoder.bias,
        "hidden_act": configs.THEIR_ACTIVATIONS[encoder.activation],
        "tie_word_embeddings": encoder.tie_head,
        "attention_dropout": encoder.attention_dropout,
        "classifier_pooling": pooling.get(heads.get("sequence", {}).get("pooling"), "late"),
        "initializer_range": encoder.init_std,
        **configs.write_labels(heads),
    }
