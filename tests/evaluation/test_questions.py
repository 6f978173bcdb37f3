"""A small model learns the answers to a few questions, and the evaluation finds them."""

import dataclasses
import itertools
import json
import re
import types

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from xl_flax import cli
from xl_flax.checkpoints.description import Description
from xl_flax.data import spans
from xl_flax.data.build import write_split
from xl_flax.data.features import Example, FeatureSpec
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache
from xl_flax.data.mixtures import Mixture, write_mixture
from xl_flax.data.prepare import Caches, DatasetSpec, prepare
from xl_flax.data.stream import Rows, open_stream
from xl_flax.data.synthetic.language import FAMILY
from xl_flax.data.synthetic.passages import passage
from xl_flax.data.vocabulary import VocabularyConfig, load_vocabulary
from xl_flax.data.vocabulary_training import Corpus, train_model
from xl_flax.errors import UserError
from xl_flax.evaluation import ahead, answers
from xl_flax.evaluation.base import NotFiniteError, Subject
from xl_flax.evaluation.config import EvaluateConfig
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.labelled import Scored
from xl_flax.evaluation.questions import N_BEST, AnswerScores
from xl_flax.evaluation.results import MACRO
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.objectives.base import Inputs
from xl_flax.objectives.questions import QuestionAnswering
from xl_flax.parallel.mesh import MeshConfig, make_partitioning

LANGUAGES, PASSAGES, STEPS = ("alpha", "gamma"), 2, 120
LAYOUT = Layout(48, "packed", "window", 8)  # passages have about 40 tokens
SINGLE = Layout(48, "single", "window", 8)
FEATURES = {name: FeatureSpec("text", "string") for name in ("answers", "context", "id")}
FEATURES = {"answer": FeatureSpec("span")} | FEATURES
ROWS = Rows("few", LAYOUT.length, too_long="window", stride=LAYOUT.stride)


def asked(language, vocabulary):
    for index in range(PASSAGES):
        own = passage(FAMILY[language], "train", index)
        ids, offsets = spans.encode(vocabulary, own.text)
        for i, question in enumerate(own.questions):
            gold = [{"text": question.answer, "answer_start": question.start}]
            features = {
                "answer": np.array(spans.tokens_of(offsets, question.start, question.end)),
                "answers": json.dumps(gold),
                "context": own.text,
                "id": f"{language}-{index}-{i}",
            }
            texts = np.array(vocabulary.encode(question.sentence.text)), ids
            yield Example(6 * index + i, texts, features)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "v.model"
    texts = [passage(FAMILY[n], "train", i).text for n in LANGUAGES for i in range(100)]
    config = VocabularyConfig("few", str(path), 200)
    path.write_bytes(train_model([Corpus("und", len(texts), texts, 1)], config))
    return load_vocabulary(str(path))


@pytest.fixture(scope="module")
def caches(tmp_path_factory, vocabulary):
    cache = Cache(str(tmp_path_factory.mktemp("cache")), ["none"], on_missing="stop")
    made = {"modules": {}, "source": "", "preprocessors": [], "files": {}}
    made |= {"vocabulary": vocabulary.fingerprint, "filter": cache.filter.settings("train", False)}
    for language in LANGUAGES:
        for layout in (LAYOUT, SINGLE):
            write_split(
                cache, f"few_{language}", "train", layout, list(asked(language, vocabulary)),
                languages=(language,) * 2, vocabulary=vocabulary, fingerprint=made,
                features=FEATURES,
            )  # fmt: skip
    rates = dict.fromkeys((f"few_{language}" for language in LANGUAGES), 1.0)
    write_mixture(cache, "train", Mixture("few", {}, rates, dict.fromkeys(rates, 6 * PASSAGES)))
    specs = [DatasetSpec("few", "train", layout) for layout in (LAYOUT, SINGLE)]
    return prepare(specs, cache, vocabulary)


def make_subject(vocabulary, params, graph, config):
    objective = QuestionAnswering(ROWS, 4)
    heads = objective.heads(None)
    description = Description(
        config, heads, vocabulary.fingerprint, {"question": ("alpha",)}, {}, step=9
    )
    return Subject(graph, params, description, ("live", "run", 9))


