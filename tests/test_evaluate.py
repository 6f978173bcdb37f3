"""The command from end to end, on checkpoints of random parameters and a cache of token ids."""

import dataclasses
import functools
import json
import os
import shutil

import gin
import jax
import numpy as np
import pytest
import sentencepiece
from flax import nnx

from xl_flax import evaluate
from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.load import load_model
from xl_flax.checkpoints.manager import CheckpointManager, Progress
from xl_flax.data.build import write_split
from xl_flax.data.features import Example
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache
from xl_flax.data.mixtures import Mixture, write_mixture
from xl_flax.data.vocabulary import VOCABULARY_FILE, load_vocabulary
from xl_flax.errors import UserError
from xl_flax.evaluation import controls, lexical, results, sentences
from xl_flax.evaluation.base import Subject
from xl_flax.evaluation.config import EvaluateConfig
from xl_flax.evaluation.sentences import SentenceEvaluation
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model

WORDS = ("sun", "moon", "star", "tree", "leaf", "root", "stone", "river", "cloud", "rain", "wind")
COUNT = 40
LANGUAGES = ("one", "same", "other")
HEADS = {"mlm": {}, "translation": {"kind": "sentence", "layer": 1, "projection": "linear"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


def train_vocabulary(path, words):
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(words, 6)) for _ in range(300)]
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, vocab_size=60,
            hard_vocab_limit=False, bos_piece="<s>", eos_piece="</s>",
            bos_id=0, pad_id=1, eos_id=2, unk_id=3, user_defined_symbols=["<mask>"], minloglevel=2,
        )  # fmt: skip
    return load_vocabulary(str(path))


@pytest.fixture(scope="module")
def vocabulary(folder):
    return train_vocabulary(folder / "vocabulary.model", WORDS)


@pytest.fixture(scope="module")
def cache(folder, vocabulary):
    """`same` repeats the sentences of `one`, `other` has its own."""
    cache = Cache(str(folder / "cache"), ["none"], on_missing="stop")
    ordinary = np.flatnonzero(~vocabulary.special_mask())
    made = {"modules": {}, "source": "", "preprocessors": [], "files": {}}
    made["vocabulary"] = vocabulary.fingerprint

    def write(task, split, languages, examples):
        fingerprint = made | {"filter": cache.filter.settings(split, len(languages) > 1)}
        numbered = [Example(i, texts) for i, texts in enumerate(examples)]
        write_split(
            cache, task, split, Layout(16), numbered,
            languages=languages, vocabulary=vocabulary, fingerprint=fingerprint,
        )  # fmt: skip

    for split in ("train", "validation", "test"):
        for seed, language in enumerate(LANGUAGES):
            rng = np.random.default_rng(7 if language == "same" else 7 + seed)
            sizes = rng.integers(4, 20, COUNT)
            write(f"t_{language}", split, (language,), [(rng.choice(ordinary, n),) for n in sizes])
        twice = [(ids, ids) for ids in rng.choice(ordinary, (COUNT, 5))]
        write("p_one-same", split, ("one", "same"), twice)
        tasks = [f"t_{language}" for language in LANGUAGES]
        mixtures = {task: [task] for task in [*tasks, "p_one-same"]} | {
            "all": tasks, "one-same": ["t_one", "t_same"], "one-other": ["t_one", "t_other"],
        }  # fmt: skip
        for name, of in mixtures.items():
            rates, counts = dict.fromkeys(of, 1.0), dict.fromkeys(of, COUNT)
            write_mixture(cache, split, Mixture(name, {}, rates, counts))
    return cache


