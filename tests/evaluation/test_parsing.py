"""Attachment scores of a model that has learnt its trees, of cut sentences, and of controls."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from small_evaluations import WORDS, train_vocabulary
from tree_rows import LABELS, draw_sentence, stream

from xl_flax.checkpoints.description import Description
from xl_flax.data.build import write_split
from xl_flax.data.features import Example
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache
from xl_flax.data.mixtures import Mixture, write_mixture
from xl_flax.data.prepare import prepare
from xl_flax.data.stream import Rows, open_stream
from xl_flax.errors import UserError
from xl_flax.evaluation.base import NotFiniteError, Subject
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.parsing import ParsingScores
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.objectives.base import Inputs
from xl_flax.objectives.parsing import DependencyParsing
from xl_flax.parallel.mesh import MeshConfig, make_partitioning

LENGTH, LONG = 32, 64  # tokens per row; of rows that hold each sentence
LONG_WORD = 9  # words of a sentence of which the last one is longer than two rows
LANGUAGES = ("aa", "bb")
OBJECTIVE = DependencyParsing(
    rows=Rows("trees", LENGTH), batch_size=4, arc_width=16, relation_width=8, dropout=0.0
)
EVALUATION = ParsingScores(mixture="trees", length=LENGTH, train="trees")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return train_vocabulary(tmp_path_factory.mktemp("vocabulary") / "v.model", WORDS)


def examples(rng, ids, counts):
    """Sentences of so many words as a task yields them."""
    for number, count in enumerate(counts):
        pieces, heads, relations = draw_sentence(rng, count, most=2)
        sizes = [len(word) for word in pieces]
        sizes[-1] += 70 * (count == LONG_WORD)  # whose last parts hold no beginning of a word
        tokens = rng.choice(ids, sum(sizes)).astype(np.int32)
        features = {"word": (np.repeat(np.arange(count), sizes),)}
        for name, values in (("head", heads), ("relation", relations)):
            array = np.full(len(tokens), -1)
            array[np.cumsum([0, *sizes[:-1]])] = values
            features[name] = (array,)
        yield Example(number, (tokens,), features)


@pytest.fixture(scope="module")
def context(tmp_path_factory, vocabulary):
    """Two languages; one sentence of each test is longer than two rows."""
    cache = Cache(str(tmp_path_factory.mktemp("cache")), ["none"], on_missing="stop")
    ids = np.flatnonzero(~vocabulary.special_mask())
    made = {"modules": {}, "source": "", "preprocessors": [], "files": {}}
    made["vocabulary"] = vocabulary.fingerprint
    counts = {"train": [3, 5, 2, 6, 4, 7, 1, 5], "test": [4, 40, 3, 1, LONG_WORD]}
    layouts = [Layout(n, too_long=policy) for n in (LENGTH, LONG) for policy in (None, "cut")]
    for split, sizes in counts.items():
        for seed, language in enumerate(LANGUAGES):
            for layout in layouts:
                write_split(
                    *(cache, f"t_{language}", split, layout),
                    examples(np.random.default_rng(seed), ids, sizes),
                    languages=(language,),
                    vocabulary=vocabulary,
                    fingerprint=made | {"filter": cache.filter.settings(split, False)},
                    features=stream().features,
                )
        tasks = [f"t_{language}" for language in LANGUAGES]
        rates, number = dict.fromkeys(tasks, 1.0), dict.fromkeys(tasks, len(sizes))
        write_mixture(cache, split, Mixture("trees", {}, rates, number))
    longer = dataclasses.replace(EVALUATION, length=LONG)
    specs = [
        spec
        for evaluation in (EVALUATION, longer)
        for split in counts
        for spec in dataclasses.replace(evaluation, split=split).every_dataset
    ]
    caches = prepare([*dict.fromkeys(specs), *OBJECTIVE.rows.datasets], cache, vocabulary)
    partitioning = make_partitioning(MeshConfig(), jax.devices()[:1])
    return Context(caches, vocabulary, partitioning)


@pytest.fixture(scope="module")
def subject(context, vocabulary):
    """A model that knows the training trees by heart."""
    rows = open_stream(OBJECTIVE.rows, context.caches, 0, vocabulary)
    config = EncoderConfig(
        vocab_size=vocabulary.size,
        num_layers=1,
        width=32,
        num_heads=2,
        mlp_width=32,
        max_positions=LONG,
        init_std=0.2,
    )
    heads = OBJECTIVE.heads(rows)
    graph, params = nnx.split(nnx.jit(lambda: build_model(config, heads, nnx.Rngs(0)))())
    (spec,) = OBJECTIVE.rows.datasets
    count = sum(manifest.rows for manifest in context.caches[spec].manifests.values())
    batch = rows.rows(range(2 * count))  # of both languages by turns: all rows of both
    buffers = OBJECTIVE.buffers(vocabulary, rows, LANGUAGES)
    inputs = Inputs(jax.random.key(0), rows, jax.device_put(buffers))
    optimizer = optax.adam(1e-2)

    @jax.jit
    def learn(params):
        def total(params):
            result = OBJECTIVE.loss(nnx.merge(graph, params), batch, inputs)
            return result.total / result.sums["count"]

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(total)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), None, 100)[0][0]

    params = nnx.to_pure_dict(learn(params))
    languages = {"parsing": LANGUAGES[:1]}
    objectives = {"parsing": OBJECTIVE.description()}
    description = Description(config, heads, vocabulary.fingerprint, languages, objectives, step=9)
    return Subject(graph, params, description, "learnt")


def values(results, model=None):
    return {(r.languages[0], r.metric): r.value for r in results if r.model == model}


def test_trees_that_were_learnt_are_found_again(subject, context):
    """In the order of the examples, though training rows are shuffled."""
    evaluation = dataclasses.replace(EVALUATION, split="train")
    results = evaluation(subject, context)
    found = values(results)
    for language in (*LANGUAGES, "macro"):
        assert 0.9 < found[language, "las"] <= found[language, "uas"] <= 1
        assert found[language, "cut"] == 0
    (sign,) = evaluation.signatures(subject.description, context)
    assert {r.signature for r in results} == {sign}
    said = dict(context.predictions.values())["trees/train"]["aa"].predictions
    (spec,) = evaluation.datasets
    known = sorted(context.examples(spec)["t_aa"], key=lambda e: e.number)
    assert [len(sentence["heads"]) for sentence in said] == [3, 5, 2, 6, 4, 7, 1, 5]
    right = [
        sentence["heads"] == e.features["head"][0][e.features["head"][0] >= 0].tolist()
        and sentence["relations"][sentence["heads"].index(0)] == "root"
        for sentence, e in zip(said, known, strict=True)
    ]
    assert sum(right) >= 7
    assert "las" in evaluation.table(results)


def test_rows_do_not_matter_but_where_they_cut(subject, context):
    """A sentence of 40 words is cut into parts of 30 tokens; in longer rows these are fewer."""
    longer = dataclasses.replace(EVALUATION, length=LONG)
    said = {}
    for evaluation in (EVALUATION, longer):
        results = values(evaluation(subject, context))
        _, scored = [*context.predictions.values()][-1]
        said[evaluation.length] = scored["bb"].predictions
        parts = results["bb", "cut"] * 57
        assert parts == pytest.approx(round(parts), abs=1e-9)
        assert (0 if evaluation is longer else 9) <= parts < 30
    short, long = said[LENGTH], said[LONG]
    same = [s == t for s, t in zip(short, long, strict=True)]
    assert same[:4] == [True, False, True, True] and len(short[4]["heads"]) == LONG_WORD
    heads = short[1]["heads"]
    assert len(heads) == 40 and heads.count(0) == 1 and short[1]["relations"].count("root") == 1
    for word in range(1, 41):
        for _ in range(40):
            word = heads[word - 1] if word else 0
        assert word == 0


def test_controls_need_no_model(subject, context):
    baselines = EVALUATION.baselines(subject.description, context)
    assert [baseline.name for baseline in baselines] == ["neighbour", "lexicon"]
    for baseline in baselines:
        results = baseline.measure()
        assert [r.signature for r in results] == baseline.signatures * len(results)
        found = values(results, baseline.name)
        assert 0 < found["aa", "las"] <= found["aa", "uas"] < 0.7
    on_train = dataclasses.replace(EVALUATION, split="train")
    neighbour, lexicon = (b.measure() for b in on_train.baselines(subject.description, context))
    assert values(lexicon, "lexicon")["aa", "las"] > values(neighbour, "neighbour")["aa", "las"]


def test_scores_that_are_no_numbers_are_an_error(subject, context):
    params = jax.tree.map(lambda x: x * np.nan, subject.params)
    with pytest.raises(NotFiniteError, match="trees/test, step 9: scores of heads are NaN"):
        EVALUATION(dataclasses.replace(subject, params=params, key="nan"), context)


def test_another_head_is_refused(subject, context):
    settings = subject.description.heads["parsing"]
    for labels, message in (
        (
            LABELS[::-1],
            "has the relations root, dep, .*but the head 'parsing' predicts punct, nsubj",
        ),
        (None, "needs a head of this name and of kind 'biaffine'"),
    ):
        heads = {"parsing": settings | {"labels": list(labels)}} if labels else {"mlm": {}}
        description = dataclasses.replace(subject.description, heads=heads)
        with pytest.raises(UserError, match=message):
            EVALUATION.signatures(description, context)
