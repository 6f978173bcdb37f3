"""Folders of sentence-transformers: embeddings stay what they are, in both directions."""

import json

import numpy as np
import pytest

from xl_flax import convert
from xl_flax.checkpoints.intact import write_checksums
from xl_flax.checkpoints.load import load_model, read_description
from xl_flax.converters import tensors
from xl_flax.errors import UserError

st = pytest.importorskip("sentence_transformers")
torch = pytest.importorskip("torch")
modules_lib = pytest.importorskip("sentence_transformers.sentence_transformer.modules")

SENTENCES = ["abc", "a b c d", "hello world", "z"]


@pytest.fixture
def make(zoo, tmp_path):
    """Writes a folder with these modules behind the encoder."""

    def make(*modules, pooling="mean"):
        folder = zoo.save(zoo.make("bert", "Model", zoo.simple("bert")), str(tmp_path / "bert"))
        with open(f"{folder}/tokenizer_config.json", "w") as file:
            json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}, file)
        encoder = modules_lib.Transformer(folder)
        width = encoder.get_word_embedding_dimension()
        parts = [modules_lib.Pooling(width, pooling_mode=pooling)]
        torch.manual_seed(0)
        parts += [module(width) for module in modules]
        model = st.SentenceTransformer(modules=[encoder, *parts], device="cpu")
        model.save(str(tmp_path / "st"))
        return model, tmp_path / "st"

    return make


def dense(activation, bias=True):
    return lambda width: modules_lib.Dense(width, 6, bias=bias, activation_function=activation)


def normalize(_):
    return modules_lib.Normalize()


@pytest.mark.parametrize(
    "modules, pooling, projection",
    [
        ((normalize,), "mean", None),
        ((), "cls", None),
        ((dense(torch.nn.Tanh()), normalize), "cls", "tanh"),  # LaBSE
        ((dense(torch.nn.Identity()),), "mean", "affine"),
        ((dense(torch.nn.Identity(), bias=False), normalize), "mean", "linear"),
    ],
)
def test_embeddings_stay_the_same_there_and_back(
    make, tmp_path, capsys, modules, pooling, projection
):
    model, folder = make(*modules, pooling=pooling)
    ours, back = tmp_path / "ours", tmp_path / "back"
    compared = ["--verify"] if projection in (None, "tanh") else []
    convert.main([f"--source={folder}", f"--target={ours}", *compared])
    found = [x for x in capsys.readouterr().out.splitlines() if "1 - cosine" in x]
    assert [float(line.split()[-2]) < 1e-5 for line in found] == [True] * len(compared)
    assert read_description(str(ours)).heads["sentence"].get("projection") == projection
    convert.main([f"--source={ours}", f"--target={back}", "--format=sentence-transformers"])
    found = st.SentenceTransformer(str(back), device="cpu").encode(SENTENCES)
    np.testing.assert_array_equal(found, model.encode(SENTENCES))


def test_a_mean_without_special_tokens_is_remarked(make, tmp_path, capsys):
    _, folder = make()
    ours = tmp_path / "ours"
    convert.main([f"--source={folder}", f"--target={ours}"])
    path = ours / "model" / "model.json"
    path.write_text(path.read_text().replace('"mean_all"', '"mean"'))
    write_checksums(str(ours))
    target = f"--target={tmp_path / 'back'}"
    convert.main([f"--source={ours}", target, "--format=sentence-transformers"])
    said = " ".join(capsys.readouterr().out.split())
    assert "the mean there is over special tokens, too" in said
    assert "over special tokens, too" in (tmp_path / "back" / "README.md").read_text()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m[:1], "modules Transformer are not Transformer, Pooling"),
        (lambda m: [m[0], m[1] | {"path": "../x"}], "which is not inside the folder"),
        (lambda m: [*m, {"idx": 2, "name": "2", "path": "2", "type": "x.LSTM"}], "LSTM are not"),
    ],
)
def test_modules_that_have_no_place_here_are_refused(make, tmp_path, change, message):
    _, folder = make()
    path = folder / "modules.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message):
        convert.main([f"--source={folder}", f"--target={tmp_path / 'ours'}"])


