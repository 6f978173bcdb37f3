import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from xl_flax.data.vocabulary import SpecialIds
from xl_flax.evaluation import ahead
from xl_flax.evaluation.embed import Encoding, embed, make_pool, plan_rows, sentences_per_row
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.parallel.mesh import MeshConfig, make_partitioning

SPECIAL = SpecialIds(pad=1, unk=3, cls=0, sep=2, mask=49)
SIZES = [3, 9, 17, 130, 3, 0, 9, 17, 3, 70, 1, 50, 0, 1, 1]  # of the sentences; one is cut
LENGTH = 96
HEAD = {"kind": "sentence", "pooling": "mean", "layer": 1, "projection": "linear", "width": 5}


@pytest.fixture(scope="module")
def model(small_model):
    config = EncoderConfig(
        vocab_size=50, num_layers=2, width=16, num_heads=2, mlp_width=32, max_positions=LENGTH,
        attention_dropout=0.5,
    )  # fmt: skip
    return small_model(config, {"translation": HEAD})


@pytest.fixture(scope="module")
def sentences():
    rng = np.random.default_rng(0)
    return [rng.integers(4, 49, size) for size in SIZES]


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(ahead, "CPU_TOKENS", 128)  # several of each shape


def run(model, sentences, encoding, devices=1):
    partitioning = make_partitioning(MeshConfig(), jax.devices()[:devices])
    graph, state = nnx.split(model)
    pool = make_pool(graph, encoding, partitioning)
    return embed(pool, nnx.to_pure_dict(state), sentences, SPECIAL, LENGTH, partitioning)


@nnx.jit
def every_layer(model, tokens):
    return jnp.stack(model.encoder(tokens, layers=(0, 1, 2)))


def directly(model, sentence, pooling):
    """One sentence by itself, without padding: every layer's mean, or [CLS]."""
    sentence = sentence[: LENGTH - 2]
    tokens = np.array([[SPECIAL.cls, *sentence, SPECIAL.sep]])
    hidden = np.asarray(every_layer(model, tokens))[:, 0]
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "mean_all":
        return hidden.mean(axis=1)
    return hidden[:, 1:-1].mean(axis=1) if len(sentence) else np.zeros_like(hidden[:, 0])


@pytest.mark.parametrize("pooling", ["mean", "mean_all", "cls"])
@pytest.mark.parametrize("devices", [1, 8])
def test_packed_rows_give_what_each_sentence_gives_by_itself(
    model, sentences, devices, pooling, small_batches
):
    vectors = run(model, sentences, Encoding((0, 1, 2), pooling), devices)
    expected = np.stack([directly(model, s, pooling) for s in sentences], axis=1)
    np.testing.assert_allclose(vectors, expected, atol=3e-6)


def test_a_trained_head_projects_what_its_layer_pools(model, sentences):
    (vectors,) = run(model, sentences, Encoding((1,), "mean", "translation"))
    pooled = np.stack([directly(model, s, "mean")[1] for s in sentences])
    expected = pooled @ np.asarray(model.heads["translation"].out[...])
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-12)
    assert vectors.shape == (len(sentences), 5)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_chosen_layers_come_in_the_order_asked_for(model, sentences):
    everything = run(model, sentences[:1], Encoding((0, 1, 2), "mean"))
    for layers in [(2,), (0, 2), (1, 0)]:
        vectors = run(model, sentences[:1], Encoding(layers, "mean"))
        np.testing.assert_allclose(vectors, everything[list(layers)], atol=2e-6)


def test_no_layer_below_the_deepest_one_asked_for_is_run(model):
    config = dataclasses.replace(model.encoder.config, scan="unroll")
    graph, state = nnx.split(nnx.eval_shape(lambda: build_model(config, {}, nnx.Rngs(0))))
    partitioning = make_partitioning(MeshConfig(), jax.devices()[:1])
    row = np.zeros((1, 64), np.int32)

    def flops(*layers):
        pool = make_pool(graph, Encoding(layers, "mean"), partitioning)
        lowered = pool.lower(nnx.to_pure_dict(state), row, row, row, row)
        return lowered.cost_analysis()["flops"] / 1e5

    assert flops(2) - flops(1) == pytest.approx(flops(1) - flops(0), rel=0.05)
    assert flops(0) < flops(0, 1) < flops(2)


def test_shapes_do_not_depend_on_the_sentences(model, small_batches):
    rng = np.random.default_rng(0)
    partitioning = make_partitioning(MeshConfig(), jax.devices()[:1])
    graph, state = nnx.split(model)
    pool = make_pool(graph, Encoding((2,), "mean"), partitioning)
    for count in (3, 200, 77):
        sentences = [rng.integers(4, 49, size) for size in rng.integers(1, LENGTH, count)]
        embed(pool, nnx.to_pure_dict(state), sentences, SPECIAL, LENGTH, partitioning)
    assert pool._cache_size() <= 2


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(2, 100), min_size=1, max_size=80), longest=st.integers(100, 300))
def test_rows_hold_every_sentence_once_and_are_not_too_full(sizes, longest):
    sizes, seen, lengths = np.array(sizes, int), [], []
    for length, rows in plan_rows(sizes, longest):
        lengths.append(length)
        for row in rows:
            assert sizes[row].sum() <= length and 0 < len(row) <= sentences_per_row(length)
            seen += row.tolist()
    assert sorted(seen) == list(range(len(sizes)))
    assert len(set(lengths)) == len(lengths) and max(lengths, default=0) <= longest
