"""Answers in characters and in tokens, of SentencePiece models and of tokenizers."""

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from xl_flax.data import long_texts, spans
from xl_flax.data.vocabulary import VocabularyConfig, read_vocabulary
from xl_flax.data.vocabulary_training import Corpus, train_model

WORDS = ["sonne", "mond", "sterne", "haus", "hauses", "ab", "abc", "größe", "天地", "起初神"]
LINES = [" ".join(WORDS[(i * 7 + k * k) % 10] for k in range(8)) for i in range(300)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def sentencepiece():
    settings = VocabularyConfig("m", "v.model", 37, character_coverage=1.0)
    return read_vocabulary("v.model", train_model([Corpus("und", 300, LINES, 1)], settings))


def wordpiece():
    made = tokenizers.BertWordPieceTokenizer(lowercase=True, strip_accents=False)
    made.train_from_iterator(LINES, vocab_size=90, show_progress=False)
    return read_vocabulary("tokenizer.json", made.to_str().encode())


def bytelevel():
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(LINES, vocab_size=290, show_progress=False, special_tokens=SPECIAL)
    return read_vocabulary("tokenizer.json", made.to_str().encode())


@pytest.fixture(scope="module", params=[sentencepiece, wordpiece, bytelevel])
def vocabulary(request):
    return request.param()


# Spaces of all sorts, marks that no vocabulary keeps, and characters that it does not know.
PARTS = [*WORDS, " ", "  ", "\r\n", "\u00a0", "\ufeff", "\u200b", "Haus", ".", "“", "5", "ʘ", "😀"]
TEXTS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=12).map("".join)


def is_blank(c):
    return c.isspace() or c in "\ufeff\u200b"


@given(text=TEXTS, data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_tokens_of_an_answer_hold_it(vocabulary, text, data):
    ids, offsets = spans.encode(vocabulary, text)
    assert ids.tolist() == vocabulary.encode(text) and ids.dtype == np.int32
    assert offsets.shape == (len(ids), 2) and (offsets >= 0).all() and (offsets <= len(text)).all()
    for begin, end in offsets:
        assert begin <= end
        assert begin == end or not (is_blank(text[begin]) or is_blank(text[end - 1]))
    begin = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(begin + 1, len(text)))
    answer = text[begin:end].strip(" \r\n\u00a0\ufeff\u200b")
    if not answer:
        return
    begin = text.index(answer, begin)
    first, last = spans.tokens_of(offsets, begin, begin + len(answer))
    assert 0 <= first <= last < len(ids)
    held = spans.text_of(text, offsets, first, last)
    assert answer in held and not is_blank(held[0]) and not is_blank(held[-1])
    end = begin + len(answer)
    needed = [i for i, (a, b) in enumerate(offsets) if a < b and a < end and b > begin]
    assert (first, last) == (needed[0], needed[-1])


def test_an_answer_of_whole_words_is_given_back(vocabulary):
    text = "\ufeffsonne mond\r\n\u200bsterne  ab"
    for answer in ("sonne", "mond", "sterne", "ab", "mond\r\n\u200bsterne"):
        _, offsets = spans.encode(vocabulary, text)
        begin = text.index(answer)
        span = spans.tokens_of(offsets, begin, begin + len(answer))
        assert spans.text_of(text, offsets, *span) == answer


def test_where_there_is_no_token_there_is_no_span(vocabulary):
    text = "ab  \ufeff ab"
    _, offsets = spans.encode(vocabulary, text)
    assert spans.tokens_of(offsets, 2, 4) == (-1, -1)
    ids, offsets = spans.encode(vocabulary, "")
    assert ids.shape == (0,) and offsets.shape == (0, 2)


def test_long_texts_have_the_offsets_of_short_ones(vocabulary, monkeypatch):
    text = " ".join(WORDS[:7] * 3)
    whole = spans.encode(vocabulary, text)
    monkeypatch.setattr(long_texts.parts, "__defaults__", (20,))
    assert len(list(long_texts.parts(text))) > 3
    for cut, expected in zip(spans.encode(vocabulary, text), whole, strict=True):
        np.testing.assert_array_equal(cut, expected)


@given(st.text("ab ", max_size=12), st.text("ab", max_size=3), st.integers(-3, 15))
@example("aXa", "a", 1)
def test_an_answer_is_found_at_its_nearest_occurrence(text, wanted, near):
    places = [i for i in range(len(text)) if text.startswith(wanted, i)] if wanted else []
    nearest = min(places, key=lambda i: (abs(i - near), i), default=None)
    assert spans.find(text, wanted, near) == nearest
