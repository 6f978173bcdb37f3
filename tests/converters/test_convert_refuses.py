"""Bad input to the command: one error, and nothing under the target's name."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conversion import refused, run

from xl_flax import convert
from xl_flax.checkpoints.intact import write_checksums
from xl_flax.converters import ours
from xl_flax.errors import UserError


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

    monkeypatch.setattr(ours, "save_checkpoint", full)
    refused(
        saved("bert"),
        tmp_path,
        "the disk of .*target is full: the model, which needs .*, could",
    )

    def tensorstore(*_):
        raise ValueError(
            "RESOURCE_EXHAUSTED: Error writing: [OS error 28: No space left on device]"
        )

    monkeypatch.setattr(ours, "save_checkpoint", tensorstore)
    refused(
        saved("bert"),
        tmp_path,
        "the disk of .*target is full: the model, which needs .*, could",
    )


def test_a_killed_conversion_leaves_nothing_and_the_next_one_clears_up(saved, tmp_path):
    code = (
        "import os, signal; from xl_flax import convert; from xl_flax.converters import ours\n"
        "ours.save_checkpoint = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
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