@pytest.fixture(scope="module")
def trained(caches, vocabulary):
    """The subject after a few steps, and its losses."""
    stream = open_stream(ROWS, caches, 0, vocabulary)
    objective = QuestionAnswering(ROWS, 4)
    config = EncoderConfig(
        vocab_size=vocabulary.size, num_layers=2, width=64, num_heads=2, mlp_width=128,
        max_positions=48, token_types=2, scan="unroll", mlp_out_dropout=0, embedding_dropout=0,
        init_std=0.1,
    )  # fmt: skip
    objective.check(stream)
    heads = objective.heads(stream)
    model = nnx.jit(lambda: build_model(config, heads, nnx.Rngs(0)))()
    graph, state = nnx.split(model)
    params = nnx.to_pure_dict(state)
    buffers = objective.buffers(vocabulary, stream, stream.languages)
    buffers = jax.tree.map(jnp.asarray, buffers)
    optimizer = optax.adam(optax.linear_schedule(3e-3, 3e-4, STEPS))
    inputs = types.SimpleNamespace(
        languages=stream.languages, num_texts=2, examples_per_row=stream.examples_per_row
    )

    @jax.jit
    def step(params, moments, batch):
        def mean(params):
            given = Inputs(jax.random.key(0), inputs, buffers)
            loss = objective.loss(nnx.merge(graph, params), batch, given)
            return loss.total / loss.sums["count"]

        loss, gradient = jax.value_and_grad(mean)(params)
        update, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, update), moments, loss

    moments, losses = optimizer.init(params), []
    for number in range(STEPS):
        batch = stream.rows(range(number * 12, number * 12 + 12))
        params, moments, loss = step(params, moments, batch)
        losses.append(float(loss))
    return make_subject(vocabulary, params, graph, config), losses


@pytest.fixture
def context(caches, vocabulary):
    return Context(caches, vocabulary, make_partitioning(MeshConfig(), jax.devices()[:1]))


def evaluation(**settings):
    return AnswerScores("few", 48, split="train", stride=8, **settings)


def test_what_was_learnt_is_found(
    trained,
    context,
    monkeypatch,
):
    subject, losses = trained
    assert losses[0] > 2 and np.mean(losses[-5:]) < 0.3
    monkeypatch.setattr(ahead, "CPU_TOKENS", 48 * 4)  # several batches
    results = evaluation()(subject, context)
    values = {(r.languages[0], r.metric): r.value for r in results}
    assert values["alpha", "f1"] > 0.8 and values["gamma", "f1"] > 0.8
    assert values["alpha", "exact_match"] > 0.7
    ((_, scored),) = context.predictions.values()
    for language, own in scored.items():
        gold = list(asked(language, context.vocabulary))
        assert len(own.predictions) == len(gold) == 12
        counted = np.stack([own.counts[metric][:, 0] for metric in ("exact_match", "f1")], axis=1)
        for example, said, counts in zip(gold, own.predictions, counted, strict=True):
            assert said["id"] == example.features["id"]
            assert said["text"] and said["text"] in example.features["context"]
            right = [json.loads(example.features["answers"])[0]["text"]]
            assert answers.scores(said["text"], right, "squad", language) == tuple(counts)
    rows = evaluation().rows(context)
    assert 1 in rows.rows(range(len(rows)))["piece"]  # contexts had several windows
    functions = [made for made in context._memory.values() if hasattr(made, "_cache_size")]
    assert [function._cache_size() for function in functions] == [1]


def test_packing_changes_nothing(trained, context, monkeypatch):
    """Windows with others in their row, and each alone, have the same scores."""
    subject, _ = trained
    packed = evaluation()
    windows = packed._windows(subject, context)
    rows = packed.rows(context)

    monkeypatch.setattr(AnswerScores, "layout", SINGLE)
    alone, others = packed._windows(subject, context), packed.rows(context)
    assert len(others) > len(rows) and others.examples_per_row == 1 < rows.examples_per_row
    for task, numbered in windows.items():
        for number, own in numbered.items():
            for one, other in zip(own, alone[task][number], strict=True):
                assert one[:3] == other[:3]
                np.testing.assert_allclose(one.starts_S, other.starts_S, atol=1e-5)
                np.testing.assert_allclose(one.ends_S, other.ends_S, atol=1e-5)