def make_run(directory, vocabulary, seed=0, best=None, keep_last=5):
    """A run with checkpoints of steps 5 and 10, whose parameters are random."""
    shape = {"num_layers": 2, "width": 16, "num_heads": 2, "mlp_width": 32, "max_positions": 16}
    config = EncoderConfig(vocab_size=vocabulary.size, **shape)
    manager = CheckpointManager(directory, keep_last=keep_last)
    with open(vocabulary.path, "rb") as file:
        model_file = file.read()
    for step in (5, 10):
        state = nnx.jit(lambda key: nnx.state(build_model(config, HEADS, nnx.Rngs(key))))(
            jax.random.key(seed + step)
        )
        description = Description(
            config, HEADS, vocabulary.fingerprint, {"mlm": LANGUAGES}, {}, step=step
        )
        manager.save(
            nnx.to_pure_dict(state),
            {"count": jax.numpy.zeros(())},
            Progress(step, {}, 0, {}, best=best, saved=[5, 10][: step // 5]),
            {"model.json": description.to_json(), VOCABULARY_FILE: model_file},
        )
    manager.wait()
    manager.close()
    return directory


@pytest.fixture(scope="module")
def model_dir(folder, vocabulary):
    best = {"metric": "eval/m/loss", "mode": "min", "step": 5, "value": 0.5, "waited": 1}
    return make_run(str(folder / "run"), vocabulary, best=best)


@pytest.fixture
def command(model_dir, cache):
    """Runs the command; without `fresh` it finds what earlier tests left in results.jsonl."""

    def run(*flags, path=model_dir, fresh=True):
        paths = [path] if isinstance(path, str) else path
        for file in (os.path.join(folder, "results.jsonl") for folder in {model_dir, *paths}):
            if fresh and os.path.exists(file):
                os.remove(file)
        evaluate.main(
            [
                f"--gin.MODEL_DIR={path}",
                f"--gin.CACHE_DIR={cache.directory}",
                "--gin.TASK_MODULES=['none']",
                "--gin.Cache.on_missing='stop'",
                "--gin_file=gin/eval/both.gin",
                "--gin.MaskedAccuracy.mixture=all",
                "--gin.MaskedAccuracy.length=16",
                "--gin.SentenceRetrieval.mixture=all",
                "--gin.SentenceRetrieval.length=16",
                "--gin.EvaluateConfig.controls=False",
                *flags,
            ]
        )

    yield run
    gin.clear_config()


@pytest.fixture
def rows(model_dir):
    def read(run=model_dir, **wanted):
        with open(os.path.join(run, "results.jsonl")) as file:
            lines = [json.loads(line) for line in file]
        return [r for r in lines if all(r[k] == v for k, v in wanted.items())]

    return read


def test_the_newest_checkpoint_is_evaluated_into_results_and_tables(
    command, rows, vocabulary, model_dir, capsys
):
    command()
    (same,) = rows(languages=["one", "same"], metric="p@1", layer=2)
    assert same["value"] == 1.0 and same["step"] == 10 and same["n"] == COUNT
    (other,) = rows(languages=["one", "other"], metric="p@1", layer=2)
    assert other["value"] < 0.2
    # layers × (ordered pairs, the means of each language as query and as searched, of all)
    assert len(rows(metric="p@1")) == 3 * (6 + 6 + 1)
    assert len({r["signature"] for r in rows(task="retrieval")}) == 3
    losses = {r["languages"][0]: r["value"] for r in rows(metric="loss")}
    assert losses.keys() == {*LANGUAGES, "macro"}
    assert losses["one"] == pytest.approx(np.log(vocabulary.size), rel=0.1)
    (baseline,) = rows(metric="unigram_loss", languages=["one"])
    assert 2 < baseline["value"] < losses["one"] + 0.5

    text = capsys.readouterr().out
    assert "chance 2.50%" in text and "by frequency: what the frequencies" in text
    lines = [x for x in text.splitlines() if "|version:" not in x and model_dir not in x]
    assert max(map(len, lines)) <= 80
    assert "sentences longer than 16 tokens were cut" in text
    assert all(r["signature"] in text for r in rows(task="masked_lm"))


def test_every_similarity_is_scored_and_centred_or_projected_ones_are_other_results(
    command, rows, capsys
):
    flags = ["--gin_file=gin/eval/retrieval.gin", "--gin.SentenceRetrieval.layers=[2]"]
    command(*flags)
    command(*flags, "--gin.SentenceRetrieval.center=True", fresh=False)
    command(*flags, "--gin.SentenceRetrieval.head=translation", fresh=False)
    assert len({r["signature"] for r in rows()}) == 3 * 3
    for similarity in ("cosine", "csls", "margin"):
        found = rows(languages=["one", "same"], metric="p@1", similarity=similarity)
        assert [(r["value"], r["layer"], r["head"]) for r in found] == [
            (1.0, 2, None), (1.0, 2, None), (1.0, 1, "translation"),
        ]  # fmt: skip
    errors = {(tuple(r["languages"]), r["signature"]): r["value"] for r in rows(metric="xsim")}
    accuracies = rows(metric="p@1", similarity="margin")
    assert len(errors) == len(accuracies) == 3 * 13
    for r in accuracies:
        key = tuple(r["languages"]), r["signature"]
        assert errors[key] == pytest.approx(100 * (1 - r["value"]))
    text = capsys.readouterr().out
    assert "xSIM error" in text and "by csls, layer 2: P@1" in text


def test_a_pivot_is_shown_with_each_other_language(command, rows, capsys):
    command(
        "--gin_file=gin/eval/retrieval.gin",
        "--gin.SentenceRetrieval.pivot=same",
        "--gin.SentenceRetrieval.layers=[2]",
    )
    found = {tuple(r["languages"]): r["value"] for r in rows(metric="p@1", similarity="csls")}
    lines = capsys.readouterr().out.splitlines()
    assert all("same" in pair or pair == ("macro",) for pair in found)
    titles = [i for i, line in enumerate(lines) if line.startswith("all/test with same, by ")]
    assert len(titles) == 3 and lines[titles[1] + 1].split() == ["language", *"n→←", "unknown"]
    (line,) = [x.split() for x in lines[titles[1] : titles[2]] if x.startswith("one ")]
    assert line[2:4] == [f"{100 * found[pair]:.1f}" for pair in (("one", "same"), ("same", "one"))]


def test_several_mixtures_have_a_mean_over_all_of_them(command, rows, capsys):
    command(
        "--gin_file=gin/eval/retrieval.gin",
        "--gin.SentenceRetrieval.mixture=['one-same', 'one-other']",
        "--gin.SentenceRetrieval.layers=[2]",
    )
    plain = functools.partial(rows, similarity="cosine", metric="p@1")
    pairs = {tuple(r["languages"]): r["value"] for r in plain(n=COUNT)}
    (macro,) = [r for r in plain(languages=["macro"]) if r["n"] == 4]
    assert macro["data"].startswith("one-same+1#") and "|n:80|" in macro["signature"]
    for languages, members in (
        (["macro", "one"], [("same", "one"), ("other", "one")]),
        (["one", "macro"], [("one", "same"), ("one", "other")]),
    ):
        (mean,) = plain(languages=languages)
        assert mean["value"] == pytest.approx(np.mean([pairs[m] for m in members]))
    text = capsys.readouterr().out
    assert "same-one" in text and "other-one" in text and macro["signature"] in text


def test_a_task_of_parallel_text_is_aligned_by_itself(command, rows):
    flags = ["--gin_file=gin/eval/retrieval.gin", "--gin.SentenceRetrieval.layers=[2]"]
    command(*flags, "--gin.SentenceRetrieval.mixture=p_one-same")
    command(*flags, "--gin.SentenceRetrieval.mixture=one-same", fresh=False)
    found = rows(languages=["one", "same"], similarity="margin", metric="p@1")
    assert [(r["data"], r["value"]) for r in found] == [
        ("p_one-same/test", 1.0), ("one-same/test", 1.0),
    ]  # fmt: skip
    with pytest.raises(UserError, match="p_one-same/validation is parallel text"):
        command("--gin.MaskedAccuracy.mixture=p_one-same")


def test_mining_finds_copies_and_little_else(command, rows, capsys):
    flags = ["--gin_file=gin/eval/mining.gin", "--gin.BitextMining.mixture=all"]
    flags += ["--gin.BitextMining.length=16", "--gin.BitextMining.pivot=one"]
    command(*flags)
    for layer in range(3):
        (same,) = rows(languages=["one", "same"], metric="f1", layer=layer)
        (other,) = rows(languages=["one", "other"], metric="f1", layer=layer)
        assert same["value"] > 0.75 and other["value"] < 0.5 and same["n"] == other["n"]
        (macro,) = rows(languages=["macro"], metric="f1", layer=layer)
        assert macro["value"] == pytest.approx((same["value"] + other["value"]) / 2)
    assert "ratio_margin|k:4|retrieval:max|halves:index_hash" in macro["signature"]
    first = len(rows())
    text = capsys.readouterr().out
    assert "mining|data:all/test" in text and text.count("results: ") == 1
    command(*flags, fresh=False)
    assert len(rows()) == first and "From " in capsys.readouterr().out


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


def test_some_languages_are_evaluated(command, rows):
    chosen = "['same', 'one']"
    command(
        f"--gin.MaskedAccuracy.languages={chosen}",
        f"--gin.SentenceRetrieval.languages={chosen}",
        "--gin.SentenceRetrieval.layers=[1]",
    )
    named = {language for r in rows() for language in r["languages"]}
    assert named == {"one", "same", "macro"}
    assert all("|languages:one,same|" in r["signature"] for r in rows())
    with pytest.raises(UserError, match="languages = .'tha'.: choose some of all's, one, ot"):
        command("--gin.MaskedAccuracy.languages=['tha']")


def test_several_runs_are_evaluated_as_each_alone(
    command, rows, model_dir, vocabulary, folder, monkeypatch
):
    other = make_run(str(folder / "other"), vocabulary, seed=100)
    compiled = []
    make_pool = sentences.make_pool
    monkeypatch.setattr(sentences, "make_pool", lambda *a: (compiled.append(a), make_pool(*a))[1])

    def values(run):
        return {(tuple(r["languages"]), r["metric"], r["layer"]): r["value"] for r in rows(run)}

    command(path=other)
    alone = values(other)
    command()
    compiled.clear()
    command(path=[model_dir, other])
    assert len(compiled) == 1
    # What was remembered of one run's step 10 was once taken for the other's.
    assert values(other) == alone != values(model_dir)


def test_vocabularies_that_differ_are_an_error_that_names_both(command, model_dir, folder):
    other = train_vocabulary(folder / "third.model", WORDS[:6])
    run = make_run(str(folder / "third"), other)
    with pytest.raises(UserError, match="/run/.* and .*/third/.*different vocabularies.*of their"):
        command(path=[model_dir, run])
    with pytest.raises(UserError, match="use its own: --gin.run_vocabulary.path=.*/10/model/"):
        command(f"--gin.run_vocabulary.path={other.path}")
    with pytest.raises(UserError, match="nowhere.model does not.*run_vocabulary.path=.*/10/model/"):
        command("--gin.run_vocabulary.path=/nowhere.model")


def test_phases_name_the_mixtures_whose_tasks_are_evaluated(command, rows):
    command()
    whole = {r["languages"][0]: r["value"] for r in rows(metric="loss")}
    phases = "[(0, 'one-same'), (7, 'one-other')]"
    command(f"--gin.MaskedAccuracy.mixture={phases}", f"--gin.SentenceRetrieval.mixture={phases}")
    assert {r["languages"][0]: r["value"] for r in rows(metric="loss")} == whole
    assert {r["data"] for r in rows(task="masked_lm")} == {"one-same+one-other/validation"}
    named = {r["data"] for r in rows(task="retrieval", metric="p@1")}
    assert {"one-same/test", "one-other/test"} < named


def test_the_best_checkpoint_is_chosen_by_its_mark(command, rows, model_dir, vocabulary, folder):
    command("--checkpoint=best")
    assert {r["step"] for r in rows()} == {load_model(f"{model_dir}:best")[1].step} == {5}
    unmarked = make_run(str(folder / "unmarked"), vocabulary)
    with pytest.raises(UserError, match="has no best checkpoint .*TrainConfig.best"):
        evaluate.choose_checkpoints(unmarked, "best")


def test_controls_are_measured_once_and_shown_beside_each_checkpoint(
    command, rows, cache, vocabulary, folder, monkeypatch, capsys
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
    before = results.read(kept)
    assert {line.model for line in before} == {"untrained", "tf-idf", "length"}

    monkeypatch.setattr(Subject, "untrained", None)
    monkeypatch.setattr(lexical, "LEXICAL", None)
    other = make_run(str(folder / "controlled"), vocabulary, seed=7)
    command(*flags, "--checkpoint=all", path=other)
    assert results.read(kept) == before
    assert len(rows(other, step=0)) == len(before)  # once for both checkpoints
    assert {r["step"] for r in rows(other)} == {0, 5, 10}
    capsys.readouterr()
    command(*flags, "--checkpoint=10", "--gin.EvaluateConfig.controls=False", path=other)
    assert not rows(other, step=0) and "untrained" not in capsys.readouterr().out


def test_a_layer_is_chosen_on_other_text_and_its_results_are_results(
    command, rows, monkeypatch, capsys
):
    flags = ["--gin_file=gin/eval/retrieval.gin", "--gin.SentenceRetrieval.choose_on=one-other"]
    flags += ["--gin.SentenceRetrieval.layers=[0, 1]"]
    flags += ["--gin.SentenceRetrieval.similarity=['cosine']"]
    command(*flags)
    text = capsys.readouterr().out

    def means(data):
        found = rows(data=data, metric="p@1", languages=["macro"])
        return {r["layer"]: r["value"] for r in found}

    choice = means("one-other/validation")
    layer = max(choice, key=choice.get)
    assert f"all/test by pairs, by cosine, layer {layer}: P@1" in text
    assert "* best on one-other/validation, shown below; choice" in text
    values = [choice[layer], means("all/test")[layer]]
    line = next(x.split() for x in text.splitlines() if x.split()[:1] == [str(layer)])
    assert line[1:3] == [f"{100 * values[0]:.1f}", "*"] and f"{100 * values[1]:.1f}" in line
    monkeypatch.setattr(Subject, "load", None)
    command(*flags, fresh=False)
    again = capsys.readouterr().out
    assert text.split("\nSentence retrieval")[1] == again.split("\nSentence retrieval")[1]
    assert again.count("From ") == 1
    with pytest.raises(UserError, match="'t_one', split 'validation' has one language .one."):
        command(*flags, "--gin.SentenceRetrieval.choose_on=t_one")


@dataclasses.dataclass(frozen=True)
class Spread(SentenceEvaluation):
    """How far the sentences of each language lie from their mean, in every layer."""

    def template(self, space, context):
        return self.result_template("spread", self.datasets, space, context)

    def signatures(self, description, context):
        spaces = self.spaces(description)
        return [self.template(space, context).keywords["signature"] for space in spaces]

    def __call__(self, subject, context):
        results = []
        for _, space, vectors in self.vectors(subject, context):
            make = self.template(space, context)
            for name, x in vectors.items():
                value = float(np.linalg.norm(x - x.mean(axis=0), axis=1).mean())
                results.append(make(languages=(name,), metric="spread", value=value, n=len(x)))
        return results


def test_an_evaluation_from_outside_runs_on_every_layer(cache, model_dir, rows, capsys):
    evaluate.evaluate(EvaluateConfig(model_dir, cache, [Spread("all", length=16)]), overwrite=True)
    values = {(r["layer"], *r["languages"]): r["value"] for r in rows(task="spread")}
    assert len(values) == 9 and all(
        values[layer, "one"] == values[layer, "same"] for layer in range(3)
    )
    assert "spread|data:all/test" in capsys.readouterr().out


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


def test_all_checkpoints_are_not_those_that_were_deleted(model_dir, vocabulary, folder, capsys):
    run = make_run(str(folder / "short"), vocabulary, keep_last=1)
    assert len(evaluate.choose_checkpoints(run, "all")) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "1 more were saved and deleted while it trained" in said and said.endswith("steps 5")
    assert len(evaluate.choose_checkpoints(model_dir, "all")) == 2
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--gin.SentenceRetrieval.mixture=none"], "none .test.: not cached"),
        (["--gin.SentenceRetrieval.mixture=t_one"], "has one language .one.: retrieval needs"),
        (["--gin.MaskedAccuracy.baseline=t_other"], "no 'one' to take the unigram baseline from"),
        (["--gin.SentenceRetrieval.layers=[3]"], "from 0 .embeddings. to 2"),
        (["--gin.SentenceRetrieval.head=mlm"], "head = 'mlm': .*it has translation"),
        (["--gin.SentenceRetrieval.similarity=['l2']"], "must be a list of some of 'cosine'"),
        (["--gin.MaskedAccuracy.rate=1.5"], "must be a number, more than 0 and less than 1"),
    ],
)
def test_bad_settings_are_errors_and_leave_no_results(command, model_dir, flags, message):
    with pytest.raises((UserError, ValueError), match=message):
        command(*flags)
    assert not os.path.exists(os.path.join(model_dir, "results.jsonl"))
