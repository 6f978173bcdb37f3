"""From Hugging Face to a checkpoint and back, and the other way round: nothing changes."""

import json
import os

import jax
import numpy as np
import pytest
from conversion import run, same, weights
from flax import nnx

from xl_flax.checkpoints.load import load_model, read_description
from xl_flax.converters import tensors
from xl_flax.converters.verify import make_outputs
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.mesh import MeshConfig, make_partitioning

FAMILIES = ("bert", "xlm_roberta", "xlm_roberta_xl", "xlm", "modernbert", "eurobert")


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_changes_no_bit(saved, family, tmp_path):
    ours = run(saved(family), tmp_path / "ours")
    back = run(ours, tmp_path / "back")
    before, after = weights(saved(family)), weights(back)
    same({name: before[name] for name in after}, after)
    again = run(back, tmp_path / "again")
    assert read_description(again).to_json() == read_description(ours).to_json()
    a, b = (params_lib.flat(nnx.to_pure_dict(nnx.state(load_model(x)[0]))) for x in (ours, again))
    same({p: np.asarray(x) for p, x in a}, {p: np.asarray(x) for p, x in b})
    with (
        open(f"{saved(family)}/tokenizer.json", "rb") as x,
        open(f"{back}/tokenizer.json", "rb") as y,
    ):
        assert x.read() == y.read()


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_opens_what_is_written(saved, zoo, family, tmp_path):
    import torch
    import transformers

    folder = run(run(saved(family), tmp_path / "ours"), tmp_path / "back", "--shard_gb=0.000002")
    assert os.path.exists(f"{folder}/{tensors.INDEX}")
    auto = transformers.AutoModelForMaskedLM
    model, told = auto.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["mismatched_keys"]
    before = auto.from_pretrained(saved(family)).eval()
    tokens = torch.tensor([[0, 7, 8, 9, 2]])
    with torch.no_grad():
        assert torch.equal(before(tokens).logits, model.eval()(tokens).logits)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("abc")["input_ids"] == [0, 5, 32, 33, 2]
    assert (tokenizer.pad_token, tokenizer.mask_token) == ("<pad>", "<mask>")
    assert "token_type_ids" not in tokenizer("abc") or family == "bert"


def test_the_names_of_the_first_published_berts_are_known(saved, folder, tmp_path):
    arrays = weights(saved("bert"))
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in arrays.items()
    }
    assert renamed.keys() != arrays.keys()
    bad = folder(**dict.fromkeys(arrays) | renamed)
    same(weights(run(run(bad, tmp_path / "ours"), tmp_path / "back")), arrays)


@pytest.mark.parametrize(
    "family, head",
    [("bert", "ForSequenceClassification"), ("modernbert", "ForTokenClassification"),
     ("xlm_roberta", "ForQuestionAnswering"), ("eurobert", "ForSequenceClassification"),
     ("bert", "ForMultipleChoice"), ("xlm_roberta", "ForMultipleChoice"),
     ("modernbert", "ForMultipleChoice")],
)  # fmt: skip
def test_heads_and_their_labels_travel(saved, family, head, tmp_path):
    back = run(run(saved(family, head), tmp_path / "ours"), tmp_path / "back")
    same(weights(saved(family, head)), weights(back))
    before, after = (json.load(open(f"{f}/config.json")) for f in (saved(family, head), back))
    assert after["architectures"] == before["architectures"]
    labels = None if "Choice" in head else {"0": "LABEL_0", "1": "LABEL_1"}
    assert after.get("id2label") == before.get("id2label", labels)


def test_a_checkpoint_is_read_onto_any_mesh(saved, tmp_path):
    ours = run(saved("xlm_roberta"), tmp_path / "ours")
    one, _, _ = load_model(ours, make_partitioning(MeshConfig(), jax.devices()[:1]))
    many, _, _ = load_model(ours, make_partitioning(MeshConfig(ici=(1, 2, 4))))
    a, b = (dict(params_lib.flat(nnx.to_pure_dict(nnx.state(m)))) for m in (one, many))
    same(*({p: np.asarray(x) for p, x in tree.items()} for tree in (a, b)))
    assert len(many.encoder.layers.up[...].sharding.device_set) == 8


def test_bfloat16_stays_and_can_be_asked_for(saved, tmp_path):
    half = run(saved("bert"), tmp_path / "half", "--dtype=bfloat16")
    back = weights(run(half, tmp_path / "back"))
    assert {str(value.dtype) for value in back.values()} == {"bfloat16"}
    full = weights(run(half, tmp_path / "full", "--dtype=float32"))
    same({k: v.astype(np.float32) for k, v in back.items()}, full)
    assert json.load(open(tmp_path / "back" / "config.json"))["dtype"] == "bfloat16"


MODERN = {
    "positions": "rotary", "pre_norm": True, "first_attention_norm": False, "final_norm": True,
    "gated_mlp": True, "bias": False, "norm_bias": False, "norm_eps": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tie_head": False},
        {"position_offset": 2},
        {"position_offset": 2, "tie_head": False, "token_types": 2, "norm_eps": 1e-5},
        MODERN,
        MODERN | {"local_window": 8},
        MODERN | {"local_window": 8, "num_layers": 5, "global_every": 2},
    ],
)
def test_what_was_trained_here_opens_there_and_comes_back(native, tmp_path, fields):
    import torch
    import transformers

    ours = native({"mlm": {}}, **fields)
    theirs = run(ours, tmp_path / "theirs")
    auto = transformers.AutoModelForMaskedLM
    model, told = auto.from_pretrained(theirs, output_loading_info=True)
    assert not any(told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again = run(theirs, tmp_path / "again")
    assert read_description(again).to_json() == read_description(ours).to_json()
    (model_, described, _), (back, _, _) = load_model(ours), load_model(again)
    a, b = (params_lib.flat(nnx.to_pure_dict(nnx.state(m))) for m in (model_, back))
    same({p: np.asarray(x) for p, x in a}, {p: np.asarray(x) for p, x in b})
    tokens, real = np.arange(5, 37).reshape(2, 16), np.ones((2, 16), bool)
    with torch.no_grad():
        expected = model.eval()(torch.tensor(tokens)).logits.numpy()
    found = make_outputs(model_, described, {"mlm"})(tokens, real)["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
