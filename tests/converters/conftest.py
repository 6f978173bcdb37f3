"""The `zoo`: small random models of every family, drawn by Hypothesis, and a tokenizer for them.

Folders of such models, and checkpoints made here.
"""

import dataclasses
import hashlib
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from conversion import weights
from flax import nnx
from hypothesis import find, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.load import unflatten
from xl_flax.checkpoints.save import save_checkpoint
from xl_flax.converters import read, tensors
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.parallel import params as params_lib

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
LETTERS = [chr(i) for i in range(ord("a"), ord("z") + 1)]
PIECES = SPECIAL + LETTERS + [f"##{c}" for c in LETTERS]

HEADS = {
    "bert": ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification",
             "ForQuestionAnswering", "ForMultipleChoice", "ForPreTraining"),
    "xlm_roberta": ("Model", "ForMaskedLM", "ForSequenceClassification",
                    "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice"),
    "xlm_roberta_xl": ("Model", "ForMaskedLM", "ForSequenceClassification",
                       "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice"),
    "xlm": ("Model", "WithLMHeadModel", "ForSequenceClassification", "ForTokenClassification",
            "ForQuestionAnsweringSimple"),
    "modernbert": ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification",
                   "ForQuestionAnswering", "ForMultipleChoice"),
    "eurobert": ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"),
}  # fmt: skip
HEADS |= dict.fromkeys(("roberta", "camembert"), HEADS["xlm_roberta"])
CLASSES = {
    "bert": "Bert",
    "xlm_roberta": "XLMRoberta",
    "roberta": "Roberta",
    "camembert": "Camembert",
    "xlm_roberta_xl": "XLMRobertaXL",
    "xlm": "XLM",
    "modernbert": "ModernBert",
    "eurobert": "EuroBert",
}


@st.composite
def configs(draw, family: str):
    """Arguments of a family's configuration in Transformers."""
    heads = draw(st.sampled_from([1, 2, 4]))
    sizes = {
        "vocab_size": draw(st.integers(len(PIECES), 90)),
        "hidden_size": heads * draw(st.sampled_from([4, 8, 10])),
        "num_hidden_layers": draw(st.integers(1, 4)),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(3, 40)),
    }
    positions, labels = draw(st.integers(16, 40)), draw(st.integers(2, 5))
    shared = {"num_labels": labels, "tie_word_embeddings": draw(st.booleans())} | IDS
    if family == "bert":
        act = draw(st.sampled_from(["gelu", "gelu_new", "relu"]))
        more = {"type_vocab_size": draw(st.integers(1, 3)), "hidden_act": act}
        return sizes | shared | more | {"max_position_embeddings": positions}
    if "roberta" in family or family == "camembert":
        more = {"type_vocab_size": 1, "max_position_embeddings": positions + 2}
        return sizes | shared | more | {"layer_norm_eps": draw(st.sampled_from([1e-5, 1e-12]))}
    if family == "xlm":
        languages = draw(st.integers(1, 4))
        return shared | {
            "vocab_size": sizes["vocab_size"],
            "emb_dim": sizes["hidden_size"],
            "n_layers": sizes["num_hidden_layers"],
            "n_heads": heads,
            "max_position_embeddings": positions,
            "n_langs": languages,
            "lang2id": {chr(ord("a") + i): i for i in range(languages)},
            "gelu_activation": draw(st.booleans()),
            "sinusoidal_embeddings": draw(st.booleans()),
        }
    rotary = {"hidden_size": heads * draw(st.sampled_from([4, 8]))}
    if family == "modernbert":
        bias = draw(st.booleans())
        more = {f"{what}_bias": bias for what in ("attention", "mlp", "classifier")}
        return (
            sizes
            | shared
            | more
            | rotary
            | {
                "max_position_embeddings": positions,
                "norm_bias": draw(st.booleans()),
                "decoder_bias": draw(st.booleans()),
                "local_attention": 2 * draw(st.integers(1, 6)),
                "global_attn_every_n_layers": draw(st.integers(1, 4)),
                "classifier_pooling": draw(st.sampled_from(["cls", "mean"])),
                "cls_token_id": 0,
                "sep_token_id": 2,
            }
        )
    bias = draw(st.booleans())
    return sizes | shared | rotary | {
        "max_position_embeddings": positions,
        "num_key_value_heads": draw(st.sampled_from([n for n in (1, 2, 4) if not heads % n])),
        "attention_bias": bias,
        "mlp_bias": bias,
        "mask_token_id": 4,
        "classifier_pooling": draw(st.sampled_from(["bos", "mean", "late"])),
        "rope_parameters": {"rope_type": "default", "rope_theta": draw(st.floats(1e4, 1e6))},
    }  # fmt: skip


def simple(family: str) -> dict:
    """The simplest such arguments with three layers and several heads."""

    def enough(c):
        layers, heads = (
            ("n_layers", "n_heads")
            if "n_layers" in c
            else ("num_hidden_layers", "num_attention_heads")
        )
        return c[layers] == 3 and c[heads] > 1 and c["tie_word_embeddings"]

    return find(configs(family), enough, settings=settings(database=None, derandomize=True))


