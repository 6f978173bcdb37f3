"""Which checkpoints, of one run or several, are evaluated."""

import os
import shutil

import pytest
from small_evaluations import WORDS, make_cache, make_run, train_vocabulary

from xl_flax import evaluate
from xl_flax.checkpoints.load import load_model
from xl_flax.checkpoints.manager import BEST_FILE
from xl_flax.errors import UserError
from xl_flax.evaluation import results, sentences


def test_a_checkpoint_is_found_by_step_or_by_its_folder(model_dir):
    steps = lambda path, which: [  # noqa: E731
        os.path.basename(c) for c in evaluate.choose_checkpoints(path, which)
    ]
    checkpoints = os.path.join(model_dir, "checkpoints")
    assert steps(model_dir, "latest") == ["10"] and steps(checkpoints, "all") == ["5", "10"]
    assert steps(os.path.join(checkpoints, "5"), "latest") == ["5"]
    assert steps(model_dir, "10, 5") == ["5", "10"]
    for path in (model_dir, checkpoints, os.path.join(checkpoints, "5")):
        (checkpoint,) = evaluate.choose_checkpoints(path, "5")
        assert results.run_folder(checkpoint) == model_dir
    with pytest.raises(UserError, match="no checkpoint of step 7 .* there are 5, 10"):
        evaluate.choose_checkpoints(model_dir, "7")
    with pytest.raises(UserError, match="no checkpoint under"):
        evaluate.choose_checkpoints(os.path.dirname(model_dir) + "/nowhere", "all")


def test_the_best_checkpoint_is_chosen_by_its_mark(command, rows, model_dir, folder):
    command("--checkpoint=best")
    assert {r["step"] for r in rows()} == {load_model(f"{model_dir}:best")[1].step} == {5}
    unmarked = str(folder / "unmarked")
    shutil.copytree(model_dir, unmarked, ignore=shutil.ignore_patterns(BEST_FILE))
    with pytest.raises(UserError, match="has no best checkpoint .*TrainConfig.best"):
        evaluate.choose_checkpoints(unmarked, "best")


def test_all_checkpoints_are_not_those_that_were_deleted(model_dir, vocabulary, folder, capsys):
    run = make_run(str(folder / "short"), vocabulary, keep_last=1)
    assert len(evaluate.choose_checkpoints(run, "all")) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "1 more were saved and deleted while it trained" in said and said.endswith("steps 5")
    assert len(evaluate.choose_checkpoints(model_dir, "all")) == 2
    assert not capsys.readouterr().out


def test_several_runs_are_evaluated_as_each_alone(command, rows, model_dir, other_run, monkeypatch):
    compiled = []
    make_pool = sentences.make_pool
    monkeypatch.setattr(sentences, "make_pool", lambda *a: (compiled.append(a), make_pool(*a))[1])

    def values(run):
        return {(tuple(r["languages"]), r["metric"], r["layer"]): r["value"] for r in rows(run)}

    command(path=other_run)
    alone = values(other_run)
    command()
    compiled.clear()
    command(path=[model_dir, other_run])
    assert len(compiled) == 1
    # What was remembered of one run's step 10 was once taken for the other's.
    assert values(other_run) == alone != values(model_dir)


def test_vocabularies_that_differ_have_caches_of_their_own(command, model_dir, folder, cache):
    other = train_vocabulary(folder / "third.model", WORDS[:6])
    run = make_run(str(folder / "third"), other)
    with pytest.raises(UserError, match="not cached"):  # nobody may cache the text anew here
        command(path=[model_dir, run])
    assert not os.path.exists(os.path.join(run, "results.jsonl"))
    own = os.path.join(cache.directory, f"vocabulary-{other.fingerprint[:12]}")
    make_cache(own, other)
    command(path=[model_dir, run])
    (sign,) = {r.signature for r in results.read(f"{run}/results.jsonl") if r.task == "masked_lm"}
    assert f"|vocabulary:{other.fingerprint[:12]}|" in sign
    with pytest.raises(UserError, match="use its own: --gin.run_vocabulary.path=.*/10/model/"):
        command(f"--gin.run_vocabulary.path={other.path}")
    with pytest.raises(UserError, match="nowhere.model does not.*run_vocabulary.path=.*/10/model/"):
        command("--gin.run_vocabulary.path=/nowhere.model")
