"""Which sentences share a string with their translation, and so are found without knowing a word.

Numerals and names look alike in many languages. An encoder that was never trained, and even a count
of pieces, finds a translation by them. P@1 without such queries says what is left.
"""

import itertools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from xl_flax.data.vocabulary import Vocabulary

LENGTH = 4  # letters and digits of a string that counts; any longer one contains one of these


def share_a_string(
    texts: Mapping[str, Sequence[np.ndarray]],
    pairs: Sequence[tuple[str, str]],
    vocabulary: Vocabulary,
) -> dict[tuple[str, str], np.ndarray]:
    """Which sentences share one of their `strings` with their translation.

    Args:
      texts: language -> int[n] tokens of each of N sentences; sentence i is the same in all.
      pairs: of languages.
      vocabulary: of the tokens.

    Returns:
      bool[N] for each pair.
    """
    shared = {pair: np.empty(len(texts[pair[0]]), bool) for pair in pairs}
    languages = sorted({language for pair in pairs for language in pair})
    for i in range(len(texts[languages[0]])):
        own = {x: strings(decoded(texts[x][i], vocabulary)) for x in languages}
        for a, b in pairs:
            shared[a, b][i] = not own[a].isdisjoint(own[b])
    return shared


def strings(text: str) -> set[str]:
    """The digits of a text, and the strings of four letters or digits inside its words.

    Case and width make no difference (NFKC, case folding). Marks, as vowel signs, belong to words;
    what is neither letter, mark nor digit ends one.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text).split()
    parts = {word[i : i + LENGTH] for word in words for i in range(len(word) - LENGTH + 1)}
    return parts | set(filter(str.isdecimal, text))


def decoded(ids: Iterable[int], vocabulary: Vocabulary) -> str:
    """The text of some tokens; unknown pieces, which may stand for anything, end a word."""
    runs = itertools.groupby(map(int, ids), lambda i: i == vocabulary.special.unk)
    return " ".join(vocabulary.decode(run) for unknown, run in runs if not unknown)
