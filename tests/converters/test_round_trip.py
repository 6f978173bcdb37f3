"""From Hugging Face to a checkpoint and back, and the other way round: nothing changes."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from xl_flax import convert
from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.intact import write_checksums
from xl_flax.checkpoints.load import load_model, read_description
from xl_flax.checkpoints.save import save_checkpoint
from xl_flax.converters import tensors
from xl_flax.converters.verify import make_outputs
from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.mesh import MeshConfig, make_partitioning

FAMILIES = ("bert", "xlm_roberta", "xlm_roberta_xl", "xlm", "modernbert", "eurobert")


def run(source, target, *flags):
    convert.main([f"--source={source}", f"--target={target}", *flags])
    return str(target)


def weights(folder):
    return {name: tensor.read() for name, tensor in tensors.open_folder(str(folder)).items()}


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert (a[key].dtype, a[key].shape) == (b[key].dtype, b[key].shape), key
        assert a[key].tobytes() == b[key].tobytes(), key


@pytest.fixture(scope="module")
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
     ("xlm_roberta", "ForQuestionAnswering"), ("eurobert", "ForSequenceClassification")],
)  # fmt: skip
def test_heads_and_their_labels_travel(saved, family, head, tmp_path):
    back = run(run(saved(family, head), tmp_path / "ours"), tmp_path / "back")
    same(weights(saved(family, head)), weights(back))
    before, after = (json.load(open(f"{f}/config.json")) for f in (saved(family, head), back))
    assert after["architectures"] == before["architectures"]
    labels = {"0": "LABEL_0", "1": "LABEL_1"}
    assert after["id2label"] == before.get("id2label", labels)


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


def gaps(text):
    """(input, what) -> the largest difference, of what `--verify` printed."""
    lines = [line.split() for line in text.splitlines()]
    return {(x[0], x[2]): float(x[-2]) for x in lines if x[0:1] in (["text"], ["random"])}


def test_verify_prints_the_largest_differences(saved, tmp_path, capsys):
    ours = run(saved("modernbert"), tmp_path / "ours", "--verify")
    shown = capsys.readouterr().out
    found = gaps(shown)
    assert found["random", "logits"] < 1e-4 and found["text", "logits"] < 1e-4
    assert found["text", "tokenization:"] == 0 and "at most: what rounding makes" in shown
    assert max(map(len, shown.splitlines())) <= max(80, len(f"wrote {ours}"))
    # Both are there: nothing is written.
    text = tmp_path / "text"
    flags = [f"--source={ours}", f"--target={saved('modernbert')}", "--verify", f"--text={text}"]
    text.write_text("".join(f"{'abc ' * n}\n\n" for n in range(1, 20)))  # more than a batch
    convert.main(flags)
    out = capsys.readouterr().out
    assert gaps(out)["text", "logits"] < 1e-4 and "text           19" in out
    text.write_text("\n \n")
    with pytest.raises(UserError, match="text has no text"):
        convert.main(flags)
    text.write_bytes(b"\xff")
    with pytest.raises(UserError, match="text is not UTF-8 text .line 1.: --text names a text"):
        convert.main(flags)


def test_verify_fails_where_models_or_tokenizers_differ(saved, tmp_path, capsys):
    ours = run(saved("bert"), tmp_path / "ours")
    back = run(ours, tmp_path / "back")
    flags = [f"--source={ours}", f"--target={back}", "--verify"]
    tokenizer = (tmp_path / "back" / "tokenizer.json").read_text()
    content = json.loads(tokenizer)
    ids = content["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (tmp_path / "back" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="back differ: text, tokenization: sentences [0-9]+$"):
        convert.main(flags)
    changed = {name: array.copy() for name, array in weights(back).items()}
    changed["bert.embeddings.word_embeddings.weight"][7] += 1
    made = {k: tensors.Tensor(v.shape, v.dtype, lambda v=v: v) for k, v in changed.items()}
    tensors.write_folder(back, made, 1 << 30, lambda _: None)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        os.remove(f"{back}/{name}")
    capsys.readouterr()
    with pytest.raises(UserError, match="ours and .*back differ: random, logits .*; text, logits"):
        convert.main(flags)
    out = capsys.readouterr().out
    assert "tokenization is not compared" in out and "back has none of tokenizer.json, sen" in out


def test_rounded_weights_are_no_difference(saved, tmp_path, capsys):
    ours = run(saved("bert"), tmp_path / "ours")
    run(ours, tmp_path / "half", "--dtype=bfloat16", "--verify")
    assert gaps(capsys.readouterr().out)["random", "logits"] > 1e-4


def test_inspect_prints_both_kinds(saved, tmp_path, capsys):
    def inspect(source, *flags):
        convert.main([f"--source={source}", *(flags or ["--inspect"])])
        return capsys.readouterr().out

    ours = run(saved("eurobert"), tmp_path / "ours")
    capsys.readouterr()
    for source in (saved("eurobert"), ours):
        text, whole = inspect(source), inspect(source, "--inspect=all")
        assert "eurobert" in text and "pad <pad> = 1" in text and "encoder/layers " in text
        assert "tensors: --inspect=all shows each of them" in text and "layers/up" not in text
        assert max(map(len, text.splitlines())) <= 80 and len(text.splitlines()) < 20
        assert "encoder/layers/up" in whole
    os.remove(f"{saved('eurobert', 'Model')}/tokenizer.json")
    assert "none: " in inspect(saved("eurobert", "Model"))


def test_a_pooler_that_is_not_there_is_said(saved, tmp_path, capsys):
    for head, said in (("ForMaskedLM", True), ("Model", False)):
        ours = run(saved("bert", head), tmp_path / f"ours{head}")
        run(ours, tmp_path / f"back{head}")
        assert ("no pooler is there" in capsys.readouterr().out) == said
        assert ("no pooler" in (tmp_path / f"back{head}" / "README.md").read_text()) == said


# ---- Bad input: one error, and nothing under the target's name.


def refused(source, tmp_path, match, *flags):
    with pytest.raises(UserError, match=match):
        run(source, tmp_path / "target", *flags)
    assert not (tmp_path / "target").exists()
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]


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


def test_all_that_is_wrong_with_the_tensors_is_listed_at_once(folder, tmp_path):
    bad = folder(**{
        "cls.predictions.transform.dense.bias": None,
        "bert.embeddings.word_embeddings.weight": np.ones((3, 4), np.float32),
        "bert.more": np.ones(2, np.float32),
        "bert.embeddings.LayerNorm.bias": np.ones(8, np.int64),
    })  # fmt: skip
    with pytest.raises(UserError) as error:
        run(bad, tmp_path / "target")
    for part in (
        "1 are missing: cls.predictions.transform.dense.bias",
        "1 do not belong to this model: bert.more",
        r"bert.embeddings.word_embeddings.weight [3, 4] instead of [57,",
        "are no floating-point numbers: bert.embeddings.LayerNorm.bias int64",
    ):
        assert part in str(error.value)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    "change, match",
    [
        ({"model_type": "gpt2"}, "model_type = 'gpt2' cannot be converted; there are bert, camem"),
        ({"hidden_size": None}, "config.json has no hidden_size"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish' is none of gelu"),
        ({"position_embedding_type": "relative_key"}, "positions are learned"),
        ({"num_attention_heads": 3}, "is not divisible by num_heads = 3"),
        ({"num_hidden_layers": "three"}, "has the wrong type|must be a whole number"),
        ({"vocab_size": 50}, "instead of .50,"),
        ({"layer_norm_eps": "x"}, "config.json: EncoderConfig.norm_eps = 'x': must be a finite n"),
        ({"layer_norm_eps": -1.0}, "norm_eps = -1.0: must be a finite number, at least 0"),
        ({"type_vocab_size": -1}, "token_types = -1: must be a whole number, at least 0"),
        ({"model_type": ["bert"]}, "model_type = .'bert'. cannot be converted"),
        ({"num_hidden_layers": 10**9}, "1,000,000,000 layers, and .* has [0-9]+ tensors"),
    ],
)
def test_a_config_that_makes_no_encoder_is_refused(folder, zoo, tmp_path, change, match):
    bad = folder()
    zoo.rewrite_config(bad, **change)
    refused(bad, tmp_path, match)


def test_a_target_that_exists_is_left_alone(saved, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").write_text("kept")
    with pytest.raises(UserError, match="target exists already; nothing is overwritten"):
        run(saved("bert"), tmp_path / "target")
    assert (tmp_path / "target" / "mine").read_text() == "kept"


def test_a_full_disk_is_an_error_before_and_while_writing(saved, tmp_path, monkeypatch):
    import collections
    import errno
    import shutil

    usage = collections.namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1000))
        refused(saved("bert"), tmp_path, "no room in .*target: the model needs .* 1.0 kB are free")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert, "save_checkpoint", full)
    refused(
        saved("bert"),
        tmp_path,
        "the disk of .*target is full: the model, which needs .*, could",
    )

    def tensorstore(*_):
        raise ValueError(
            "RESOURCE_EXHAUSTED: Error writing: [OS error 28: No space left on device]"
        )

    monkeypatch.setattr(convert, "save_checkpoint", tensorstore)
    refused(
        saved("bert"),
        tmp_path,
        "the disk of .*target is full: the model, which needs .*, could",
    )


def test_a_killed_conversion_leaves_nothing_and_the_next_one_clears_up(saved, tmp_path):
    code = (
        "import os, signal; from xl_flax import convert\n"
        "convert.save_checkpoint = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"convert.main(['--source={saved('bert')}', '--target={tmp_path}/target'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".target.partial-")
    (tmp_path / f".target.partial-{os.getpid()}0").mkdir()  # of nobody
    run(saved("bert"), tmp_path / "target")
    assert os.listdir(tmp_path) == ["target"]


@pytest.mark.parametrize(
    "file, content, match",
    [
        ("model/model.json", b"[" * 100_000, "model.json is damaged"),
        ("model/model.json", b'{"format": 1, "encoder": {}}', "model.json: EncoderConfig: missing"),
        ("model/tokenizer.json", b"{}", "is not a tokenizer.json"),
        ("params/_METADATA", b"[]", "the parameters of .*ours cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named(saved, tmp_path, file, content, match):
    ours = run(saved("bert"), tmp_path / "ours")
    (tmp_path / "ours" / file).write_bytes(content)
    refused(ours, tmp_path, f"ours is damaged: .*{file} is not what was written")
    write_checksums(ours)
    refused(ours, tmp_path, match)


def test_a_vocabulary_that_changed_is_refused(saved, tmp_path):
    ours = run(saved("bert"), tmp_path / "ours")
    path = tmp_path / "ours" / "model" / "tokenizer.json"
    path.write_text(path.read_text().replace('"b"', '"é"', 1))
    write_checksums(ours)
    refused(ours, tmp_path, "is not the one that the model was trained with")


def test_a_vocabulary_of_another_model_is_refused(saved, zoo, tmp_path, monkeypatch):
    other = tmp_path / "tokenizer.json"
    content = json.load(open(f"{saved('bert')}/tokenizer.json"))
    for i in range(9):
        content["model"]["vocab"][f"more{i}"] = 200 + i
    other.write_text(json.dumps(content))
    refused(saved("bert"), tmp_path, "has 209 pieces, and the token table", f"--tokenizer={other}")
    del content["model"]["vocab"]["<mask>"]
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<mask>"]
    other.write_text(json.dumps(content))
    refused(saved("bert"), tmp_path, "has no piece <mask> or .MASK.", f"--tokenizer={other}")


@pytest.mark.parametrize("name", ["nowhere/at/all", "./nothing"])
def test_a_source_that_is_not_there_is_named(tmp_path, name):
    refused(name, tmp_path, f"{name} does not exist")


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "xl_flax.json"]
)
def test_what_is_no_file_is_named(folder, tmp_path, name):
    bad = folder()
    (bad / name).unlink(missing_ok=True)
    os.mkfifo(bad / name)
    refused(bad, tmp_path, f"{name} is no regular file")


@pytest.mark.parametrize("content", [b"[]", b"[1, 2]", b"\xff\xfe", b""])
def test_a_tokenizer_that_is_none_is_named(folder, tmp_path, content):
    bad = folder()
    (bad / "tokenizer.json").write_bytes(content)
    refused(bad, tmp_path, "tokenizer.json is no tokenizer.json: it holds no JSON object; fetch")


@pytest.mark.parametrize("code, said", [("1 / 0", "ZeroDiv"), ("raise SystemExit(0)", "SystemE")])
def test_a_module_that_fails_while_it_is_imported_is_named(tmp_path, monkeypatch, code, said):
    (tmp_path / "broken_family.py").write_text(f"import os\n{code}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"broken_family: .*broken_family.py, line 2: {said}"):
        convert.main(["--source=x", "--inspect", "--module_import=broken_family"])


def test_a_folder_of_neither_kind_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path, "neither a run with a finished checkpoint nor a model")


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


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"dense": None}, "has no head 'sequence' with dense = None"),
        ({"dense": "tanh", "pooling": "mean"}, "has no head 'sequence' with pooling = 'mean'"),
    ],
)
def test_a_head_that_a_family_has_not_is_refused(native, tmp_path, settings, match):
    heads = {"sequence": {"kind": "classification", "labels": ["a", "b"]} | settings}
    refused(native(heads), tmp_path, match)
    run(tmp_path / "ours", tmp_path / "without", "--heads=mlm")


def test_an_encoder_that_no_family_has_says_what_is_in_the_way(native, tmp_path):
    ours = native({"mlm": {}}, gated_mlp=True)
    refused(ours, tmp_path, "EncoderConfig.gated_mlp = True would be False in bert")
