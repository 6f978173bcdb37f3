"""Word alignment of a small random model equals what loops over words find."""

import collections
import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xl_flax.checkpoints.description import Description
from xl_flax.data.build import write_split
from xl_flax.data.features import Example, FeatureSpec
from xl_flax.data.links import write_links
from xl_flax.data.manifest import Cache
from xl_flax.data.prepare import CachedMixture, Caches
from xl_flax.data.vocabulary import SpecialIds
from xl_flax.errors import UserError
from xl_flax.evaluation import gold_links
from xl_flax.evaluation.alignment import WordAlignment
from xl_flax.evaluation.base import NotFiniteError, Subject
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.links import METHODS
from xl_flax.evaluation.results import MACRO
from xl_flax.models.config import EncoderConfig
from xl_flax.parallel.mesh import MeshConfig, make_partitioning

SPECIAL = SpecialIds(pad=1, unk=3, cls=0, sep=2, mask=49)
FEATURES = {"word": FeatureSpec("token"), "links": FeatureSpec("text", "string")}
CONFIG = EncoderConfig(
    vocab_size=50, num_layers=2, width=16, num_heads=2, mlp_width=32, max_positions=32
)
TASKS = {"first": ("a", "b"), "second": ("a", "c")}
LENGTH = 16  # of which a sentence has 14: some are cut


def draw_examples(seed, count=9):
    """Pairs of word lists with random links; half of the pieces are the same on both sides."""
    rng = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        sizes = rng.integers(1, 8, 2)
        word = tuple(np.repeat(np.arange(n), rng.integers(1, 4, n)) for n in sizes)
        texts = tuple(rng.integers(3, 20, len(w)) for w in word)
        gold = [(i, j) for i in range(sizes[0]) for j in range(sizes[1]) if rng.random() < 0.3]
        links = write_links({(0, 0), *gold[::2]}, gold)
        examples.append(Example(number, texts, {"word": word, "links": links}))
    return examples


def cached(directory, specs, tasks, examples, features=FEATURES):
    """The caches of mixtures that all have these tasks."""
    vocabulary = types.SimpleNamespace(size=50, special=SPECIAL, fingerprint="f" * 16)
    cache, mixtures = Cache(str(directory), ["nothing"]), {}
    for spec in specs:
        manifests = {
            task: write_split(
                *(cache, task, spec.split, spec.layout, examples[task]),
                languages=languages, vocabulary=vocabulary, fingerprint={}, features=features,
            )
            for task, languages in tasks.items()
        }  # fmt: skip
        folders = {task: cache.folder(task, spec.split, spec.layout) for task in tasks}
        mixtures[spec] = CachedMixture(None, manifests, folders)
    devices = make_partitioning(MeshConfig(), jax.devices()[:1])
    return Context(Caches(mixtures), vocabulary, devices)


@pytest.fixture(scope="module")
def examples():
    return {task: draw_examples(seed) for seed, task in enumerate(TASKS)}


@pytest.fixture(scope="module")
def context(tmp_path_factory, examples):
    evaluation = WordAlignment(["m", "n"], length=LENGTH)
    return cached(tmp_path_factory.mktemp("cache"), evaluation.datasets, TASKS, examples)


@pytest.fixture(scope="module")
def model(small_model):
    return small_model(CONFIG, {})


@pytest.fixture(scope="module")
def subject(model):
    graph, state = nnx.split(model)
    description = Description(CONFIG, {"mlm": {}}, "f", {"mlm": ("a", "b", "c")}, {})
    return Subject.live(graph, nnx.to_pure_dict(state), description, "run", 1)


@pytest.fixture(scope="module")
def encode(model):
    """encode(tokens) -> states of all layers without special tokens, of a sentence in a row."""
    layers = tuple(range(CONFIG.num_layers + 1))

    @nnx.jit
    def every_layer(model, tokens, segments):
        return jnp.stack(model.encoder(tokens, segment_ids=segments, layers=layers))

    def one(tokens):
        framed = [SPECIAL.cls, *tokens[: LENGTH - 2], SPECIAL.sep]
        row = np.array([framed + [SPECIAL.pad] * (LENGTH - len(framed))])
        segments = (np.arange(LENGTH)[None] < len(framed)).astype(np.int32)
        return np.asarray(every_layer(model, row, segments))[:, 0, 1 : len(framed) - 1]

    return one


