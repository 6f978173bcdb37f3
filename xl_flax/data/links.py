"""Links between the words of a sentence and those of its translation, as text.

The format is that of gold alignments in SimAlign's repository and of the Pharaoh format, which it
extends: "0-0 1-2 1p3" links word 0 to word 0 and word 1 to word 2 for sure, and perhaps word 1 to
word 3, counted from 0.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from xl_flax.errors import UserError

Link = tuple[int, int]  # a word of the sentence, a word of its translation, from 0
_LINK = re.compile(r"(\d+)([-p])(\d+)", re.ASCII)


class Links(NamedTuple):
    """Gold links, as annotators gave them (Och and Ney 2003, doi:10.1162/089120103321337421)."""

    sure: frozenset[Link]
    possible: frozenset[Link]  # the sure ones among them


def read_links(text: str, words: int, translated: int) -> Links:
    """Links as text, read.

    Args:
      text: as "0-0 1p3".
      words: how many the sentence has.
      translated: how many its translation has.

    Raises:
      UserError: something in the text is no link, or links a word that is not there.
    """
    sure, possible = set(), set()
    for item in text.split():
        match = _LINK.fullmatch(item)
        if not match:
            raise UserError(
                f"{item!r} is no link between two words: expected as in 0-2 (word 0 and word 2), "
                "or 0p2 for one that is only possible"
            )
        link = int(match[1]), int(match[3])
        if link[0] >= words or link[1] >= translated:
            raise UserError(
                f"the link {item} names a word that is not there: words are counted from 0, and "
                f"there are {words} and {translated}"
            )
        possible.add(link)
        if match[2] == "-":
            sure.add(link)
    return Links(frozenset(sure), frozenset(possible))


def write_links(sure: Iterable[Link], possible: Iterable[Link] = ()) -> str:
    """Undoes `read_links`; sorted."""
    sure = set(sure)
    return " ".join(
        f"{i}{'-' if (i, j) in sure else 'p'}{j}" for i, j in sorted({*sure, *possible})
    )
