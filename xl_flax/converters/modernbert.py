"""ModernBERT and mmBERT (Warner et al. 2024, arXiv:2412.13663; Marone et al. 2025)."""

from collections.abc import Collection
from typing import Any

from xl_flax.converters import config as configs
from xl_flax.converters.weights import LAYER, Weight, linear, norm, same
from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import MLM_HEAD, MLM_PARAMS

MODEL_TYPES = ("modernbert",)
PREFIX = "model."
IGNORED = r"decoder\.weight"
INPUTS = ("input_ids", "attention_mask")
UNTIED: dict[str, str] = {}
GLOBAL, LOCAL = "full_attention", "sliding_attention"
CLASSIFIERS = ("sequence", "tokens", "question", "choice")

BODY = [
    same("encoder/embeddings/tokens", "embeddings.tok_embeddings.weight"),
    *norm("encoder/embeddings/norm", "embeddings.norm"),
    *norm(LAYER + "attention_norm", "layers.{}.attn_norm"),
    *linear(LAYER + "qkv", "layers.{}.attn.Wqkv"),
    *linear(LAYER + "out", "layers.{}.attn.Wo", inputs=2),
    *norm(LAYER + "mlp_norm", "layers.{}.mlp_norm"),
    *linear(LAYER + "up", "layers.{}.mlp.Wi"),
    *linear(LAYER + "down", "layers.{}.mlp.Wo"),
    *norm("encoder/final_norm", "final_norm"),
]
HEADS = [
    same(MLM_PARAMS + "bias", "decoder.bias"),
    same(MLM_PARAMS + "table", "decoder.weight"),
    *[w for name in (MLM_HEAD, *CLASSIFIERS) for w in linear(f"heads/{name}/dense", "head.dense")],
    *[w for name in (MLM_HEAD, *CLASSIFIERS) for w in norm(f"heads/{name}/norm", "head.norm")],
    *[Weight(f"heads/{name}/out", ("classifier.weight",), 1) for name in CLASSIFIERS],
    *[same(f"heads/{name}/bias", "classifier.bias") for name in CLASSIFIERS],
]


def read_config(config: configs.Config) -> EncoderConfig:
    """The encoder that a `config.json` describes, of Transformers 5 or before."""
    required = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size"
    configs.missing_keys(config, required.split())
    bias = config.get("attention_bias", False)
    configs.require(config, "all maps have a bias or none", mlp_bias=bias, classifier_bias=bias)
    act = config.get("hidden_activation", "gelu")
    theirs = config.get("classifier_activation", "gelu")
    configs.require({"classifier_activation": theirs}, "the layers' is", classifier_activation=act)
    ropes = config.get("rope_parameters") or {}
    bases = {
        kind: ropes.get(kind, {}).get("rope_theta", config.get(before, default))
        for kind, before, default in (
            (GLOBAL, "global_rope_theta", 160_000.0),
            (LOCAL, "local_rope_theta", 10_000.0),
        )
    }
    scaled = {ropes.get(kind, {}).get("rope_type", "default") for kind in (GLOBAL, LOCAL)}
    if scaled != {"default"} or config.get("rope_scaling"):
        raise UserError("config.json: scaled rotary positions cannot be converted")
    dropout = config.get("mlp_dropout", 0.0)
    return EncoderConfig(
        vocab_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        num_heads=config["num_attention_heads"],
        mlp_width=config["intermediate_size"],
        max_positions=config.get("max_position_embeddings", 8192),
        positions="rotary",
        rotary_base=float(bases[GLOBAL]),
        local_rotary_base=float(bases[LOCAL] or bases[GLOBAL]),
        local_window=config.get("local_attention", 128),
        global_every=_global_every(config),
        pre_norm=True,
        first_attention_norm=False,
        final_norm=True,
        norm_eps=config.get("norm_eps", 1e-5),
        norm_bias=config.get("norm_bias", False),
        bias=bias,
        activation=configs.activation(config, "hidden_activation"),
        gated_mlp=True,
        tie_head=config.get("tie_word_embeddings", True),
        head_bias=config.get("decoder_bias", True),
        embedding_dropout=config.get("embedding_dropout", 0.0),
        attention_dropout=config.get("attention_dropout", 0.0),
        attention_out_dropout=config.get("attention_dropout", 0.0),
        mlp_out_dropout=dropout,
    )


