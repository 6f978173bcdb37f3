"""Exact match and F1 as the official scripts of SQuAD v1.1 and MLQA give them."""

import string
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xl_flax.errors import UserError
from xl_flax.evaluation.answers import mlqa_languages, scores, tokens

# What the two scripts print for one question, run on these very strings.
OFFICIAL = [
    # predicted, right answers, rule, language, exact match, F1
    ("The  Cat!", ["a cat"], "squad", "eng", 1, 1),
    ("in the big house", ["big house", "house"], "squad", "eng", 0, 0.8),
    ("to be or not to be", ["be to be"], "squad", "eng", 0, 2 / 3),
    ("the", ["an a"], "squad", "eng", 1, 0),  # nothing is left: equal, but nothing in common
    ("the", [""], "squad", "eng", 1, 0),
    ("anthem", ["them"], "squad", "eng", 0, 0),
    ("US$5", ["us5"], "squad", "eng", 1, 1),
    ("天地。", ["天地"], "squad", "zho", 0, 0),  # punctuation beyond ASCII stays
    ("“Kronberg”", ["Kronberg"], "squad", "deu", 0, 0),
    ("der Staat", ["Staat"], "squad", "deu", 0, 2 / 3),
    ("1 000", ["1\u00a0000"], "squad", "fin", 1, 1),
    ("天地。", ["天地"], "mlqa", "zho", 1, 1),
    ("天地人", ["地人"], "mlqa", "zho", 0, 0.8),
    ("在 the 天", ["在the天"], "mlqa", "zho", 1, 1),
    ("㐀㐁", ["㐀"], "mlqa", "zho", 0, 0),  # beyond U+4E00 to U+9FA5: one word
    ("“Kronberg”", ["Kronberg"], "mlqa", "deu", 1, 1),
    ("Des Kaisers", ["dem kaisers"], "mlqa", "deu", 1, 1),
    ("des Kaisers", ["kaisers"], "mlqa", "eng", 0, 2 / 3),
    ("¿El sol?", ["un sol"], "mlqa", "spa", 1, 1),
    ("los lagos", ["las lagos lagos"], "mlqa", "spa", 0, 2 / 3),
    ("của Hà Nội", ["những Hà Nội"], "mlqa", "vie", 1, 1),
    ("الكتاب", ["كتاب"], "mlqa", "ara", 1, 1),
    ("بالكتاب", ["ب كتاب"], "mlqa", "ara", 1, 1),  # also inside a word
    ("the एक", ["एक"], "mlqa", "hin", 0, 2 / 3),
    ("a+b", ["ab"], "mlqa", "eng", 1, 1),
    ("a–b", ["ab"], "mlqa", "eng", 1, 1),
    ("5€", ["5"], "mlqa", "eng", 0, 0),  # a symbol beyond ASCII stays
]


@pytest.mark.parametrize(("predicted", "gold", "rule", "language", "exact", "f1"), OFFICIAL)
def test_scores_are_those_of_the_official_scripts(predicted, gold, rule, language, exact, f1):
    assert scores(predicted, gold, rule, language) == pytest.approx((exact, f1))


ARTICLES = {
    "eng": {"a", "an", "the"},
    "spa": {"un", "una", "unos", "unas", "el", "la", "los", "las"},
    "vie": {"của", "là", "cái", "chiếc", "những"},
    "deu": {f"ein{end}" for end in ("", "e", "en", "em", "es", "er")}
    | {"der", "die", "das", "den", "dem", "des"},
}


def read(answer, rule, language):
    """The rules read character by character; a word is what stands between non-word characters."""
    if rule == "squad":
        language = "eng"
    kept = "".join(
        c
        for c in answer.lower()
        if c not in string.punctuation
        and (rule == "squad" or not unicodedata.category(c).startswith("P"))
    )
    if language == "ara":
        return " ".join(kept.split("ال")).split()
    runs = [""]
    for c in kept:
        is_word = c.isalnum() or c == "_"
        if runs[-1] and is_word != (runs[-1][-1].isalnum() or runs[-1][-1] == "_"):
            runs.append("")
        runs[-1] += c
    words = "".join(" " if run in ARTICLES.get(language, ()) else run for run in runs)
    if language == "zho":
        words = "".join(f" {c} " if 0x4E00 <= ord(c) <= 0x9FA5 else c for c in words)
    return words.split()


def overlap(a, b):
    rest, same = list(b), 0
    for word in a:
        if word in rest:
            rest.remove(word)
            same += 1
    precision, recall = (same / len(x) if x else 0 for x in (a, b))
    return 2 * precision * recall / (precision + recall) if same else 0


PARTS = [
    *("the", "The", "a", "an", "AN", "el", "las", "der", "DES", "của", "CỦA", "là", "những"),
    *("ال", "الكتاب", "بال", "神", "天地", "㐀", "龥", "龦", "。", "、", "“", "”", "-", "–", "_"),
    *(" ", "  ", "\t", "\n", "\u00a0", "\u3000", "\x1c", "$", "€", "^", "~", "+", "'s", "1.5"),
    *("İ", "ß", "ſ", "e\u0301", "ö", "x", "b_a", "\ufeff", "\u200b", "ـ", "٣", "½"),
]
STRINGS = st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=7).map("".join)


RULES = [("squad", "zho"), *(("mlqa", language) for language in mlqa_languages())]


@given(STRINGS, STRINGS, st.sampled_from(RULES))
@example("the a", "", ("squad", "eng"))
@example("die天地", "天", ("mlqa", "zho"))
def test_words_are_those_of_the_rules(predicted, gold, how):
    own, other = (read(answer, *how) for answer in (predicted, gold))
    assert tokens(predicted, *how) == own
    exact, f1 = scores(predicted, [gold], *how)
    assert exact == (own == other) and f1 == pytest.approx(overlap(own, other))


@given(STRINGS, st.lists(STRINGS, min_size=1, max_size=3))
def test_the_best_of_several_right_answers_counts(predicted, gold):
    each = [scores(predicted, [answer], "squad", "eng") for answer in gold]
    assert scores(predicted, gold, "squad", "eng") == tuple(map(max, zip(*each, strict=True)))


def test_mlqa_knows_its_languages():
    assert mlqa_languages() == ["ara", "deu", "eng", "hin", "spa", "vie", "zho"]
    with pytest.raises(UserError, match="'fra'.*ara, deu, eng.*'squad'"):
        tokens("le", "mlqa", "fra")
