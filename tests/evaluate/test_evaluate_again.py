"""What was measured before, of checkpoints and of controls, is not measured again."""

import os
import shutil

import numpy as np
import pytest

from xl_flax.errors import UserError
from xl_flax.evaluation import controls, lexical, results, sentences
from xl_flax.evaluation.base import Subject


def test_a_sweep_skips_what_is_there_unless_told_to_overwrite(command, rows, monkeypatch, capsys):
    command("--gin.SentenceRetrieval.layers=[1]")
    assert {r["step"] for r in rows()} == {10}
    loaded, compiled = [], []
    make_pool = sentences.make_pool
    monkeypatch.setattr(sentences, "make_pool", lambda *a: (compiled.append(a), make_pool(*a))[1])
    load = Subject.load
    monkeypatch.setattr(Subject, "load", lambda path, *a: (loaded.append(path), load(path, *a))[1])
    count = len(rows())
    sweep = ["--gin.SentenceRetrieval.layers=[1]", "--checkpoint=all"]
    command(*sweep, fresh=False)
    assert [os.path.basename(path) for path in loaded] == ["5"]
    assert len(rows()) == 2 * count and "From " in capsys.readouterr().out
    command(*sweep, "--overwrite", fresh=False)
    assert [os.path.basename(path) for path in loaded] == ["5", "5", "10"]
    assert len(compiled) == 2  # once in each of these two commands
    assert len(rows()) == 2 * count


def test_a_copied_run_is_not_evaluated_again(command, rows, model_dir, folder, monkeypatch):
    flags = ["--gin.SentenceRetrieval.layers=[1]"]
    command(*flags)
    copy = str(folder / "copy")
    shutil.copytree(model_dir, copy)  # its files are younger
    before = rows(copy)
    monkeypatch.setattr(Subject, "load", None)
    command(*flags, path=copy, fresh=False)
    assert rows(copy) == before
    assert {r["checkpoint"] for r in before} == {os.path.join("checkpoints", "10")}


def test_damaged_results_are_an_error_before_anything_is_computed(command, model_dir, monkeypatch):
    command("--gin.SentenceRetrieval.layers=[1]")
    path = os.path.join(model_dir, "results.jsonl")
    with open(path, "rb") as file:
        lines = file.read().splitlines(keepends=True)
    monkeypatch.setattr(Subject, "load", None)
    for damaged in (b"\xff\n", b"[]\n", lines[3].replace(b'"value": ', b'"value": 1')):
        with open(path, "wb") as file:
            file.writelines([*lines[:3], damaged, *lines[4:]])
        for more in ([], ["--overwrite"]):
            with pytest.raises(UserError, match="results.jsonl, line 4: .*delete this line"):
                command("--gin.SentenceRetrieval.layers=[1]", *more, fresh=False)
    os.remove(path)


def of_retrieval(path):
    """Its lines, without those of evaluations that other tests bring along."""
    return [line for line in results.read(path) if line.task == "retrieval"]


def test_controls_are_measured_once_and_shown_beside_each_checkpoint(
    command, rows, cache, vocabulary, other_run, monkeypatch, capsys
):
    kept = controls.kept_path(cache)
    flags = ["--gin_file=gin/eval/retrieval.gin", "--gin.SentenceRetrieval.layers=[0, 1]"]
    flags += ["--gin.SentenceRetrieval.similarity=['cosine']", "--gin.EvaluateConfig.controls=True"]
    flags += ["--gin.SentenceRetrieval.choose_on=one-other"]
    command(*flags, "--checkpoint=5")
    own = rows(languages=["one", "same"], metric="p@1", layer=1)
    assert [(r["model"], r["step"], r["value"]) for r in own] == [
        ("untrained", 0, 1.0), (None, 5, 1.0),
    ]  # fmt: skip
    (untrained,) = rows(
        model="untrained", languages=["macro"], metric="p@1", layer=1, data="all/test"
    )  # fmt: skip
    assert len(untrained["seeds"]) == 3
    assert untrained["value"] == pytest.approx(np.mean(untrained["seeds"]))
    assert f"#{vocabulary.fingerprint[:12]}|version" in rows(model="tf-idf")[0]["signature"]
    (copies,) = rows(model="tf-idf", languages=["one", "same"], metric="p@1")
    others, choice = rows(model="tf-idf", languages=["one", "other"], metric="p@1")
    assert [others["data"], choice["data"]] == ["all/test", "one-other/validation"]
    assert copies["value"] == 1.0 and others["value"] < 0.3
    assert all(rows(model=model) for model in ("tf-idf", "length"))
    text = capsys.readouterr().out
    assert "untrained: this model before training" in text
    assert rows(model="tf-idf")[0]["signature"] in text
    before = of_retrieval(kept)
    assert {line.model for line in before} == {"untrained", "tf-idf", "length"}

    monkeypatch.setattr(Subject, "untrained", None)
    monkeypatch.setattr(lexical, "LEXICAL", None)
    command(*flags, "--checkpoint=all", path=other_run)
    assert of_retrieval(kept) == before
    assert len(rows(other_run, step=0)) == len(before)  # once for both checkpoints
    assert {r["step"] for r in rows(other_run)} == {0, 5, 10}
    capsys.readouterr()
    command(*flags, "--checkpoint=10", "--gin.EvaluateConfig.controls=False", path=other_run)
    assert not rows(other_run, step=0) and "untrained" not in capsys.readouterr().out