def make(family: str, head: str, config: dict, seed: int = 0):
    """A model of Transformers with random weights, far from the initial ones, in eval mode."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    name = CLASSES[family]
    torch.manual_seed(seed)
    if "Question" in head:
        config = config | {"num_labels": 2}  # start and end
    built = getattr(transformers, f"{name}{head}")(getattr(transformers, f"{name}Config")(**config))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (0.5 * (parameter.ndim == 1)))
    return built.eval()


def save(model, folder: str) -> str:
    """Writes a model and a tokenizer of letters."""
    model.save_pretrained(folder)
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece({p: i for i, p in enumerate(PIECES)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([tokenizers.AddedToken(p, special=True) for p in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    return folder


def padded_batch(rng: np.random.Generator, vocab: int, length: int, rows: int = 3):
    """(tokens [B, L], real [B, L]) of random lengths, at least 3."""
    lengths = rng.integers(3, length + 1, rows)
    lengths[0] = length
    real = np.arange(length) < lengths[:, None]
    return np.where(real, rng.integers(5, vocab, real.shape), IDS["pad_token_id"]), real


def rewrite_config(folder: str, **values) -> None:
    """Changes keys of a folder's config.json; None removes one."""
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        config = json.load(file) | values
    with open(path, "w") as file:
        json.dump({k: v for k, v in config.items() if v is not None}, file)


def load(folder: str, dtype: str = "float32"):
    """Our model, which computes in this dtype, and its description, straight from a folder."""
    found = read.open_model(folder)
    found = dataclasses.replace(found, encoder=dataclasses.replace(found.encoder, dtype=dtype))
    description = read.describe(found, "", {})
    params = read.read_params(found, lambda _: None)
    build = lambda: build_model(found.encoder, description.heads, nnx.Rngs(0))  # noqa: E731
    graph = params_lib.abstract(build).graph
    params = {path: jnp.asarray(value, jnp.float32) for path, value in params.items()}
    return nnx.merge(graph, unflatten(params)), description


def pytest_generate_tests(metafunc):
    """Every head of every family, for tests that ask for `family_and_head`."""
    if "family_and_head" in metafunc.fixturenames:
        pairs = [(family, head) for family, heads in HEADS.items() for head in heads]
        metafunc.parametrize("family_and_head", pairs, ids=["-".join(pair) for pair in pairs])


class Zoo:
    """What the tests of this folder share."""

    HEADS = HEADS
    configs, simple, make = map(staticmethod, (configs, simple, make))
    save, load = map(staticmethod, (save, load))
    padded_batch, rewrite_config = map(staticmethod, (padded_batch, rewrite_config))


@pytest.fixture(scope="session")
def zoo():
    """Needs Transformers."""
    pytest.importorskip("transformers")
    return Zoo


@pytest.fixture(scope="session")
def saved(zoo, tmp_path_factory):
    """A folder with an MLM head, per family."""
    made = {}

    def get(family, head=None):
        head = head or next(h for h in zoo.HEADS[family] if "LM" in h)
        if (family, head) not in made:
            folder = str(tmp_path_factory.mktemp(family))
            made[family, head] = zoo.save(zoo.make(family, head, zoo.simple(family)), folder)
        return made[family, head]

    return get


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of a folder whose weights can be changed."""
    arrays = weights(saved("bert"))

    def change(**changes):
        changed = arrays | changes
        kept = {k: v for k, v in changed.items() if v is not None}
        os.makedirs(tmp_path / "bad")
        for name in ("config.json", "tokenizer.json"):
            with open(f"{saved('bert')}/{name}", "rb") as file:
                (tmp_path / "bad" / name).write_bytes(file.read())
        made = {k: tensors.Tensor(v.shape, v.dtype, lambda v=v: v) for k, v in kept.items()}
        tensors.write_folder(str(tmp_path / "bad"), made, 1 << 30, lambda _: None)
        return tmp_path / "bad"

    return change


@pytest.fixture
def native(saved, tmp_path):
    """native(heads, **fields) -> the folder of a checkpoint that was made here."""

    def make(heads, **fields):
        sizes = {"vocab_size": 57, "num_layers": 2, "width": 8, "num_heads": 2, "mlp_width": 8}
        config = EncoderConfig(**sizes | {"max_positions": 32} | fields)
        build = lambda: build_model(config, heads, nnx.Rngs(0))  # noqa: E731
        params = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(build())))
        with open(f"{saved('bert')}/tokenizer.json", "rb") as file:
            content = file.read()
        vocabulary = hashlib.sha256(content).hexdigest()
        description = Description(config, heads, vocabulary, {"mlm": ("aaa", "bbb")}, {}, 7)
        files = {"model.json": description.to_json(), "tokenizer.json": content}
        save_checkpoint(str(tmp_path / "ours"), params, files)
        return str(tmp_path / "ours")

    return make
