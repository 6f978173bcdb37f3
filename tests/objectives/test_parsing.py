"""Dependency parsing: scores as in the paper, sentences apart in packed rows, and what learns."""

import contextlib
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tree_rows import LABELS, draw_sentence, pack, stream

from xl_flax.data.features import FeatureSpec
from xl_flax.data.stream import Rows
from xl_flax.errors import UserError
from xl_flax.models.biaffine import BiaffineHead
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.models.parsing import parse_rows
from xl_flax.objectives.base import Inputs
from xl_flax.objectives.parsing import DependencyParsing
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.mesh import MeshConfig, make_partitioning

LENGTH, ROWS, KEY = 32, 6, jax.random.key(5)
NOTHING = dict.fromkeys(("word", "head", "relation", "example", "piece"), -1)  # of padding
STREAM = stream()
CONFIG = EncoderConfig(
    vocab_size=96,
    num_layers=1,
    width=16,
    num_heads=2,
    mlp_width=32,
    max_positions=LENGTH,
    init_std=0.3,
)


def objective(**settings):
    settings = {"arc_width": 12, "relation_width": 8} | settings
    return DependencyParsing(rows=Rows("trees", LENGTH), batch_size=4, **settings)


def build():
    return build_model(CONFIG, objective().heads(STREAM), nnx.Rngs(0))


@pytest.fixture(scope="module")
def model():
    return nnx.split(nnx.jit(build)())


@pytest.fixture(scope="module")
def sentences():
    rng = np.random.default_rng(1)
    return [draw_sentence(rng, words) for words in (4, 1, 3, 6, 2, 5)]


@pytest.fixture(scope="module")
def packed(sentences):
    return pack([sentences[:3], sentences[3:5], sentences[5:]], LENGTH)


def inputs(train=False):
    buffers = objective().buffers(None, STREAM, STREAM.languages)
    return Inputs(KEY, STREAM, jax.device_put(buffers), train=train)


@pytest.fixture(scope="module")
def loss(model):
    """loss(batch, train) -> (sums with the loss, gradients), of six rows, to compile once."""
    graph, params = model

    @jax.jit
    def evaluating(params, batch):
        return jax.value_and_grad(total, has_aux=True)(params, batch, False)

    @jax.jit
    def training(params, batch):
        return jax.value_and_grad(total, has_aux=True)(params, batch, True)

    def total(params, batch, train):
        result = objective().loss(nnx.merge(graph, params), batch, inputs(train))
        return result.total, result.sums | {"loss": result.total}

    def run(batch, train=False):
        more = ROWS - len(batch["tokens"])
        empty = {k: np.full((more, *v.shape[1:]), NOTHING.get(k, 0)) for k, v in batch.items()}
        batch = {k: np.concatenate([v, empty[k]]).astype(np.int32) for k, v in batch.items()}
        (_, sums), gradients = (training if train else evaluating)(params, batch)
        return sums, nnx.to_pure_dict(gradients)

    return run


@pytest.fixture(scope="module")
def arcs_and_states(model):
    """(words, parse, the encoder's states) of a batch."""

    @jax.jit
    def run(params, batch):
        module, rows = nnx.merge(model[0], params), jnp.arange(2)
        inputs = {name: batch[name] for name in ("segment_ids", "positions")}
        hidden = module.encoder(batch["tokens"], **inputs)
        return *parse_rows(module, "parsing", batch, rows), hidden

    return run


def test_a_packed_row_says_what_single_sentences_say(loss, sentences, packed):
    sums, gradients = loss(packed)
    assert sums["count"] == sum(len(heads) for _, heads, _ in sentences) == 21
    assert 0 <= sums["labelled"] <= sums["attached"] < 21
    assert sums["language_count"].tolist() == [13, 8]
    alone = pack([[sentence] for sentence in sentences], LENGTH)
    alone["languages"][:, 0] = [0, 0, 0, 1, 1, 0]
    alone_sums, alone_gradients = loss(alone)
    for name in sums:
        np.testing.assert_allclose(sums[name], alone_sums[name], rtol=1e-5, atol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (gradients, alone_gradients)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_scores_are_those_of_the_paper(model, arcs_and_states, sentences, packed):
    """Every arc and relation of the third sentence of a row, computed one by one."""
    module = nnx.merge(*model)
    for bias in ("dependent_bias", "head_bias", "arc_head", "relation_bias"):
        kernel = getattr(module.heads["parsing"], bias)
        kernel[...] = jnp.linspace(-0.5, 0.5, kernel.shape[0])
    head = module.heads["parsing"]
    words, parse, hidden = arcs_and_states(nnx.state(module), packed)
    relations = jax.jit(head.relations)
    own = {name: np.asarray(value) for name, value in nnx.to_pure_dict(nnx.state(head)).items()}
    a, h = 12, np.asarray(hidden[0])
    dependent = np.maximum(h @ own["dependent"] + own["dependent_bias"], 0)
    above = np.maximum(h @ own["head"] + own["head_bias"], 0)
    columns = np.flatnonzero((packed["segment_ids"][0] == 3) & (packed["head"][0] >= 0))
    root = np.flatnonzero(packed["segment_ids"][0] == 3)[0]
    first = len(sentences[0][1]) + len(sentences[1][1])  # words in front of the third sentence
    assert len(columns) == 3 and words.filled_BxW[0].sum() == first + 3
    for i, column in enumerate(columns):
        for number, other in [(0, root), *enumerate(columns, first + 1)]:
            if other == column:
                continue
            d, g = dependent[column], above[other]
            score = g[:a] @ own["arc"].T @ d[:a] + g[:a] @ own["arc_head"]
            np.testing.assert_allclose(parse.arcs_BxWxH[0, first + i, number], score, rtol=1e-4)
            heads = np.full(words.filled_BxW.shape, number)
            scores = relations(parse, heads)[0, first + i]
            expected = [
                g[a:] @ own["relation"][:, c] @ d[a:]
                + d[a:] @ own["relation_dependent"][:, c]
                + g[a:] @ own["relation_head"][:, c]
                + own["relation_bias"][c]
                for c in range(len(LABELS))
            ]
            np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)
    arcs = np.asarray(parse.arcs_BxWxH[0, first : first + 3])
    allowed = {0, *range(first + 1, first + 4)}
    for i in range(3):
        assert set(np.flatnonzero(arcs[i] > -1e6)) == allowed - {first + 1 + i}