def by_hand(encode, example, layer, words):
    """The links by argmax, as a set of pairs of words."""
    sides = []
    for tokens, word in zip(example.texts, example.features["word"], strict=True):
        states = encode(tokens)[layer]
        units = collections.defaultdict(list)  # of a word, or of a piece
        for piece, state in enumerate(states):
            units[(int(word[piece]), piece if words == "any" else 0)].append(state)
        pick = (lambda own: own[0]) if words == "first" else (lambda own: np.mean(own, axis=0))
        sides.append({unit: pick(own) for unit, own in units.items()})
    cosine = lambda u, v: float(u @ v) / math.sqrt(float(u @ u) * float(v @ v))  # noqa: E731
    x, y = sides
    forward = {u: max(y, key=lambda v, u=u: cosine(x[u], y[v])) for u in x}
    backward = {v: max(x, key=lambda u, v=v: cosine(x[u], y[v])) for v in y}
    return {(u[0], v[0]) for u, v in forward.items() if backward[v] == u}


def gold_of(example):
    pairs = lambda mark: {  # noqa: E731
        tuple(map(int, link.split(mark)))
        for link in example.features["links"].split()
        if mark in link
    }
    return pairs("-"), pairs("-") | pairs("p")


@pytest.mark.parametrize("words", ["mean", "first", "any"])
def test_scores_are_those_of_each_sentence_alone(context, subject, examples, encode, words):
    evaluation = WordAlignment("m", words=words, methods=["argmax"], length=LENGTH)
    results = evaluation(subject, context)
    assert {r.signature for r in results} == {*evaluation.signatures(subject.description, context)}
    found = {(r.layer, r.languages, r.metric): r for r in results}
    assert len(found) == len(results) == 3 * 3 * 4
    for layer in range(3):
        errors = []
        for task, languages in TASKS.items():
            sure = possible = links = gold = 0
            for example in examples[task]:
                own = by_hand(encode, example, layer, words)
                s, p = gold_of(example)
                sure, possible = sure + len(own & s), possible + len(own & p)
                links, gold = links + len(own), gold + len(s)
            of = {m: found[layer, languages, m] for m in ("aer", "precision", "recall")}
            assert of["precision"].value == pytest.approx(possible / links)
            assert of["recall"].value == pytest.approx(sure / gold)
            assert of["aer"].value == pytest.approx(1 - (sure + possible) / (links + gold))
            assert [r.n for r in of.values()] == [links + gold, links, gold]
            errors.append(of["aer"].value)
        assert found[layer, (MACRO,), "aer"].value == pytest.approx(np.mean(errors))
    assert any(len(t) > LENGTH - 2 for own in examples.values() for e in own for t in e.texts)


def test_pairs_have_an_interval_of_sentences_drawn_again(context, subject):
    evaluation = WordAlignment("m", layers=[1], length=LENGTH)
    results = evaluation(subject, context)
    pairs = [r for r in results if len(r.languages) == 2]
    assert len(pairs) == 2 * 3 * 4 and all(r.interval for r in pairs)
    for r in pairs:
        low, high = r.interval
        assert 0 <= low < r.value < high <= 1 or r.value == low == high
        assert "|interval:bootstrap1000|" in r.signature
    widths = [r.interval[1] - r.interval[0] for r in pairs if r.metric == "aer"]
    assert min(widths) > 0.03  # of nine sentences


def test_the_share_of_unknown_pieces_stands_beside(context, subject, examples):
    results = WordAlignment("m", methods=["match"], layers=[-1], length=LENGTH)(subject, context)
    shares = {}
    for task, (_, other) in TASKS.items():
        shares[other] = np.mean(np.concatenate([e.texts[1] for e in examples[task]]) == 3)
    (pair,) = [r for r in results if r.languages == ("a", "c") and r.metric == "aer"]
    assert pair.unknown[1] == pytest.approx(shares["c"]) and pair.layer == 2


def test_tables_show_controls_and_fit(context, subject):
    evaluation = WordAlignment(["m", "n"], layers=[0, 1], length=LENGTH)
    results = evaluation(subject, context)
    untrained = evaluation.untrained(subject.description)
    assert untrained.heads == {}
    for baseline in evaluation.baselines(subject.description, context):
        measured = baseline.measure()
        assert {r.model for r in measured} == {baseline.name}
        assert {r.signature for r in measured} == {*baseline.signatures}
        results += measured
    results += [  # as controls.measure makes them
        dataclasses.replace(r, model="untrained", seeds=(0.2, 0.3), value=0.25, signature="u")
        for r in results
        if r.model is None
    ]
    table = evaluation.table(results)
    lines = [line for line in table.splitlines() if "|" not in line]
    assert max(map(len, lines)) <= 80
    for what in (
        "2 mixtures, by argmax",
        "on this very test",
        "m/test",
        "n/test",
        "a-c",
        "itermax",
    ):
        assert what in table
    assert {"pieces", "diagonal", "untrained"} <= set(table.split())
    details = evaluation.details(results)
    assert "by itermax" in details and "by match" in details and "by argmax" not in details


