"""Many checkpoints × evaluations in one process: what is compiled, read and repeated; failures."""

import os
import re
import shutil
import threading
import time

import pytest
from run_folders import flip
from small_evaluations import WORDS, make_cache, make_run, train_vocabulary
from tensorboardX.proto.event_pb2 import Event

from xl_flax import convert, evaluate, report
from xl_flax.errors import UserError
from xl_flax.evaluation import results
from xl_flax.evaluation.base import Subject
from xl_flax.evaluation.context import Context


@pytest.fixture
def sweep(cache, tmp_path):
    """Runs the command on a pattern, here as if there were one device."""

    def run(pattern, *flags, output="results"):
        where = [f"--output={tmp_path}/{output}"] if output else []
        evaluate.main(
            [
                "--gin_file=gin/eval/both.gin", f"--checkpoints={pattern}", *where,
                f"--gin.CACHE_DIR={cache.directory}", "--gin.TASK_MODULES=['none']",
                "--gin.Cache.on_missing='stop'", "--gin.MaskedAccuracy.mixture=all",
                "--gin.MaskedAccuracy.length=16", "--gin.SentenceRetrieval.mixture=all",
                "--gin.SentenceRetrieval.length=16", "--gin.EvaluateConfig.controls=False", *flags,
            ]
        )  # fmt: skip
        return {
            os.path.relpath(os.path.join(folder, name), tmp_path): results.read(f"{folder}/{name}")
            for folder, _, names in os.walk(tmp_path)
            for name in names
            if name == results.FILE
        }

    return run


@pytest.fixture
def runs(model_dir, other_run, tmp_path):
    """Copies of two runs of one shape, to be damaged."""
    for name, source in (("a", model_dir), ("b", other_run)):
        ignored = shutil.ignore_patterns(results.FILE)
        shutil.copytree(source, tmp_path / "runs" / name, ignore=ignored)
    return tmp_path / "runs"


def scalars(folder):
    """What TensorBoard shows of a folder: (tag, step) -> value, in the order of the file."""
    (file,) = folder.iterdir()
    content, found = file.read_bytes(), {}
    while content:
        size = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + size])
        found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
        content = content[16 + size :]
    return found


def of_checkpoint(rows, step):
    return {(r.languages, r.metric, r.layer): r.value for r in rows if r.step == step}


def test_a_sweep_is_each_checkpoint_alone_and_compiles_once(
    sweep, runs, command, rows, monkeypatch, capsys
):
    read, loaded = [], []
    examples, load = Context._read_aligned, Subject.load
    monkeypatch.setattr(
        Context, "_read_aligned", lambda self, spec: (read.append(spec), examples(self, spec))[1]
    )
    monkeypatch.setattr(
        Subject,
        "load",
        lambda path, *a: (loaded.append((path, threading.current_thread().name)), load(path, *a))[
            1
        ],
    )
    found = sweep(f"{runs}/*/checkpoints/*")
    assert found.keys() == {f"results/runs/{run}/results.jsonl" for run in "ab"}
    assert len(read) == 1 and [p[-13:] for p, _ in loaded] == [
        *("checkpoints/5", "heckpoints/10", "checkpoints/5", "heckpoints/10")
    ]
    ahead = [thread != threading.current_thread().name for _, thread in loaded]
    assert ahead == [False, True, True, True]  # read while the one before was evaluated
    said = capsys.readouterr().out
    assert "8 cells done, 0 failed, 0 left" in said and " to go" in said
    (count,) = re.findall(r": (\d+) programs .* first checkpoint of 4, 0 with the others", said)
    assert int(count) > 0
    assert "SentenceRetrieval of all (" in said and "all: loss " in said
    command()
    alone = {(*r["languages"],): r["value"] for r in rows(metric="p@1", layer=2)}
    swept = of_checkpoint(found["results/runs/a/results.jsonl"], 10)
    assert {k[0]: v for k, v in swept.items() if k[1:] == ("p@1", 2)} == alone
    assert not os.path.exists(runs / "a" / results.FILE)
    curves = scalars(runs.parent / "results/runs/a/metrics/evaluated")
    losses = {s: v for (tag, s), v in curves.items() if tag == "eval/all/loss/one"}
    rows_a = found["results/runs/a/results.jsonl"]
    expected = {r.step: r.value for r in rows_a if (r.metric, *r.languages) == ("loss", "one")}
    assert losses == pytest.approx(expected) and list(losses) == [5, 10]
    assert ("eval/all/p_1/cosine/layer2", 5) in curves  # TensorBoard has no @

    monkeypatch.setattr(Subject, "load", None)
    assert sweep(f"{runs}/*", "--checkpoint=all") == found
    assert capsys.readouterr().out.count("(was there)") == 8