def test_everything_learns_and_nothing_is_infinite(loss, packed):
    _, gradients = loss(packed)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0 or "qkv_bias" in str(path), path


def test_dropout_belongs_to_a_row(loss, packed):
    sums, _ = loss(packed, train=True)
    parts = [
        loss({name: array[[r]] for name, array in packed.items()}, train=True)[0] for r in range(3)
    ]
    assert abs(sums["loss"] - loss(packed)[0]["loss"]) > 1e-3
    np.testing.assert_allclose(sums["loss"], sum(part["loss"] for part in parts), rtol=1e-5)


def test_same_on_eight_devices(model, sentences):
    """On a mesh with all three axes, with dropout."""
    batch = pack([[sentence] for sentence in [*sentences, *sentences[:2]]], LENGTH)
    found = []
    for ici in (None, (2, 2, 2)):
        partitioning = make_partitioning(MeshConfig(ici=ici)) if ici else None
        params = nnx.to_pure_dict(model[1])
        if ici:
            shardings = params_lib.abstract(build).shardings(partitioning)
            params = jax.device_put(params, shardings)
            batch = jax.device_put(batch, partitioning.sharding(("batch",)))

        def total(params, batch, partitioning=partitioning):
            with partitioning.activate() if partitioning else contextlib.nullcontext():
                result = objective().loss(nnx.merge(model[0], params), batch, inputs(train=True))
            return result.total, result.sums

        result = jax.jit(jax.value_and_grad(total, has_aux=True))(params, batch)
        found.append(jax.tree.map(np.asarray, result))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * max(1, np.abs(b).max()))


def test_a_row_of_padding_counts_nothing(loss, packed):
    sums, gradients = loss({name: array[:0] for name, array in packed.items()})
    assert sums["loss"] == sums["count"] == 0
    assert all(not np.any(x) for x in jax.tree.leaves(gradients))


def test_a_full_row_has_a_place_for_each_word(loss):
    rng = np.random.default_rng(3)
    sentence = draw_sentence(rng, LENGTH - 2, most=1)
    sums, _ = loss(pack([[sentence]], LENGTH))
    assert sums["count"] == LENGTH - 2 and np.isfinite(sums["loss"])


@pytest.mark.parametrize(
    ("features", "texts"),
    [
        ({"label": FeatureSpec("token", labels=("X",))}, 1),
        ({"head": FeatureSpec("token"), "relation": FeatureSpec("token")}, 1),
        (STREAM.features, 2),
    ],
)
def test_examples_without_trees_are_refused(features, texts):
    other = types.SimpleNamespace(features=features, num_texts=texts, tasks=("t",))
    with pytest.raises(UserError, match=r"'parsing' reads sentences .*'relation'.*add_tree_task"):
        objective().check(other)
    objective().check(STREAM)


def test_parts_of_sentences_are_refused():
    for policy in ("cut", "truncate", "window"):
        rows = Rows("trees", LENGTH, too_long=policy)
        with pytest.raises(UserError, match=f"too_long = '{policy}' leaves parts of sentences"):
            dataclasses.replace(objective(), rows=rows)


@pytest.mark.parametrize(
    "settings", [{"labels": "root"}, {"arc_width": 0}, {"relation_width": -1}, {"dropout": 1.0}]
)
def test_settings_that_make_no_head_are_named(settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))} = .* of a biaffine head"):
        BiaffineHead(CONFIG, nnx.Rngs(0), **({"labels": LABELS} | settings))


def test_the_cost_of_the_head_counts():
    parts = objective().flops(CONFIG, STREAM, False)
    assert parts["head"] == 6 * 2 * 16 * 20 and parts["relations"] == 6 * 4 * 64
    assert parts["arcs"] == 6 * (144 + 12 * 32)