def test_a_layer_is_chosen_on_other_text(context, subject):
    evaluation = WordAlignment("m", choose_on="n", methods=["argmax"], length=LENGTH)
    test, choice = evaluation.parts
    assert test is evaluation and (choice.mixture, choice.split) == ("n", "validation")
    results = evaluation(subject, context)
    best = {"aer": 0.0, "f1": 1.0}
    chosen = [
        dataclasses.replace(r, data="n/validation", value=best.get(r.metric, 0) * (r.layer == 1))
        for r in results
    ]
    table = evaluation.table(results + chosen)
    assert "* best on n/validation, shown below; choice: F1 there" in table
    assert "m/test, layer 1, by argmax" in table
    with pytest.raises(UserError, match="n/validation is what is tested"):
        WordAlignment(["m", "n"], split="validation", choose_on="n")
    WordAlignment("m", choose_on="m")  # the validation split is other text


def test_links_without_a_model_by_hand(context):
    example = Example(
        0,
        (np.array([7, 8, 9, 7]), np.array([7, 5, 7, 8, 6])),
        {"word": (np.array([0, 1, 1, 2]), np.array([0, 1, 2, 3, 3])), "links": ""},
    )
    x, y = gold_links.bags(example)
    assert [w.tolist() for w in x] == [[7], [8, 9], [7]]
    idf = gold_links.idf([x, y], 50)
    # Piece 7 is in four of seven words, 5 and 9 in one, 40 in none.
    assert idf[[7, 9, 40]] == pytest.approx([math.log(c) + 1 for c in (8 / 5, 8 / 2, 8)])
    links = gold_links.by_pieces(x, y, idf, METHODS["argmax"])
    # Repeated words are linked in order; word 1 of the translation has nothing in common.
    assert np.argwhere(links).tolist() == [[0, 0], [1, 3], [2, 2]]
    matched = gold_links.by_pieces(x, y, idf, METHODS["match"])
    assert np.argwhere(matched).tolist() == [[0, 0], [1, 3], [2, 2]]


def test_what_cannot_be_evaluated_is_named(tmp_path, subject, context, examples):
    evaluation = WordAlignment("m", length=LENGTH)
    with pytest.raises(UserError, match="WordAlignment.layers: there is no layer 3"):
        dataclasses.replace(evaluation, layers=[3])(subject, context)
    with pytest.raises(UserError, match="WordAlignment.methods = .'nearest'.*argmax, itermax"):
        WordAlignment("m", methods=["nearest"])

    def context_of(name, tasks=TASKS, **changed):
        return cached(tmp_path / name, evaluation.datasets, tasks, changed or examples)

    twice = context_of("twice", {"first": ("a", "b"), "second": ("a", "b")})
    with pytest.raises(UserError, match="'m', split 'test' has several tasks of a-b: give the"):
        evaluation(subject, twice)
    wrong = examples["first"][0]._replace(
        features={**examples["first"][0].features, "links": "9-0"}
    )
    beyond = context_of("beyond", {"first": ("a", "b")}, first=[wrong])
    with pytest.raises(UserError, match="example 0 of linked words: the link 9-0 names a word"):
        evaluation(subject, beyond)
    none = [e._replace(features={**e.features, "links": "0p0"}) for e in examples["first"]]
    with pytest.raises(UserError, match="task 'first' has no sure links"):
        evaluation(subject, context_of("none", {"first": ("a", "b")}, first=none))
    plain = {task: [Example(e.number, e.texts) for e in own] for task, own in examples.items()}
    lacking = cached(tmp_path / "plain", evaluation.datasets, TASKS, plain, {})
    with pytest.raises(UserError, match="'first' has not the features 'word' and 'links'"):
        evaluation(subject, lacking)
    broken = dataclasses.replace(
        subject, params=jax.tree.map(lambda x: x * np.nan, subject.params), key="broken"
    )
    with pytest.raises(NotFiniteError, match="first, step 1: states are NaN or infinite"):
        evaluation(broken, context)
