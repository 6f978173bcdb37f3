import types

import numpy as np
import pytest

from xl_flax.data.build import write_split
from xl_flax.data.features import Example
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache
from xl_flax.data.prepare import CachedMixture, Caches
from xl_flax.data.vocabulary import SpecialIds
from xl_flax.errors import UserError
from xl_flax.evaluation import centring
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.embed import Encoding
from xl_flax.evaluation.mining import BitextMining
from xl_flax.evaluation.retrieval import SentenceRetrieval
from xl_flax.evaluation.scores import found_at_1

WORDS = 40
SIZES = {"deu": 30, "eng": 30, "tha": 30}


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_centring_takes_away_what_a_language_has_in_common():
    x = normal(0, 80, 16)
    shifted = x + 20 * normal(1, 1, 16) + 0.1 * normal(2, 80, 16)
    assert found_at_1(x, shifted)[1].mean() < 0.3
    assert np.min(found_at_1(centring.centred(x), centring.centred(shifted))) == 1


def texts(seed, n):
    rng = np.random.default_rng(seed)
    return [rng.integers(4, WORDS, rng.integers(1, 9)) for _ in range(n)]


VOCABULARY = types.SimpleNamespace(
    size=WORDS + 1,
    special=SpecialIds(pad=1, unk=3, cls=0, sep=2, mask=WORDS),
    decode=lambda ids: " ".join(map(str, ids)),
)


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """Three languages of test sentences; training text of two of them, and of pairs."""
    cache, caches = Cache(str(tmp_path_factory.mktemp("centring")), ["none"]), {}

    def write(mixture, split, tasks):
        manifests, folders = {}, {}
        for name, (languages, examples) in tasks.items():
            task = f"{mixture}_{name}"
            numbered = [Example(i, own) for i, own in enumerate(examples)]
            manifests[task] = write_split(
                *(cache, task, split, Layout(16), numbered), languages=languages,
                vocabulary=VOCABULARY, fingerprint={},
            )  # fmt: skip
            folders[task] = cache.folder(task, split, Layout(16))
        (spec,) = SentenceRetrieval(mixture, split=split, length=16).datasets
        caches[spec] = CachedMixture(None, manifests, folders)

    alone = lambda language, seed, n: ((language,), [(own,) for own in texts(seed, n)])  # noqa: E731
    write("news", "test", {x: alone(x, i, n) for i, (x, n) in enumerate(SIZES.items())})
    write("thai", "test", {x: alone(x, i, 9) for i, x in enumerate(("tha", "deu"))})
    write("bible", "train", {"deu": alone("deu", 7, 50), "eng": alone("eng", 8, 2400)})
    pairs = zip(texts(9, 20), texts(10, 20), strict=True)
    write("pairs", "train", {"p": (("deu", "eng"), list(pairs))})
    return Caches(caches)


@pytest.fixture
def context(caches):
    return Context(caches, VOCABULARY, None)


@pytest.fixture
def bags(monkeypatch):
    """Instead of a model: the counts of a sentence's words, in two layers."""

    def embed(self, subject, context, spec, texts):
        rows = [np.bincount(ids, minlength=WORDS) for own in texts.values() for ids in own]
        return np.stack([np.array(rows, np.float32)] * 2)

    monkeypatch.setattr(SentenceRetrieval, "_embed", embed)
    monkeypatch.setattr(BitextMining, "_embed", embed)
    encoding = lambda self, description: Encoding((0, 1), "mean")  # noqa: E731
    monkeypatch.setattr(SentenceRetrieval, "encoding", encoding)
    monkeypatch.setattr(BitextMining, "encoding", encoding)
    config = types.SimpleNamespace(max_positions=16, num_layers=1)
    return types.SimpleNamespace(
        description=types.SimpleNamespace(encoder=config, heads={}, step=1)
    )


def evaluation(kind=SentenceRetrieval, center="bible", **settings):
    return kind(**{"mixture": "news", "length": 16, "center": center} | settings)


def test_means_of_training_text_need_no_other_test_sentence(context, bags, capsys):
    known = {"deu": texts(7, 50), "eng": centring.sample(bible(), context)["eng"]}
    bag = lambda own: np.array([np.bincount(ids, minlength=WORDS) for ids in own])  # noqa: E731
    for spec, space, vectors in evaluation().vectors(bags, context):
        assert spec.mixture == "news" and space.layer in (0, 1)
        assert list(vectors) == ["deu", "eng"]
        for i, language in enumerate(vectors):
            expected = bag(texts(i, 30)) - bag(known[language]).mean(axis=0)
            np.testing.assert_allclose(vectors[language], expected, atol=1e-5)
    said = capsys.readouterr().out
    assert said.count("news: left out, for they have no training text in bible: tha") == 1


def bible():
    return evaluation().datasets[-1]


def test_no_more_texts_are_read_than_a_mean_needs_and_not_the_longest(context):
    found = centring.sample(bible(), context)
    assert len(found["deu"]) == 50 and len(found["eng"]) == centring.TEXTS
    every = np.mean([len(own) for own in texts(8, 2400)])
    assert np.mean([len(own) for own in found["eng"]]) == pytest.approx(every, rel=0.05)


def test_both_texts_of_pairs_count(context):
    (_, spec) = evaluation(center="pairs").datasets
    found = centring.sample(spec, context)
    assert list(found) == ["deu", "eng"] and len(found["deu"]) == len(found["eng"]) > 10


@pytest.mark.parametrize("kind", [SentenceRetrieval, BitextMining])
def test_mixtures_without_two_languages_of_training_text_are_left_out(context, bags, kind):
    results = evaluation(kind, mixture=["news", "thai"])(bags, context)
    assert {r.data for r in results} == {"news/test"}
    assert {r.languages for r in results} >= {("deu", "eng")}
    assert not any("tha" in r.languages for r in results)
    (sign,) = {r.signature for r in results if r.layer == 1}
    assert "|languages:deu,eng|" in sign and "|center:bible/train|center_n:1000|" in sign
    both = evaluation(kind, mixture=["news", "thai"])
    assert {r.signature for r in results} == set(both.signatures(bags.description, context))
    with pytest.raises(UserError, match="center = 'bible': fewer than two .* it has deu, eng"):
        evaluation(kind, mixture="thai")(bags, context)


@pytest.mark.parametrize(
    "center, note",
    [
        (True, "Centred by the mean of each language's own test sentences (transductive)"),
        ("bible", "Centred by the mean of 1,000 training texts of each language from bible"),
        (False, "Sentence retrieval, news/test, by cosine"),
    ],
)
def test_tables_say_which_means_were_taken_away(context, bags, center, note):
    asked = evaluation(center=center)
    assert asked.table(asked(bags, context)).splitlines()[0] == note
