"""What the command prints: how far two models differ, what they are, what is missing."""

import json
import os
import shutil

import pytest
from conversion import run, weights

from xl_flax import convert
from xl_flax.converters import tensors
from xl_flax.errors import UserError


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
    without = shutil.copytree(saved("eurobert", "Model"), tmp_path / "without")
    os.remove(without / "tokenizer.json")
    assert "none:" in inspect(without)


def test_a_pooler_that_is_not_there_is_said(saved, tmp_path, capsys):
    for head, said in (("ForMaskedLM", True), ("Model", False)):
        ours = run(saved("bert", head), tmp_path / f"ours{head}")
        run(ours, tmp_path / f"back{head}")
        assert ("no pooler is there" in capsys.readouterr().out) == said
        assert ("no pooler" in (tmp_path / f"back{head}" / "README.md").read_text()) == said
