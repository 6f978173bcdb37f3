"""The command from end to end: what each evaluation gives, in results and in tables."""

import dataclasses
import functools

import numpy as np
import pytest
from small_evaluations import COUNT, LANGUAGES

from xl_flax import evaluate
from xl_flax.errors import UserError
from xl_flax.evaluation.base import Subject
from xl_flax.evaluation.config import EvaluateConfig
from xl_flax.evaluation.sentences import SentenceEvaluation


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


def test_copies_have_one_shape_in_each_layer(command, rows, capsys):
    flags = ["--gin_file=gin/eval/representation.gin", "--gin.EvaluateConfig.controls=True"]
    flags += ["--gin.RepresentationSimilarity.mixture=all"]
    command(*flags, "--gin.RepresentationSimilarity.length=16")
    for layer in range(3):
        (same,) = rows(languages=["one", "same"], metric="cka", layer=layer, model=None)
        (other,) = rows(languages=["one", "other"], metric="cka", layer=layer, model=None)
        (null,) = rows(languages=["one", "same"], metric="cka_shuffled", layer=layer, model=None)
        assert same["value"] == pytest.approx(1) and other["value"] < 0.95 > null["value"]
    text = capsys.readouterr().out
    assert "Similarity of representations, all/test" in text and "tf-idf" in text
    assert max(len(x) for x in text.splitlines() if "|version:" not in x and "/" not in x) <= 80
    assert {r["model"] for r in rows(metric="cka")} == {None, "untrained", "tf-idf", "length"}


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
