"""The accuracy of choices: what is counted of packed rows, and the baseline of equal pieces."""

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
from xl_flax.data.manifest import Cache
from xl_flax.data.prepare import CachedMixture, Caches
from xl_flax.data.vocabulary import SpecialIds
from xl_flax.errors import UserError
from xl_flax.evaluation.base import Subject
from xl_flax.evaluation.choice import ChoiceAccuracy, overlap
from xl_flax.evaluation.context import Context
from xl_flax.models.config import EncoderConfig
from xl_flax.parallel.mesh import MeshConfig, make_partitioning

SPECIAL = SpecialIds(pad=1, unk=3, cls=0, sep=2, mask=49)
LABELS = ("first", "second")
CONFIG = EncoderConfig(
    vocab_size=50, num_layers=1, width=16, num_heads=2, mlp_width=32, max_positions=48, init_std=0.3
)
HEAD = {"kind": "classification", "labels": ["score"], "pooling": "cls", "dense": "tanh"}
LENGTH = 48  # of rows, which hold several examples


def draw(seed, count=12):
    rng = np.random.default_rng(seed)
    return [
        Example(
            number,
            tuple(rng.integers(4, 49, rng.integers(1, 5)) for _ in range(3)),
            {"label": int(rng.integers(0, 2))},
        )
        for number in range(count)
    ]


EXAMPLES = {"t_a": draw(0), "t_b": draw(1)}


@pytest.fixture
def evaluate(tmp_path):
    """The evaluation and its context, with the labels of the task and a head."""

    def make(labels=LABELS, **settings):
        evaluation = ChoiceAccuracy("t", LENGTH, **settings)
        vocabulary = types.SimpleNamespace(size=50, special=SPECIAL, fingerprint="f")
        cache, mixtures = Cache(str(tmp_path / "-".join(labels)), ["nothing"]), {}
        for spec in evaluation.datasets + evaluation.control_datasets:
            manifests = {
                task: write_split(
                    *(cache, task, spec.split, spec.layout, examples),
                    languages=[task[-1]] * 3, vocabulary=vocabulary, fingerprint={},
                    features={"label": FeatureSpec("example", labels=labels)},
                )
                for task, examples in EXAMPLES.items()
            }  # fmt: skip
            folders = {task: cache.folder(task, spec.split, spec.layout) for task in EXAMPLES}
            mixtures[spec] = CachedMixture(None, manifests, folders)
        devices = make_partitioning(MeshConfig(), jax.devices()[:1])
        return evaluation, Context(Caches(mixtures), vocabulary, devices)

    return make


@pytest.fixture(scope="module")
def model(small_model):
    return small_model(CONFIG, {"choice": HEAD})


@pytest.fixture(scope="module")
def subject(model):
    graph, state = nnx.split(model)
    description = Description(CONFIG, {"choice": HEAD}, "f", {"choice": ("a",)}, {})
    return Subject.live(graph, nnx.to_pure_dict(state), description, "run", 1)


@nnx.jit
def score(model, tokens, segments):
    return model.heads["choice"](model.encoder(tokens, segment_ids=segments), segments)[0, 0, 0]


def chosen(model, example, double):
    """Of each choice in a row of its own."""
    scores = []
    for choice in example.texts[1:]:
        between = [SPECIAL.sep] * (2 if double else 1)
        tokens = [SPECIAL.cls, *example.texts[0], *between, *choice, SPECIAL.sep]
        pad = LENGTH - len(tokens)
        rows = [*tokens, *[SPECIAL.pad] * pad], [1] * len(tokens) + [0] * pad
        scores.append(float(score(model, *(jnp.array([row]) for row in rows))))
    return int(np.argmax(scores))


@pytest.mark.parametrize("double", [None, True])
def test_what_is_right_is_counted(evaluate, subject, model, double):
    evaluation, context = evaluate(double_separator=double)
    results = {(r.languages, r.metric): r for r in evaluation(subject, context)}
    ((_, predictions),) = context.predictions.values()
    shares = []
    for task, examples in EXAMPLES.items():
        expected = [chosen(model, example, double) for example in examples]
        assert len(set(expected)) == 2  # both are chosen
        assert predictions[task[-1]].predictions == [LABELS[i] for i in expected]
        right = [i == e.features["label"] for i, e in zip(expected, examples, strict=True)]
        shares.append(np.mean(right))
        assert results[(task[-1],), "accuracy"].value == pytest.approx(shares[-1])
    assert results[("macro",), "accuracy"].value == pytest.approx(np.mean(shares))
    assert results[("others",), "accuracy_gap"].value == pytest.approx(shares[0] - shares[1])


def test_baselines_choose_without_a_model(evaluate, subject):
    evaluation, context = evaluate(train="t")
    baselines = evaluation.baselines(subject.description, context)
    assert [baseline.name for baseline in baselines] == ["majority", "overlap"]
    every = [e for own in EXAMPLES.values() for e in own]
    for baseline in baselines:
        (result,) = [r for r in baseline.measure() if r.languages == ("b",)]
        labels = np.array([e.features["label"] for e in EXAMPLES["t_b"]])
        if baseline.name == "majority":
            guess = np.bincount([e.features["label"] for e in every]).argmax()
        else:
            guess = overlap(every, None)(EXAMPLES["t_b"])
        assert result.value == pytest.approx((labels == guess).mean())


def test_rare_pieces_in_common_decide():
    def example(*texts):
        return Example(0, tuple(map(np.array, texts)))

    train = [example([7, 8], [7, 5], [7, 9])] * 3  # 7 is in all texts, 8 in a third of them
    guess = overlap(train, None)
    found = guess(
        [
            example([7, 8], [7, 30], [8, 31]),  # the rarer one
            example([7, 8], [7, 8], [8, 31]),
            example([40], [41], [40, 41, 42]),  # which training text lacks
            example([7], [8], [9]),  # nothing in common: the first
        ]
    )
    assert found.tolist() == [1, 0, 1, 0]
    idf = {7: 1.0, 8: math.log(10 / 4) + 1}
    assert idf[8] > idf[7]


def test_heads_and_data_that_do_not_suit_are_named(evaluate, subject):
    evaluation, context = evaluate()
    three = {**HEAD, "labels": ["x", "y"]}
    description = dataclasses.replace(subject.description, heads={"choice": three})
    with pytest.raises(UserError, match="head 'choice' gives 2 scores, and must give one"):
        evaluation.signatures(description, context)
    evaluation, context = evaluate(labels=("x", "y", "z"))
    with pytest.raises(UserError, match=r"there are 3 texts and the features label \(3 labels\)"):
        evaluation.signatures(subject.description, context)
