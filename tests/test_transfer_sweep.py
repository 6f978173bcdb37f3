"""A sweep whose cells fine-tune: from each checkpoint, with its seeds, once."""

import os
import re
import sys

import pytest
import small_transfer

from xl_flax import evaluate, report, train
from xl_flax.errors import UserError
from xl_flax.evaluation import results
from xl_flax.training import transfer


@pytest.fixture(scope="module")
def folder(one_device, tmp_path_factory):
    """A pretrained encoder with two checkpoints."""
    folder = tmp_path_factory.mktemp("transfer_sweep")
    small_transfer.make_data(folder, 4, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setattr(sys, "path", [str(folder), *sys.path])
        more = ["--gin.TrainConfig.checkpoint_every=2", "--gin.OptimizerConfig.warmup_steps=0"]
        assert train.main([f"--gin_file={folder}/pretrain.gin", *more]) == 0
        small_transfer.make_caches(folder, "objects")
        yield folder


@pytest.mark.slow
def test_checkpoints_are_fine_tuned_with_their_seeds_and_only_once(folder, capsys, monkeypatch):
    flags = ["--gin_file=gin/eval/transfer.gin", f"--checkpoints={folder}/pretrained/checkpoints/*"]
    flags += [f"--gin.CACHE_DIR={folder}/cache", f"--gin.FineTuned.run={folder}/objects.gin"]
    flags += ["--gin.FineTuned.seeds=[0, 1]"]
    flags += ["--gin.FineTuned.settings=['OptimizerConfig.warmup_steps = 0']"]
    trained, train_run = [], transfer.train
    monkeypatch.setattr(
        transfer, "train", lambda run, **how: (trained.append(run), train_run(run, **how))[1]
    )
    evaluate.main(flags)
    said = capsys.readouterr().out
    assert "2 cells done, 0 failed" in said and "FineTuned as objects" in said
    assert "step " not in said.replace("steps", "")  # what runs print goes to their log
    # The untrained encoder is of the same shape for both checkpoints.
    assert [(run.seed, run.init_from is None) for run in trained] == [
        *((0, False), (1, False), (0, True), (1, True), (0, False), (1, False))
    ]
    rows = results.read(f"{folder}/pretrained/results.jsonl")
    beside = [row for row in rows if row.model is not None]
    rows = [row for row in rows if row.model is None]
    untrained = [row for row in beside if row.model == results.UNTRAINED]
    about = lambda row: (*row.languages, row.metric)  # noqa: E731
    assert {about(row) for row in untrained} == {about(row) for row in rows}
    assert {len(row.seeds) for row in untrained} == {2}
    assert {row.step for row in rows} == {2, 4}
    (sign,) = {row.signature for row in rows}
    assert {row.step for row in beside} == {0} and {row.model for row in beside} >= {"majority"}
    for row in beside:
        shape = "#[0-9a-f]{12}" if row.model == results.UNTRAINED else ""
        assert re.sub(f"untrained{shape}", "untrained", row.signature) == results.of_model(
            sign, row.model
        )
    assert sign.startswith("transfer|recipe:objects#") and "|seeds:0,1|" in sign
    (beta,) = [r for r in rows if (r.step, *r.languages, r.metric) == (4, "beta", "accuracy")]
    assert len(beta.seeds) == 2 and beta.value == pytest.approx(sum(beta.seeds) / 2)
    places = sorted(os.listdir(f"{folder}/cache/transfer"))
    assert len(places) == 3
    seeds = [
        row.value
        for seed in (0, 1)
        for place in places
        for row in results.read(f"{folder}/cache/transfer/{place}/{seed}/results.jsonl")
        if (row.model, *row.languages, row.metric) == (None, "beta", "accuracy")
    ]
    assert set(beta.seeds) <= set(seeds)

    evaluate.main(flags)
    assert len(trained) == 6 and "(was there)" in capsys.readouterr().out
    report.main([f"{folder}/pretrained", "--rows=language", "--columns=setting,metric"])
    shown = capsys.readouterr().out
    assert "alpha *" in shown and "±" in shown and "gap" in shown
    assert ("most frequent" in shown or "majority" in shown) and "untrained" in shown


@pytest.mark.slow
def test_the_control_comes_later_and_may_fail_alone(folder, capsys, monkeypatch):
    flags = ["--gin_file=gin/eval/transfer.gin", f"--checkpoints={folder}/pretrained/checkpoints/*"]
    flags += [f"--gin.CACHE_DIR={folder}/cache", f"--gin.FineTuned.run={folder}/objects.gin"]
    flags += ["--gin.FineTuned.seeds=[3]", "--gin.EvaluateConfig.controls=False"]
    flags += ["--gin.FineTuned.settings=['OptimizerConfig.warmup_steps = 0', 'STEPS = 2']"]
    trained, train_run, errors = [], transfer.train, [UserError("diverged")]

    def train(run, **how):
        trained.append(run)
        if run.init_from is None and errors:
            raise errors.pop()
        return train_run(run, **how)

    monkeypatch.setattr(transfer, "train", train)
    with pytest.raises(UserError, match="2 cells failed: the untrained encoder, .*: diverged"):
        evaluate.main(flags)
    assert [run.init_from is None for run in trained] == [False, True, False]  # it fails once
    rows = [
        r for r in results.read(f"{folder}/pretrained/results.jsonl") if "seeds:3" in r.signature
    ]
    assert {row.step for row in rows if row.model is None} == {2, 4}
    assert results.UNTRAINED not in {row.model for row in rows}
    trained.clear()
    evaluate.main([*flags, "--gin.FineTuned.from_scratch=False"])
    assert not trained and capsys.readouterr().out.count("(was there)") == 2
    evaluate.main(flags)  # nothing fails any more
    (run,) = trained
    assert run.init_from is None
    rows = results.read(f"{folder}/pretrained/results.jsonl")
    signs = {row.signature for row in rows if row.model == results.UNTRAINED}
    assert any("seeds:3" in sign for sign in signs)


def test_what_cannot_be_fine_tuned_is_refused(folder):
    flags = ["--gin_file=gin/eval/transfer.gin", f"--checkpoints={folder}/pretrained/checkpoints/*"]
    flags += [f"--gin.CACHE_DIR={folder}/cache"]
    with pytest.raises(UserError, match="nowhere.gin is missing: FineTuned.run names a Gin file"):
        evaluate.main([*flags, "--gin.FineTuned.run=nowhere.gin"])
    with pytest.raises(UserError, match="FineTuned.seeds = .*: must be a list of seeds"):
        evaluate.main([*flags, "--gin.FineTuned.seeds=[]"])
