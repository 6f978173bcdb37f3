"""Vocabularies: the places of special pieces, exact sizes, word starts, and clear errors."""

import random

import gin
import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2 as model_pb2

from xl_flax.data.vocabulary import (
    SpecialIds,
    Vocabulary,
    VocabularyConfig,
    load_vocabulary,
    read_vocabulary,
    run_vocabulary,
)
from xl_flax.data.vocabulary_training import Corpus, measure, train_model
from xl_flax.errors import UserError

CHINESE = "起初神创造天地是空虚混沌渊面黑暗的灵运行在水上"


def corpora() -> list[Corpus]:
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefgh", k=generator.randint(2, 9))) for _ in range(400)]
    latin = [" ".join(generator.choices(words, k=8)) for _ in range(400)]
    han = ["".join(generator.choices(CHINESE, k=12)) for _ in range(100)]
    return [Corpus("lat", 400, latin, 1), Corpus("zho", 100, han, 3)]


def config(**settings) -> VocabularyConfig:
    return VocabularyConfig(**{"mixture": "m", "path": "v.model", "size": 300, **settings})


@pytest.fixture(scope="module", params=["xlmr", "bert"])
def vocabulary(request) -> Vocabulary:
    return read_vocabulary("v.model", train_model(corpora(), config(style=request.param)))


def test_special_pieces_stand_where_models_of_the_style_have_them(vocabulary):
    bert = vocabulary.piece(0) == "[PAD]"
    expected = SpecialIds(0, 1, 2, 3, 4) if bert else SpecialIds(1, 3, 0, 2, 299)
    assert vocabulary.special == expected
    assert vocabulary.size == 300
    assert set(np.flatnonzero(vocabulary.special_mask())) == {*vars(expected).values()}


def test_text_cannot_spell_special_pieces(vocabulary):
    ids = vocabulary.encode("<mask> [MASK] <s> </s> [SEP] <pad> [PAD]")
    assert not set(ids) & set(vars(vocabulary.special).values()) - {vocabulary.special.unk}


def test_decode_gives_the_text_back_without_control_pieces(vocabulary):
    text = corpora()[0].lines[0]
    ids = vocabulary.encode(text)
    special = vocabulary.special
    assert vocabulary.decode(np.array([special.cls, *ids, special.sep, special.mask])) == text


def test_word_starts(vocabulary):
    starts = vocabulary.word_starts()
    text = "abc fed gha"
    ids = vocabulary.encode(text)
    assert starts[ids].sum() == 3 and starts[ids[0]]
    # In Chinese every piece is a word; "▁" alone before it is one more.
    ids = vocabulary.encode(CHINESE[:6])
    assert all(starts[i] for i in ids)
    assert not starts[vocabulary.special_mask()].any()


def test_byte_fallback_leaves_nothing_unknown():
    vocabulary = read_vocabulary("v", train_model(corpora(), config(size=600, byte_fallback=True)))
    ids = vocabulary.encode("naïve 🙂")
    assert vocabulary.special.unk not in ids and vocabulary.decode(ids) == "naïve 🙂"
    assert vocabulary.size == 600


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_too_large_a_size_is_refused_with_the_largest_that_works(model_type):
    with pytest.raises(
        UserError, match=r"size = 90000 is too large .*'m'.* at most (\d+)"
    ) as error:
        train_model(corpora(), config(size=90000, model_type=model_type))
    largest = int(str(error.value).split("at most ")[1].split()[0])
    model = train_model(corpora(), config(size=largest, model_type=model_type))
    assert read_vocabulary("v", model).size == largest


def test_too_small_a_size_is_refused():
    with pytest.raises(UserError, match="size = 12 is too small.*special pieces alone are"):
        train_model(corpora(), config(size=12))


def test_same_text_same_bytes():
    assert train_model(corpora(), config()) == train_model(corpora(), config())


def test_a_line_counts_by_its_weight():
    def encode(weight: int) -> list[int]:
        text = [corpora()[0], Corpus("rare", 1, ["xyzzyx xyzzyx"], weight)]
        model = train_model(text, config(size=60, character_coverage=0.99))
        return read_vocabulary("v", model).encode("xyzzyx")

    unknown = 3
    assert unknown in encode(weight=1) and unknown not in encode(weight=100)


def test_weights_are_exact_in_total():
    lines = list(Corpus("und", 10, ["a"] * 10, 2.7).weighted_lines())
    assert sum(int(line.split("\t")[1]) for line in lines) == 27
    assert {line.split("\t")[1] for line in lines} == {"2", "3"}


def test_measure():
    vocabulary = read_vocabulary("v", train_model(corpora(), config()))
    lines = corpora()[0].lines[:50]
    found = measure(vocabulary, lines)
    pieces = sum(len(vocabulary.encode(line)) for line in lines)
    assert found["unit"] == "word" and found["unknown"] == 0
    assert found["fertility"] == pytest.approx(pieces / (50 * 8), abs=1e-4)
    assert measure(vocabulary, [CHINESE])["unit"] == "character"
    assert measure(vocabulary, ["Ω Ω Ω"])["unknown"] == pytest.approx(0.5, abs=0.01)  # "▁", unknown


def test_a_missing_file_is_an_error_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"no\.model does not exist; train it .*xl_flax\.vocab"):
        load_vocabulary(str(tmp_path / "no.model"))


def test_a_file_that_is_no_model_is_an_error(tmp_path):
    for content in (b"", b"not a model at all"):
        path = tmp_path / "bad.model"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.model"):
            load_vocabulary(str(path))


def test_a_model_without_special_pieces_is_an_error(tmp_path):
    model = model_pb2.ModelProto.FromString(train_model(corpora(), config()))
    del model.pieces[-1]
    path = tmp_path / "t5.model"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"t5\.model has no piece <mask> or \[MASK\]"):
        load_vocabulary(str(path))


def test_run_vocabulary_reads_the_file_anew_when_it_changes(tmp_path):
    path = tmp_path / "v.model"
    gin.clear_config()
    gin.bind_parameter("run_vocabulary.path", str(path))
    path.write_bytes(train_model(corpora(), config()))
    first = run_vocabulary()
    assert run_vocabulary() is first
    path.write_bytes(train_model(corpora(), config(size=200)))
    assert run_vocabulary().size == 200 and run_vocabulary().fingerprint != first.fingerprint
    gin.clear_config()


@pytest.mark.parametrize(
    "settings",
    [
        {"style": "gpt"},
        {"model_type": "char"},
        {"exponent": 2},
        {"size": 5},
        {"character_coverage": 0.5},
        {"max_sentences": 0},
        {"normalization": "lower"},
    ],
)
def test_bad_settings_are_named(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        config(**settings)