def _global_every(config: configs.Config) -> int:
    kinds = config.get("layer_types")
    if not kinds:
        return config.get("global_attn_every_n_layers", 3)
    whole = [i for i, kind in enumerate(kinds) if kind == GLOBAL]
    every = whole[1] if len(whole) > 1 else max(len(kinds), 1)
    if kinds != [LOCAL if i % every else GLOBAL for i in range(len(kinds))]:
        raise UserError("config.json: layer_types are not one global layer in every n, from 0 on")
    return every


def read_heads(config: configs.Config, names: Collection[str]) -> dict[str, Any]:
    """The heads that a folder's tensors make."""
    if "classifier.weight" in names:
        configs.require(config, "classifiers have a GELU", classifier_activation="gelu")
        settings = {"dense": "gelu_norm", "dense_bias": config.get("classifier_bias", False)}
        kind = configs.architecture(config)
        if kind.endswith("ForTokenClassification"):
            return {"tokens": configs.classification(config, "tokens", **settings)}
        if kind.endswith("ForQuestionAnswering"):
            return {"question": configs.classification(config, "tokens", **settings)}
        pooling = {"cls": "cls", "mean": "mean_all"}[config.get("classifier_pooling", "cls")]
        if configs.is_choice(config):
            return {"choice": configs.choice(pooling, **settings)}
        return {"sequence": configs.classification(config, pooling, **settings)}
    return {MLM_HEAD: {}} if "head.dense.weight" in names else {}


def write_config(encoder: EncoderConfig, heads: configs.Heads) -> dict[str, Any]:
    """The inverse of `read_config`, with the class that opens it."""
    names = {
        "sequence": "ModernBertForSequenceClassification",
        "tokens": "ModernBertForTokenClassification",
        "question": "ModernBertForQuestionAnswering",
        "choice": "ModernBertForMultipleChoice",
        MLM_HEAD: "ModernBertForMaskedLM",
    }
    pooled = [heads[name]["pooling"] for name in ("sequence", "choice") if name in heads]
    ropes = {GLOBAL: encoder.rotary_base, LOCAL: encoder.local_rotary_base}
    every = encoder.global_every if encoder.local_window else 1
    return {
        "model_type": "modernbert",
        "architectures": configs.architectures(heads, "ModernBertModel", names),
        "vocab_size": encoder.vocab_size,
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.num_layers,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": encoder.mlp_width,
        "max_position_embeddings": encoder.max_positions,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": base} for kind, base in ropes.items()
        },
        "global_rope_theta": encoder.rotary_base,  # before Transformers 5
        "local_rope_theta": encoder.local_rotary_base,
        "local_attention": encoder.local_window or 128,
        "layer_types": [LOCAL if i % every else GLOBAL for i in range(encoder.num_layers)],
        "global_attn_every_n_layers": every,
        "norm_eps": encoder.norm_eps,
        "norm_bias": encoder.norm_bias,
        "attention_bias": encoder.bias,
        "mlp_bias": encoder.bias,
        "classifier_bias": encoder.bias,
        "hidden_activation": configs.THEIR_ACTIVATIONS[encoder.activation],
        "classifier_activation": configs.THEIR_ACTIVATIONS[encoder.activation],
        "classifier_pooling": "mean" if "mean_all" in pooled else "cls",
        "decoder_bias": encoder.head_bias,
        "tie_word_embeddings": encoder.tie_head,
        "embedding_dropout": encoder.embedding_dropout,
        "attention_dropout": encoder.attention_dropout,
        "mlp_dropout": encoder.mlp_out_dropout,
        "initializer_range": encoder.init_std,
        **configs.write_labels(heads),
    }