def test_pooling_that_has_no_place_here_is_refused(make, tmp_path):
    _, folder = make(pooling="max")
    with pytest.raises(UserError, match="pooling max cannot be converted, one of cls, mean can"):
        convert.main([f"--source={folder}", f"--target={tmp_path / 'ours'}"])


def test_a_checkpoint_without_a_sentence_head_says_so(zoo, tmp_path):
    folder = zoo.save(zoo.make("bert", "Model", zoo.simple("bert")), str(tmp_path / "bert"))
    convert.main([f"--source={folder}", f"--target={tmp_path / 'ours'}"])
    with pytest.raises(UserError, match="needs one sentence head; the checkpoint has none"):
        convert.main([
            f"--source={tmp_path / 'ours'}", f"--target={tmp_path / 'back'}",
            "--format=sentence-transformers",
        ])  # fmt: skip


def test_a_head_of_a_layer_in_the_middle_is_refused(make, tmp_path):
    _, folder = make()
    convert.main([f"--source={folder}", f"--target={tmp_path / 'ours'}"])
    path = tmp_path / "ours" / "model" / "model.json"
    content = json.loads(path.read_text())
    content["heads"]["sentence"]["layer"] = 1
    path.write_text(json.dumps(content))
    write_checksums(str(tmp_path / "ours"))
    assert load_model(str(tmp_path / "ours"))[0].heads["sentence"].layer == 1
    with pytest.raises(UserError, match="pools layer 1, and only the last"):
        convert.main([
            f"--source={tmp_path / 'ours'}", f"--target={tmp_path / 'back'}",
            "--format=sentence-transformers",
        ])  # fmt: skip


@pytest.mark.parametrize("content", ["[", "{}", '[{"type": 3}]', '[{"path": ""}]'])
def test_a_damaged_list_of_modules_is_named(make, tmp_path, content):
    _, folder = make()
    (folder / "modules.json").write_text(content)
    with pytest.raises(UserError, match="modules.json.* (is damaged|are not Transformer)"):
        convert.main([f"--source={folder}", f"--target={tmp_path / 'ours'}"])


def test_a_dense_layer_of_another_encoder_is_refused(make, tmp_path):
    _, folder = make(dense(torch.nn.Identity()))
    weights = {"linear.weight": np.ones((6, 5), np.float32), "linear.bias": np.ones(6, np.float32)}
    made = {n: tensors.Tensor(x.shape, x.dtype, lambda x=x: x) for n, x in weights.items()}
    tensors.write_folder(str(folder / "2_Dense"), made, 1 << 30, lambda _: None)
    with pytest.raises(UserError, match="the dense layer's out has shape .5, 6. and not"):
        convert.main([f"--source={folder}", f"--target={tmp_path / 'ours'}"])
    del made["linear.weight"]
    tensors.write_folder(str(folder / "2_Dense"), made, 1 << 30, lambda _: None)
    with pytest.raises(UserError, match="has the tensors linear.bias, not those of a dense layer"):
        convert.main([f"--source={folder}", f"--target={tmp_path / 'ours'}"])


def test_what_a_checkpoint_does_otherwise_is_said(make, tmp_path, capsys):
    _, folder = make()
    settings = {"max_seq_length": 12, "do_lower_case": True}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": {"query": "query: "}}))
    convert.main([f"--source={folder}", f"--target={tmp_path / 'ours'}"])
    out = " ".join(capsys.readouterr().out.split())
    for part in ("cut after 12 tokens", "becomes lower case", "{'query': 'query: '}"):
        assert part in out


def test_one_of_several_sentence_heads_is_chosen(make, tmp_path):
    model, folder = make(dense(torch.nn.Tanh()))
    convert.main([f"--source={folder}", f"--target={tmp_path / 'ours'}"])
    half = ["--format=sentence-transformers", "--heads=sentence", "--dtype=bfloat16"]
    convert.main([f"--source={tmp_path / 'ours'}", f"--target={tmp_path / 'back'}", *half])
    weights = tensors.open_folder(str(tmp_path / "back" / "2_Dense"))
    assert {str(tensor.dtype) for tensor in weights.values()} == {"bfloat16"}
    found = st.SentenceTransformer(str(tmp_path / "back"), device="cpu").encode(SENTENCES)
    np.testing.assert_allclose(found, model.encode(SENTENCES), atol=0.05)