def test_windows_follow_one_another_in_the_context(trained, context):
    subject, _ = trained
    windows = evaluation()._windows(subject, context)
    for language in LANGUAGES:
        for example in asked(language, context.vocabulary):
            own = windows[f"few_{language}"][example.number]
            assert own[0].first == 0
            assert own[-1].first + own[-1].size == len(example.texts[1])
            for one, following in itertools.pairwise(own):
                assert following.first == one.first + one.size - 8
            for window in own:  # [CLS] question [SEP] ([CLS]) context [SEP]
                assert window.at == len(example.texts[0]) + 3
                assert window.starts_S.size == window.at + window.size + 1
                dropped = np.flatnonzero(np.isinf(window.starts_S)).tolist()
                assert dropped == [window.at - 1]


def test_a_baseline_needs_no_model(trained, context):
    subject, _ = trained
    (baseline,) = evaluation().baselines(subject.description, context)
    results = baseline.measure()
    assert baseline.name == "overlap" and "model:overlap" in baseline.signatures[0]
    assert {r.model for r in results} == {"overlap"}
    assert {r.signature for r in results} == set(baseline.signatures)
    values = {(r.languages[0], r.metric): r.value for r in results}
    assert all(0 <= value < 0.7 for value in values.values()) and max(values.values()) > 0


def test_some_languages_are_a_list_as_gin_gives_it(trained, context):
    subject, _ = trained
    every, some = evaluation(), evaluation(languages=["alpha"])
    results = some(subject, context)
    assert {r.languages for r in results} == {("alpha",), (MACRO,)}
    signs = [e.signatures(subject.description, context)[0] for e in (every, some)]
    sizes = [re.search(r"\|n:(\d+)#(\w{8})\|", sign).groups() for sign in signs]
    assert int(sizes[0][0]) == 2 * int(sizes[1][0]) and sizes[0][1] != sizes[1][1]


def test_translations_are_drawn_together(context):
    """Where two languages are right in the same examples, their mean is as sure as one of them."""
    right = np.random.default_rng(0).integers(2, size=(6 * PASSAGES, 1)).astype(float)
    counts = dict.fromkeys(("f1", "exact_match"), np.hstack([right, np.ones_like(right)]))
    scored = dict.fromkeys(LANGUAGES, Scored(counts, [""] * len(right)))
    results = evaluation()._results(scored, "sign", context, ())
    assert len({r.interval for r in results if r.metric == "f1"}) == 1


def test_a_test_with_holes_is_refused(trained, context):
    subject, _ = trained
    caches = {
        spec: cached._replace(
            manifests={
                task: dataclasses.replace(manifest, dropped={"empty text": 2})
                for task, manifest in cached.manifests.items()
            }
        )
        for spec, cached in context.caches.items()
    }
    holes = dataclasses.replace(context, caches=Caches(caches), _memory={})
    with pytest.raises(UserError, match="few_alpha/train: 2 examples have an empty text"):
        evaluation()(subject, holes)


def test_what_does_not_suit_is_named(trained, context):
    subject, _ = trained

    def refused(message, heads=subject.description.heads, **settings):
        description = dataclasses.replace(subject.description, heads=heads)
        with pytest.raises(UserError, match=message):
            evaluation(**settings).signatures(description, context)

    refused("'mlqa'.*'alpha'", rule="mlqa")
    tagger = {"question": {"kind": "classification", "pooling": "tokens", "labels": list("abc")}}
    refused("two scores of each token", tagger)
    refused("question.*fine-tune it first", {"mlm": {}})
    (sign,) = evaluation().signatures(subject.description, context)
    assert "rule:squad|stride:8|answer:30|nbest:20" in sign


def test_a_model_that_diverged_is_said(trained, context):
    subject, _ = trained
    params = jax.tree.map(lambda x: x * np.nan, subject.params)
    with pytest.raises(NotFiniteError, match="few/train, step 9"):
        evaluation()(dataclasses.replace(subject, params=params), context)


def test_xtremes_tests_are_scored_by_the_rules_of_its_scripts():
    """TASK2LANGS and METRIC_FUNCTION in evaluate.py, the arguments of run_squad.py."""
    files = ["gin/eval/xtreme_questions.gin"]
    cli.load_gin(files, ["MODEL_DIR = '/run'", "CACHE_DIR = '/cache'"])
    found = EvaluateConfig().evaluations
    gin.clear_config()
    assert {e.mixture: e.rule for e in found} == {
        "xquad_xtreme": "squad", "mlqa": "mlqa", "tydiqa": "squad",
    }  # fmt: skip
    assert {(e.length, e.max_answer, e.split, N_BEST) for e in found} == {(384, 30, "test", 20)}
