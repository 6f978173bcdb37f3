"""Texts of any length, tokenised in time and memory that grow no faster than they do."""

from collections.abc import Iterator

import numpy as np

from xl_flax.data.vocabulary import Vocabulary

# Tokenisers need time and memory that grow with the square of some texts, as of a long run of
# characters that they do not know.
MOST = 2**17  # characters that are tokenised together


def parts(text: str, most: int = MOST) -> Iterator[str]:
    """Cuts a text into parts, before spaces where there are any.

    A part after the first begins with the space, so that its pieces are those of the whole text.

    Args:
      text: of any length.
      most: characters of a part.
    """
    begin = 0
    while len(text) - begin > most:
        end = text.rfind(" ", begin + 1, begin + most)
        end = begin + most if end < 0 else end
        yield text[begin:end]
        begin = end
    yield text[begin:]


def encode(vocabulary: Vocabulary, text: str) -> np.ndarray:
    """The ids of a text, int32[n], without special pieces."""
    return np.concatenate([np.array(vocabulary.encode(part), np.int32) for part in parts(text)])
