"""Pretraining, fine-tuning on one language, testing on another: what transfers, what does not."""

import os
import sys

import jax
import pytest
import small_transfer

from xl_flax import evaluate, train
from xl_flax.evaluation import results, transfer
from xl_flax.evaluation.predictions import FOLDER

PRETRAINING, STEPS = 300, 60


@pytest.fixture(scope="module", autouse=True)
def optimised():
    """Hundreds of steps are run here: compiling well pays."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pretrained encoder, and runs that were fine-tuned from it and from scratch."""
    folder = tmp_path_factory.mktemp("transfer")
    small_transfer.make_data(folder, PRETRAINING, STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setattr(sys, "path", [str(folder), *sys.path])
        assert train.main([f"--gin_file={folder}/pretrain.gin"]) == 0
        own = f"--gin_file={folder}/finetune.gin"
        scratch = [
            own, "--gin.TrainConfig.init_from=None", f"--gin.MODEL_DIR={folder}/pos/untrained",
        ]  # fmt: skip
        for flags in ([own, "--gin.SEEDS=[0, 1]"], scratch):
            assert train.main(flags) == 0
            evaluate.main(flags)
        yield folder


def scores(folder, setting, seed=0, model=None):
    rows = results.read(os.path.join(folder, "pos", setting, str(seed), results.FILE))
    return {r.languages[0]: r for r in rows if (r.metric, r.model) == ("f1", model)}


@pytest.mark.slow
def test_tags_transfer_to_a_language_without_a_letter_in_common(folder):
    trained, scratch = scores(folder, "pretrained"), scores(folder, "untrained")
    words = scores(folder, "pretrained", model="most frequent")
    # The source language is learnt either way; the other one needs the pretraining.
    assert trained["alpha"].value > 0.5 and scratch["alpha"].value > 0.5
    assert words["alpha"].value > 0.9 and words["beta"].value < 0.1
    assert scratch["beta"].value + 0.15 < trained["beta"].value < trained["alpha"].value - 0.1
    rows = results.read(os.path.join(folder, "pos/pretrained/0", results.FILE))
    gap = next(r for r in rows if r.metric == "f1_gap" and not r.model)
    assert gap.value == pytest.approx(trained["alpha"].value - trained["beta"].value)
    assert gap.languages == (results.OTHERS,)


@pytest.mark.slow
def test_results_have_intervals_and_say_what_was_trained(folder):
    for language, row in scores(folder, "pretrained").items():
        low, high = row.interval
        assert low <= row.value <= high
        assert high - low < 0.2
        assert row.trained == {"alpha": True, "beta": False}.get(language)
        assert "|trained:small_pos_alpha/train|" in row.signature


@pytest.mark.slow
def test_seeds_are_runs_of_their_own_and_are_not_run_again(folder, capsys):
    a, b = (scores(folder, "pretrained", seed)["beta"].value for seed in (0, 1))
    assert a != b
    flags = [f"--gin_file={folder}/finetune.gin", "--gin.SEEDS=[0, 1]"]
    assert train.main(flags) == 0
    assert capsys.readouterr().out.count("done: ") == 2
    evaluate.main(flags)
    assert capsys.readouterr().out.count("From ") == 2  # results.jsonl, not computed again


@pytest.mark.slow
def test_runs_are_compared_by_language_with_a_paired_test(folder, tmp_path, capsys):
    runs = [str(folder / "pos" / name) for name in ("pretrained/0", "pretrained/1", "untrained/0")]
    transfer.main([*runs, "--against=untrained", f"--plot={tmp_path}/t.png"])
    shown = capsys.readouterr().out
    assert "alpha *" in shown and "gap" in shown and "±" in shown
    (line,) = [x for x in shown.splitlines() if x.startswith("beta") and "(p " in x]
    assert "+" in line and "(p 0.0001)" in line
    assert (tmp_path / "t.png").stat().st_size > 10_000
    predictions = folder / "pos/pretrained/0" / FOLDER
    assert sorted(p.name for p in predictions.rglob("*.tsv")) == ["test-alpha.tsv", "test-beta.tsv"]
