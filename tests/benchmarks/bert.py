"""A small BERT in PyTorch, the other side of retrieval.py and contrastive_vs_st.py."""

import tempfile

import jax
import numpy as np
import sentence_transformers
import tokenizers
import torch
import transformers
from common import LENGTH, SPECIAL, TOKENS, VOCAB
from flax import nnx
from sentence_transformers.sentence_transformer import modules

from xl_flax.models.config import EncoderConfig


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Words to ids, framed by [CLS] and [SEP]."""
    table = {token: i for i, token in enumerate(TOKENS)}
    table |= {f"w{i}": i + len(TOKENS) for i in range(VOCAB - len(TOKENS))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", SPECIAL.sep), ("[CLS]", SPECIAL.cls)
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=LENGTH,
    )


def make_bert(config: EncoderConfig) -> transformers.BertModel:
    """Random weights, large enough for words to matter."""
    torch.manual_seed(0)
    model = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.mlp_width,
            max_position_embeddings=config.max_positions,
            initializer_range=0.05,
        ),
        add_pooling_layer=False,
    )
    return model.eval()


def copy_weights(bert: transformers.BertModel, encoder: nnx.Module) -> None:
    """Gives our encoder, which may be abstract, BERT's weights, transposing those of its layers."""
    count, width, heads = (
        bert.config.num_hidden_layers,
        bert.config.hidden_size,
        bert.config.num_attention_heads,
    )
    w = {name: value.numpy() for name, value in bert.state_dict().items()}

    def stack(name: str) -> np.ndarray:
        return np.stack([w[f"encoder.layer.{i}.{name}"].T for i in range(count)])

    def put(parameter: nnx.Param, value: np.ndarray) -> None:
        parameter.set_value(jax.numpy.asarray(value.reshape(parameter.shape)))

    split, layers = (heads, width // heads), encoder.layers
    table = encoder.embeddings
    put(table.tokens, w["embeddings.word_embeddings.weight"])
    put(table.positions, w["embeddings.position_embeddings.weight"])
    put(table.token_types, w["embeddings.token_type_embeddings.weight"])
    put(table.norm.scale, w["embeddings.LayerNorm.weight"])
    put(table.norm.bias, w["embeddings.LayerNorm.bias"])
    parts = [f"attention.self.{part}" for part in ("query", "key", "value")]
    kernels = [stack(f"{part}.weight").reshape(count, width, *split) for part in parts]
    put(layers.qkv, np.stack(kernels, 2))
    put(layers.qkv_bias, np.stack([stack(f"{p}.bias").reshape(count, *split) for p in parts], 1))
    for name, kernel, bias in (
        ("attention.output.dense", layers.out, layers.out_bias),
        ("intermediate.dense", layers.up, layers.up_bias),
        ("output.dense", layers.down, layers.down_bias),
        ("attention.output.LayerNorm", layers.attention_norm.scale, layers.attention_norm.bias),
        ("output.LayerNorm", layers.mlp_norm.scale, layers.mlp_norm.bias),
    ):
        put(kernel, stack(f"{name}.weight"))
        put(bias, stack(f"{name}.bias"))


class WithoutSpecials(torch.nn.Module):
    """Takes [CLS] and [SEP] out of what the pooling behind it averages."""

    def forward(self, features: dict) -> dict:
        mask = features["attention_mask"].clone()
        mask[torch.arange(len(mask)), mask.sum(dim=1) - 1] = 0
        mask[:, 0] = 0
        return features | {"attention_mask": mask}


def sentence_transformer(bert: transformers.BertModel) -> sentence_transformers.SentenceTransformer:
    """Mean pooling without special tokens over a copy of this BERT."""
    with tempfile.TemporaryDirectory() as folder:
        bert.save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        transformer = modules.Transformer(folder, max_seq_length=LENGTH)
    pooling = modules.Pooling(bert.config.hidden_size, "mean")
    return sentence_transformers.SentenceTransformer(
        modules=[transformer, WithoutSpecials(), pooling], device="cpu"
    )
