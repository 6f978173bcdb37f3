"""States of pieces and words equal those of each sentence run alone."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xl_flax.checkpoints.description import Description
from xl_flax.data.build import write_split
from xl_flax.data.features import Example, FeatureSpec
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache
from xl_flax.data.prepare import CachedMixture, Caches, DatasetSpec
from xl_flax.data.vocabulary import SpecialIds
from xl_flax.errors import UserError
from xl_flax.evaluation import ahead
from xl_flax.evaluation import embed as embed_lib
from xl_flax.evaluation import token_states as token_states_lib
from xl_flax.evaluation.base import Subject
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.token_states import make_states, mixture_states, token_states
from xl_flax.models.config import EncoderConfig
from xl_flax.parallel.mesh import MeshConfig, make_partitioning

SPECIAL = SpecialIds(pad=1, unk=3, cls=0, sep=2, mask=49)
LENGTH = 96
SIZES = [3, 9, 17, 130, 3, 0, 9, 17, 3, 70, 1, 50, 0, 1, 1]  # of the sentences; one is cut
LAYERS = (2, 0)


@pytest.fixture(scope="module")
def model(small_model):
    config = EncoderConfig(
        vocab_size=50, num_layers=3, width=16, num_heads=2, mlp_width=32, max_positions=LENGTH,
        languages=3,
    )  # fmt: skip
    return small_model(config, {})


@pytest.fixture(scope="module")
def sentences():
    rng = np.random.default_rng(0)
    return [rng.integers(4, 49, size) for size in SIZES]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(ahead, "CPU_TOKENS", 128)  # several of each shape


def run(model, sentences, devices=1, layers=LAYERS, **options):
    partitioning = make_partitioning(MeshConfig(), jax.devices()[:devices])
    graph, state = nnx.split(model)
    states = make_states(graph, layers, partitioning)
    params = nnx.to_pure_dict(state)
    return token_states(states, params, sentences, SPECIAL, LENGTH, partitioning, **options)


@pytest.fixture(scope="module")
def alone(model, sentences):
    """Each sentence in a row of its own: float32[all layers, n, 16]; language i % 3."""
    tokens = np.full((len(sentences), LENGTH), SPECIAL.pad)
    sizes = [min(len(s), LENGTH - 2) for s in sentences]
    for row, sentence, size in zip(tokens, sentences, sizes, strict=True):
        row[: size + 2] = [SPECIAL.cls, *sentence[:size], SPECIAL.sep]
    segment_ids = np.arange(LENGTH) < np.array(sizes)[:, None] + 2
    languages = np.broadcast_to(np.arange(len(sentences))[:, None] % 3, tokens.shape)

    @nnx.jit
    def every_layer(model, tokens, segment_ids, languages):
        options = {"segment_ids": segment_ids, "languages": languages}
        return jnp.stack(model.encoder(tokens, layers=(0, 1, 2, 3), **options))

    states = np.asarray(every_layer(model, tokens, segment_ids.astype(np.int32), languages))
    return [states[:, i, 1 : size + 1] for i, size in enumerate(sizes)]


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batches", [1, 16])
def test_pieces_in_packed_rows_equal_each_sentence_alone(
    model, sentences, alone, devices, batches, monkeypatch
):
    monkeypatch.setattr(token_states_lib, "BATCHES_IN_MEMORY", batches)
    languages = np.arange(len(sentences), dtype=np.int32) % 3
    states = list(run(model, sentences, devices, languages=languages))
    assert [s.shape for s in states] == [(2, min(n, LENGTH - 2), 16) for n in SIZES]
    for own, expected in zip(states, alone, strict=True):
        assert own.dtype == np.float32
        np.testing.assert_allclose(own, expected[list(LAYERS)], atol=3e-6)


@pytest.mark.parametrize("word_state", ["mean", "first"])
def test_words_are_means_or_first_pieces(model, sentences, word_state):
    pieces = list(run(model, sentences))
    rng = np.random.default_rng(1)
    words = [np.cumsum(rng.integers(0, 2, len(s))) + 5 for s in sentences]  # numbers from 5 or 6
    words[2][[0, 4, -1]] = -1  # in no word
    states = list(run(model, sentences, words=words, word_state=word_state))
    for own, of_pieces, numbers in zip(states, pieces, words, strict=True):
        numbers = numbers[: of_pieces.shape[1]]
        kept = sorted({n for n in numbers.tolist() if n >= 0})
        assert own.shape == (2, len(kept), 16) and own.dtype == np.float32
        for i, number in enumerate(kept):
            word = of_pieces[:, numbers == number]
            expected = word.mean(axis=1) if word_state == "mean" else word[:, 0]
            np.testing.assert_allclose(own[:, i], expected, atol=1e-6)


def test_sentences_are_computed_as_they_are_asked_for(model, sentences, monkeypatch):
    monkeypatch.setattr(token_states_lib, "BATCHES_IN_MEMORY", 1)
    packed = []

    def counted(chosen, *args):
        packed.append(len(chosen))
        return embed_lib.packed_batches(chosen, *args)

    monkeypatch.setattr(token_states_lib, "packed_batches", counted)
    iterator = run(model, sentences * 20, layers=(1,))
    next(iterator)
    assert sum(packed) < len(sentences) * 3
    assert len(list(iterator)) == len(sentences) * 20 - 1
    assert sum(packed) == len(sentences) * 20
    assert list(run(model, [])) == []


def test_what_does_not_fit_is_named(model, sentences):
    with pytest.raises(UserError, match="words: sentence 1 has 9 pieces and 3 word numbers"):
        next(run(model, sentences, words=[np.zeros(3, int)] * len(sentences)))
    with pytest.raises(UserError, match="word_state = 'last': choose 'mean' or 'first'"):
        next(run(model, sentences, words=sentences, word_state="last"))
    with pytest.raises(UserError, match="there is no layer 4"):
        next(run(model, sentences, layers=(4,)))


# ---- The examples of a mixture


@pytest.fixture
def labelled_mixture(tmp_path, sentences):
    """A task of words with labels, cached in rows of 140 tokens: spec, caches, its sentences."""
    sentences = [s for s in sentences if len(s)]
    words = [np.arange(len(s)) // 2 for s in sentences]
    vocabulary = types.SimpleNamespace(size=50, special=SPECIAL, fingerprint="f")
    spec = DatasetSpec("tags", "test", Layout(140))
    cache = Cache(str(tmp_path), ["nothing"])
    manifest = write_split(
        *(cache, "tags", "test", spec.layout),
        [
            Example(i, (s,), {"word": (w,)})
            for i, s, w in zip(range(99), sentences, words, strict=False)
        ],
        languages=["b"],
        vocabulary=vocabulary,
        fingerprint={},
        features={"word": FeatureSpec("token")},
    )
    folder = cache.folder("tags", "test", spec.layout)
    caches = Caches({spec: CachedMixture(None, {"tags": manifest}, {"tags": folder})})
    context = Context(caches, vocabulary, make_partitioning(MeshConfig(), jax.devices()[:1]))
    return spec, context, sentences, words


def test_states_of_a_mixture_come_with_its_examples(model, labelled_mixture):
    spec, context, sentences, words = labelled_mixture
    graph, state = nnx.split(model)
    languages = {"mlm": ("a", "b", "c")}
    description = Description(model.encoder.config, {}, "f", languages, {})
    subject = Subject.live(graph, nnx.to_pure_dict(state), description, "run", 1)
    every = list(mixture_states(subject, context, spec, (-1,), word_state="first", length=LENGTH))
    rows = np.full(len(sentences), 1, np.int32)  # "b"
    expected = list(
        run(model, sentences, layers=(3,), words=words, word_state="first", languages=rows)
    )
    assert len(every) == len(expected)
    for (task, example, own), other in zip(every, expected, strict=True):
        assert task == "tags" and example.features["word"][0].dtype == np.int32
        np.testing.assert_allclose(own, other, atol=2e-5)


def test_words_that_no_task_tells_are_named(model, labelled_mixture):
    spec, context, *_ = labelled_mixture
    graph, state = nnx.split(model)
    context.caches[spec].manifests["tags"] = types.SimpleNamespace(features={})
    description = Description(model.encoder.config, {}, "f", {}, {})
    subject = Subject.live(graph, nnx.to_pure_dict(state), description, "run", 1)
    with pytest.raises(UserError, match="task 'tags' declares no feature 'word'"):
        next(mixture_states(subject, context, spec, (0,), word_state="mean"))
