"""Pretraining, fine-tuning on one language, testing on another: what transfers, what does not."""

import os
import sys

import jax
import pytest
import small_transfer

from xl_flax import convert, evaluate, report, train
from xl_flax.data.synthetic.generator import parallel_sentence
from xl_flax.data.synthetic.language import FAMILY
from xl_flax.evaluation import results
from xl_flax.evaluation.predictions import FOLDER

PRETRAINING, STEPS = 300, 60
# A metric, the control that knows words, and what is right by chance in a language never seen.
KINDS = {
    "objects": ("accuracy", "tf-idf", 0.6),
    "trees": ("las", "lexicon", 0.15),
    "questions": ("f1", "overlap", 0.15),
}


@pytest.fixture(scope="module")
def folder(one_device, tmp_path_factory):
    """A pretrained encoder, and runs that were fine-tuned from it and from scratch."""
    folder = tmp_path_factory.mktemp("transfer")
    small_transfer.make_data(folder, PRETRAINING, STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setattr(sys, "path", [str(folder), *sys.path])
        # Of its hundreds of steps compiling well pays; of the runs that follow it does not.
        jax.config.update("jax_disable_most_optimizations", False)
        try:
            assert train.main([f"--gin_file={folder}/pretrain.gin"]) == 0
        finally:
            jax.config.update("jax_disable_most_optimizations", True)
        small_transfer.make_caches(folder, "pos", *KINDS)
        finetune(folder, "pos", "--gin.SEEDS=[0, 1]")
        yield folder


def finetune(folder, kind, *flags):
    """Runs from the pretrained encoder and one from scratch, evaluated."""
    own = f"--gin_file={folder}/{kind}.gin"
    scratch = [f"--gin.MODEL_DIR={folder}/{kind}/untrained", "--gin.TrainConfig.init_from=None"]
    for more in (flags, scratch):
        assert train.main([own, *more]) == 0
        evaluate.main([own, *more])


def scores(folder, setting, seed=0, model=None, kind="pos", metric="f1"):
    rows = results.read(os.path.join(folder, kind, setting, str(seed), results.FILE))
    return {r.languages[0]: r for r in rows if (r.metric, r.model) == (metric, model)}


@pytest.mark.slow
def test_tags_transfer_to_a_language_without_a_letter_in_common(folder):
    trained, scratch = scores(folder, "pretrained"), scores(folder, "untrained")
    words = scores(folder, "pretrained", model="most frequent")
    # The source language is learnt either way; the other one needs the pretraining.
    assert trained["alpha"].value > 0.5 and scratch["alpha"].value > 0.5
    assert words["alpha"].value > 0.9 and words["beta"].value < 0.1
    assert scratch["beta"].value + 0.3 < trained["beta"].value < trained["alpha"].value
    rows = results.read(os.path.join(folder, "pos/pretrained/0", results.FILE))
    gap = next(r for r in rows if r.metric == "f1_gap" and not r.model)
    assert gap.value == pytest.approx(trained["alpha"].value - trained["beta"].value)
    assert gap.languages == (results.OTHERS,)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_labels_trees_and_answers_transfer_to_a_language_without_a_letter_in_common(folder, kind):
    metric, control, chance = KINDS[kind]
    finetune(folder, kind)
    trained, scratch, words = (
        scores(folder, setting, model=model, kind=kind, metric=metric)
        for setting, model in (("pretrained", None), ("untrained", None), ("pretrained", control))
    )
    assert trained["alpha"].value > 0.75 and scratch["alpha"].value > 0.7
    assert scratch["beta"].value < chance
    others = max(scratch["beta"].value, words["beta"].value)
    assert others + 0.15 < trained["beta"].value < trained["alpha"].value


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
    flags = [f"--gin_file={folder}/pos.gin", "--gin.SEEDS=[0, 1]"]
    assert train.main(flags) == 0
    assert capsys.readouterr().out.count("done: ") == 2
    evaluate.main(flags)
    assert capsys.readouterr().out.count("From ") == 2  # results.jsonl, not computed again


@pytest.mark.slow
def test_runs_are_compared_by_language_with_a_paired_test(folder, tmp_path, capsys):
    runs = [str(folder / "pos" / name) for name in ("pretrained/0", "pretrained/1", "untrained/0")]
    report.main([*runs, "--against=untrained"])
    shown = capsys.readouterr().out
    report.main([*runs, "--figures=heatmap", f"--out={tmp_path}"])
    assert "alpha *" in shown and "gap" in shown and "±" in shown
    (line,) = [x for x in shown.splitlines() if x.startswith("| beta") and "(p " in x]
    assert "+" in line and "(p 0.0001)" in line
    assert (tmp_path / "heatmap.png").stat().st_size > 10_000
    predictions = folder / "pos/pretrained/0" / FOLDER
    assert sorted(p.name for p in predictions.rglob("*.tsv")) == ["test-alpha.tsv", "test-beta.tsv"]


@pytest.mark.slow
def test_transformers_predicts_the_same_tags(folder, tmp_path):
    import torch
    import transformers

    convert.main([f"--source={folder}/pos/pretrained/0", f"--target={tmp_path}/theirs"])
    model = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "theirs")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    (file,) = (folder / "pos/pretrained/0" / FOLDER).rglob("test-beta.tsv")
    ours = [lines.split("\n") for lines in file.read_text().split("\n\n")[:-1]]
    words = [list(parallel_sentence(FAMILY["beta"], "test", i, "pos").words) for i in range(250)]
    inputs = tokenizer(words, is_split_into_words=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        best = model.eval()(**inputs).logits.argmax(-1).tolist()
    theirs = []
    for i, sentence in enumerate(words):
        first = [inputs.word_ids(i).index(w) for w in range(len(sentence))]
        theirs.append([model.config.id2label[best[i][place]] for place in first])
    assert ours == theirs and len({tag for tags in ours for tag in tags}) > 5