def test_results_go_to_the_runs_unless_told_otherwise(sweep, runs):
    found = sweep(f"{runs}/a/checkpoints/*", "--gin.SentenceRetrieval.layers=[1]", output=None)
    assert found.keys() == {"runs/a/results.jsonl"}
    assert {r.checkpoint for r in found["runs/a/results.jsonl"]} == {
        "checkpoints/5", "checkpoints/10",
    }  # fmt: skip


def test_what_fails_is_listed_and_does_not_stop_the_others(sweep, runs, folder, capsys):
    flip(runs / "a/checkpoints/10")
    (runs / "b/checkpoints/7").mkdir()  # half a copy
    other = train_vocabulary(folder / "fourth.model", WORDS[:5])
    make_run(str(runs / "c"), other)  # its text is not cached
    with pytest.raises(UserError) as caught:
        sweep(f"{runs}/*/checkpoints/*", "--gin.SentenceRetrieval.layers=[2]")
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("7 cells failed: ") and len(lines) == 2
    assert "b/checkpoints/7 is empty" in str(caught.value)
    os.rmdir(runs / "b/checkpoints/7")
    assert "a/checkpoints/10 is damaged: " in str(caught.value)
    assert "not cached" in str(caught.value)
    captured = capsys.readouterr()
    assert captured.err.count("failed: ") == 7 and "for the same reason" in captured.err
    assert "6 cells done, 7 failed, 0 left" in captured.out
    # Mended, only what is lacking is measured.
    shutil.rmtree(runs / "c")
    shutil.copytree(runs / "b/checkpoints/10", runs / "a/checkpoints/10", dirs_exist_ok=True)
    sweep(f"{runs}/*/checkpoints/*", "--gin.SentenceRetrieval.layers=[2]")
    assert capsys.readouterr().out.count("(was there)") == 6


def test_text_that_is_not_cached_fails_only_what_reads_it(sweep, runs, capsys):
    with pytest.raises(UserError, match="2 cells failed: .*nowhere .*SentenceRetrieval"):
        sweep(f"{runs}/a/checkpoints/*", "--gin.SentenceRetrieval.mixture=nowhere")
    assert "2 cells done, 2 failed, 0 left" in capsys.readouterr().out


def test_a_layer_and_a_head_that_some_lack(sweep, runs, folder, vocabulary, capsys):
    convert.main([f"--source={runs}/b", f"--target={runs}/theirs"])
    flags = ["--gin.SentenceRetrieval.head=translation"]
    with pytest.raises(UserError, match="no such sentence head; it has none .*pretrained/theirs-"):
        sweep(f"{runs}/*", *flags)
    assert "5 cells done, 1 failed" in capsys.readouterr().out
    shallow = make_run(str(runs / "shallow"), vocabulary, layers=1)
    with pytest.raises(UserError, match=r"layers = .2.: give .* to 1.*shallow.*SentenceRetrieval"):
        sweep(f"{runs}/*", "--gin.SentenceRetrieval.layers=[2]")
    said = capsys.readouterr().out
    assert "7 cells done, 1 failed" in said and said.count(" programs compiled with the first") == 3
    assert shallow in said


def test_models_of_others_stand_beside_ours_and_their_folders_are_left_alone(
    sweep, runs, cache, capsys
):
    convert.main([f"--source={runs}/b", f"--target={runs}/theirs"])
    before = sorted(os.listdir(runs / "theirs"))
    flags = ["--gin.SentenceRetrieval.layers=[2]"]
    found = sweep(f"{runs}/*", *flags)
    (theirs,) = [path for path in found if "theirs" in path]
    capsys.readouterr()
    report.main([f"{runs.parent}/results", "--rows=setting", "--columns=data,metric"])
    lines = [line.split("|")[1:] for line in capsys.readouterr().out.splitlines() if "|" in line]
    shown = {cells[0].strip(): [cell.strip("* ") for cell in cells[1:]] for cells in lines[2:]}
    of_theirs = os.path.dirname(theirs).removeprefix("results/")
    assert {"runs/a", "runs/b", of_theirs} <= shown.keys()  # one table for all
    assert shown[of_theirs] == shown["runs/b"] != shown["runs/a"]
    assert theirs.startswith("results/pretrained/theirs-")
    ours = of_checkpoint(found["results/runs/b/results.jsonl"], 10)
    converted = of_checkpoint(found[theirs], 0)
    assert converted.keys() == ours.keys()
    for key, value in converted.items():
        assert value == pytest.approx(ours[key], abs=1e-5)
    assert sorted(os.listdir(runs / "theirs")) == before
    sweep(f"{runs}/theirs", *flags, output=None)
    assert sorted(os.listdir(runs / "theirs")) == before
    home = f"{cache.directory}/{os.path.dirname(theirs).removeprefix('results/')}"
    assert of_checkpoint(results.read(f"{home}/{results.FILE}"), 0) == converted


