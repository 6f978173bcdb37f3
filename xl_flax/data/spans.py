"""Spans of a text: where an answer stands, in characters and in tokens."""

import unicodedata

import numpy as np

from xl_flax.data.long_texts import parts
from xl_flax.data.vocabulary import Vocabulary


def encode(vocabulary: Vocabulary, text: str) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a text and the characters that each stands for.

    Args:
      vocabulary: of the ids.
      text: of any length.

    Returns:
      int32[n] ids without special pieces, as of `long_texts.encode`; and int32[n, 2], first
      character and the one behind the last. White space and invisible marks, as a byte-order mark,
      belong to no token that they begin or end.
    """
    visible = np.array([not _is_blank(character) for character in text], bool)
    places = np.flatnonzero(visible)
    every_id, every_offset, at = [], [], 0
    for part in parts(text):
        ids, offsets = vocabulary.encode_with_offsets(part)
        every_id += ids
        every_offset += [(begin + at, end + at) for begin, end in offsets]
        at += len(part)
    offsets_Nx2 = np.array(every_offset, np.int32).reshape(-1, 2)
    # The first visible character from where a token begins, and the last one before its end.
    first_N, behind_N = np.searchsorted(places, offsets_Nx2).T
    empty_N = first_N >= behind_N
    places = np.append(places, len(text))
    begin_N = np.where(empty_N, offsets_Nx2[:, 1], places[first_N])
    end_N = np.where(empty_N, offsets_Nx2[:, 1], places[behind_N - 1] + 1)
    return np.array(every_id, np.int32), np.stack([begin_N, end_N], axis=1).astype(np.int32)


def find(text: str, wanted: str, near: int) -> int | None:
    """Where a string stands in a text: at the occurrence that begins nearest to a place.

    Args:
      text: where it is looked for.
      wanted: the string.
      near: a character's number, which may lie outside the text.

    Returns:
      The number of its first character, that of the earlier of two that are equally near; None if
      the string is empty or not there.
    """
    if not wanted:
        return None
    if near >= 0 and text.startswith(wanted, near):
        return near
    before = text.rfind(wanted, 0, max(0, near) + len(wanted))
    after = text.find(wanted, max(0, near))
    found = [place for place in (before, after) if place >= 0]
    return min(found, key=lambda place: abs(place - near), default=None)


def tokens_of(offsets_Nx2: np.ndarray, begin: int, end: int) -> tuple[int, int]:
    """The first and the last token that have one of the characters [begin, end); -1, -1 for none.

    Args:
      offsets_Nx2: of the tokens, from `encode`.
      begin: first character.
      end: the one behind the last.
    """
    begins_N, ends_N = offsets_Nx2.T
    inside = np.flatnonzero((ends_N > begin) & (begins_N < end) & (begins_N < ends_N))
    return (int(inside[0]), int(inside[-1])) if inside.size else (-1, -1)


def text_of(text: str, offsets_Nx2: np.ndarray, first: int, last: int) -> str:
    """The text from a token to another, both included, as it was written."""
    return text[offsets_Nx2[first, 0] : offsets_Nx2[last, 1]]


def _is_blank(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in ("Cc", "Cf")
