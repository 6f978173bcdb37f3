"""Exact match and F1 of answers, as the official scripts of SQuAD v1.1 and MLQA compute them."""

import collections
import functools
import re
import string
import sys
import unicodedata
from collections.abc import Sequence
from typing import Literal

from xl_flax.errors import UserError

Rule = Literal["squad", "mlqa"]

_ASCII = str.maketrans("", "", string.punctuation)

# Words that MLQA's script takes for articles, by language; Hindi and Chinese have none.
_ARTICLES = {
    "deu": "ein eine einen einem eines einer der die das den dem des",
    "eng": "a an the",
    "hin": "",
    "spa": "un una unos unas el la los las",
    "vie": "của là cái chiếc những",
    "zho": "",
}
_HAN = re.compile("([\u4e00-\u9fa5])")  # each of these is a token of its own


def mlqa_languages() -> list[str]:
    """The languages whose answers the rule "mlqa" knows."""
    return sorted([*_ARTICLES, "ara"])


def tokens(answer: str, rule: Rule, language: str) -> list[str]:
    """The words by which an answer is compared, in lower case, without punctuation and articles.

    Args:
      answer: the text.
      rule: "squad": punctuation is ASCII's, articles are English, in every language (Rajpurkar et
        al. 2016, evaluate-v1.1.py), as XTREME scores XQuAD and TyDiQA. "mlqa": punctuation is
        Unicode's and ASCII's symbols, articles are the language's, and Chinese characters are words
        (Lewis et al. 2020, mlqa_evaluation_v1.py).
      language: of the answer, which is the context's; ISO 639-3.

    Raises:
      UserError: MLQA does not say how answers in this language are compared.
    """
    answer = answer.lower()
    if rule == "squad":
        return _without(_ARTICLES["eng"], answer.translate(_ASCII)).split()
    answer = answer.translate(_punctuation())
    if language == "ara":  # the article is a prefix; the script takes it away inside words, too
        return answer.replace("ال", " ").split()
    if language not in _ARTICLES:
        raise UserError(
            f"MLQA says nothing about answers in {language!r}, only about those in "
            f"{', '.join(mlqa_languages())}: set AnswerScores.rule = 'squad'"
        )
    answer = _without(_ARTICLES[language], answer)
    return (_HAN.sub(r" \1 ", answer) if language == "zho" else answer).split()


@functools.cache
def _punctuation() -> dict[int, None]:
    """Of all scripts; not made where nothing asks for it, as every command reads this module."""
    every = range(sys.maxunicode + 1)
    return _ASCII | {i: None for i in every if unicodedata.category(chr(i)).startswith("P")}


def _without(words: str, text: str) -> str:
    return re.sub(rf"\b(?:{'|'.join(words.split())})\b", " ", text) if words else text


def scores(predicted: str, gold: Sequence[str], rule: Rule, language: str) -> tuple[float, float]:
    """Exact match and F1 of a prediction, each the best over the gold answers.

    F1 is that of the bags of `tokens`. Where both are without tokens, the match is exact, and F1 is
    0 all the same.

    Args:
      predicted: the answer.
      gold: one or more right ones.
      rule: see `tokens`.
      language: see `tokens`.
    """
    own = tokens(predicted, rule, language)
    others = [tokens(answer, rule, language) for answer in gold]
    return float(own in others), max(_f1(own, other) for other in others)


def _f1(a: list[str], b: list[str]) -> float:
    common = (collections.Counter(a) & collections.Counter(b)).total()
    return 2 * common / (len(a) + len(b)) if common else 0.0