def test_several_vocabularies_have_caches_of_their_own(sweep, runs, folder, cache, capsys):
    other = train_vocabulary(folder / "fifth.model", WORDS[:7])
    make_run(str(runs / "aa"), other)
    own = f"{cache.directory}/vocabulary-{other.fingerprint[:12]}"
    make_cache(own, other)
    found = sweep(f"{runs}/*")
    signs = {
        path: {r.signature for r in rows if r.task == "masked_lm"} for path, rows in found.items()
    }
    assert (
        len(signs) == 3
        and signs["results/runs/a/results.jsonl"] != signs["results/runs/aa/results.jsonl"]
    )
    said = capsys.readouterr().out
    assert "6 cells done, 0 failed" in said
    assert re.findall(r"runs/(\w+)/checkpoints/10: M", said) == ["a", "b", "aa"]  # by vocabulary


def test_a_running_training_is_followed(sweep, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "LOOK", 0.05)
    late = tmp_path / "late"
    os.rename(runs / "a/checkpoints", late)
    (runs / "a/checkpoints").mkdir()
    file = tmp_path / "results/runs/a" / results.FILE

    def train():
        for step in (5, 10):
            os.rename(late / str(step), runs / "a/checkpoints" / str(step))
            while f'"step": {step}' not in (file.read_text() if file.exists() else ""):
                time.sleep(0.05)

    training = threading.Thread(target=train, daemon=True)
    training.start()
    found = sweep(f"{runs}/a/checkpoints/*", "--watch=0.05", "--gin.SentenceRetrieval.layers=[1]")
    training.join()
    assert {row.step for rows in found.values() for row in rows} == {5, 10}
    assert "4 cells done, 0 failed, 0 left" in capsys.readouterr().out


def test_the_checkpoint_that_is_best_on_validation_text_is_evaluated(sweep, runs, capsys):
    only = ["--gin.EvaluateConfig.evaluations=[@MaskedAccuracy()]"]
    found = sweep(f"{runs}/*/checkpoints/*", *only)
    tests = ["--gin.EvaluateConfig.evaluations=[@SentenceRetrieval()]"]
    both = sweep(f"{runs}/*/checkpoints/*", *tests, "--select=best:loss:all/validation")
    assert capsys.readouterr().out.count("selected: ") == 2
    for path, rows in found.items():
        losses = {r.step: r.value for r in rows if (r.metric, *r.languages) == ("loss", "macro")}
        tested = {r.step for r in both[path] if r.task == "retrieval"}
        assert len(losses) == 2 and tested == {min(losses, key=losses.get)}
    with pytest.raises(UserError, match="all/test is no validation split"):
        sweep(f"{runs}/*/checkpoints/*", *tests, "--select=best:p@1:all/test")
    shutil.copytree(runs / "b", runs / "c")  # has no results
    with pytest.raises(UserError, match="has no loss on all/validation.*runs/c: every evaluation"):
        sweep(f"{runs}/*/checkpoints/*", *tests, "--select=best:loss:all/validation")
    assert "2 cells done, 1 failed, 0 left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pattern", "flags", "message"),
    [
        ("{}/nowhere/*", [], "nowhere/. matches no folder; quote it"),
        ("{}/a", ["--watch=0"], "--watch = 0.0: must be"),
        ("{}/a", ["--checkpoint=7"], "no checkpoint of step 7 .* there are 5, 10"),
        ("{}", [], "no folder has a finished checkpoint"),
        ("{}/begun/0", [], "no folder has a finished checkpoint"),  # a run, and no checkpoint
        ("hdfs://bucket/*", [], "must be a local path, or an address"),
        ("{}/a", ["--output=gs://bucket/results"], "must be a local path .* no remote one"),
        ("{}/a", ["--gin_file=gin/eval/retrieval.gin"], "both.gin and gin/.* all set Eval.*scope"),
    ],
)
def test_bad_flags_are_errors(sweep, runs, pattern, flags, message, capsys):
    (runs / "begun/0/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        sweep(pattern.format(runs), *flags)
    assert not capsys.readouterr().out.rstrip().endswith("results:")
