import itertools

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from xl_flax.data.vocabulary import SpecialIds
from xl_flax.evaluation import embed as embed_lib
from xl_flax.evaluation.embed import embed, make_pool, padded_lengths
from xl_flax.models.config import EncoderConfig
from xl_flax.parallel.mesh import MeshConfig, make_partitioning

SPECIAL = SpecialIds(pad=1, unk=3, cls=0, sep=2, mask=49)
SIZES = [3, 9, 17, 30, 3, 0, 9, 17, 3]  # of the sentences; one is cut, one is empty
LENGTH = 24


@pytest.fixture(scope="module")
def model(small_model):
    config = EncoderConfig(
        vocab_size=50, num_layers=2, width=16, num_heads=2, mlp_width=32, max_positions=LENGTH,
        attention_dropout=0.5,
    )  # fmt: skip
    return small_model(config, ())


@pytest.fixture(scope="module")
def sentences():
    rng = np.random.default_rng(0)
    return [rng.integers(4, 49, size) for size in SIZES]


def run(model, sentences, layers, partitioning):
    graph, state = nnx.split(model)
    pool = make_pool(graph, layers, partitioning)
    return embed(pool, nnx.to_pure_dict(state), sentences, SPECIAL, LENGTH, partitioning)


@nnx.jit
def every_layer(model, tokens):
    return model.encoder(tokens, all_layers=True)


def directly(model, sentence):
    """One sentence by itself, without padding: the mean over its tokens, in every layer."""
    sentence = sentence[: LENGTH - 2]
    tokens = np.array([[SPECIAL.cls, *sentence, SPECIAL.sep]])
    hidden = np.asarray(every_layer(model, tokens))[:, 0]
    return hidden[:, 1:-1].mean(axis=1) if len(sentence) else np.zeros_like(hidden[:, 0])


@pytest.mark.parametrize("devices", [1, 8])
def test_batches_give_what_each_sentence_gives_by_itself(model, sentences, devices, monkeypatch):
    monkeypatch.setattr(embed_lib, "TOKENS_PER_DEVICE", 32)  # several batches of each shape
    partitioning = make_partitioning(MeshConfig(), jax.devices()[:devices])
    found = run(model, sentences, (0, 1, 2), partitioning)
    expected = np.stack([directly(model, s) for s in sentences], axis=1)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_chosen_layers_come_in_the_order_asked_for(model, sentences):
    partitioning = make_partitioning(MeshConfig(), jax.devices()[:1])
    everything = run(model, sentences[:1], (0, 1, 2), partitioning)
    for layers in [(2,), (0, 2)]:
        found = run(model, sentences[:1], layers, partitioning)
        np.testing.assert_allclose(found, everything[list(layers)], atol=2e-6)


def test_few_shapes_are_compiled(model):
    rng = np.random.default_rng(0)
    partitioning = make_partitioning(MeshConfig(), jax.devices()[:1])
    sentences = [rng.integers(4, 49, size) for size in rng.integers(1, LENGTH - 2, 200)]
    graph, state = nnx.split(model)
    pool = make_pool(graph, (2,), partitioning)
    embed(pool, nnx.to_pure_dict(state), sentences, SPECIAL, LENGTH, partitioning)
    assert pool._cache_size() <= embed_lib.SHAPES


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=20),
    limit=st.integers(1, 3),
)
def test_padded_lengths_are_the_best_of_all_choices(lengths, limit):
    def cost(chosen):
        return sum(min(c for c in chosen if c >= length) for length in lengths)

    longest = 60
    found = padded_lengths(np.array(lengths), limit, longest)
    candidates = [*range(8, longest, 8), longest]
    choices = itertools.chain.from_iterable(
        itertools.combinations(candidates, k) for k in range(1, limit + 1)
    )
    assert len(found) <= limit
    assert cost(found) == min(cost(c) for c in choices if max(c) >= max(lengths))
