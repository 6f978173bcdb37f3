"""Vectors of sentences that need no model: TF-IDF of pieces, and the length.

What they find, an encoder finds without knowing two languages: names and numerals that both write
alike, and sentences that are as long as each other.

Shapes: N sentences, P pieces or other features.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_array

from xl_flax.evaluation.search import Vectors

COLUMNS = 256  # numbers of columns are multiples of it, so that searches compile a few times only

Sentences = Sequence[np.ndarray]  # int[n] tokens of each, without special tokens


def tf_idf(x: Sentences, y: Sentences) -> tuple[csr_array, csr_array]:
    """Counts of pieces times ln((1 + n) / (1 + df)) + 1, df of the n sentences have the piece.

    These are scikit-learn's defaults (smooth idf). They are fitted on both texts, whose pieces are
    the columns. Memory grows with the texts: what is 0 takes none.

    Args:
      x: the sentences of one language.
      y: of the other.

    Returns:
      float32[N, P] of each side, of length 1, zeros for an empty sentence.
    """
    sides = [_counts(x), _counts(y)]
    every, df_P = np.unique(np.concatenate([piece for _, piece, _ in sides]), return_counts=True)
    idf_P = np.log((1 + len(x) + len(y)) / (1 + df_P)) + 1
    made = []
    for sentences, (row, piece, count) in zip((x, y), sides, strict=True):
        column = np.searchsorted(every, piece)
        weight = count * idf_P[column]
        square_N = np.bincount(row, weight**2, minlength=len(sentences))
        weight = (weight / np.sqrt(square_N)[row]).astype(np.float32)
        made.append(csr_array((weight, (row, column)), shape=(len(sentences), len(every))))
    return tuple(made)


def length(x: Sentences, y: Sentences) -> tuple[np.ndarray, np.ndarray]:
    """The number of pieces, divided by its mean in the language, and nothing else.

    The cosine is linear in the difference d of two such lengths, 1 - 2 d / (their range + 1), so
    that the nearest by cosine is the nearest in length: of each step from one length to the next,
    a column says whether a sentence is beyond it. As angles, near lengths would have cosines that
    differ by less than `scores.TIE`.

    Args:
      x: the sentences of one language.
      y: of the other.

    Returns:
      float32[N, P] of each side.
    """
    sizes = [np.array([len(s) for s in side], np.float64) for side in (x, y)]
    relative = [own / max(own.mean(), 1) for own in sizes]
    points = np.unique(np.concatenate(relative))
    steps_P = np.sqrt(np.diff(points))
    made = []
    for own_N in relative:
        columns = -(-len(points) // COLUMNS) * COLUMNS
        vectors_NxP = np.zeros((len(own_N), columns), np.float32)
        vectors_NxP[:, : len(steps_P)] = np.where(own_N[:, None] > points[:-1], steps_P, -steps_P)
        vectors_NxP[:, len(steps_P)] = 1
        made.append(vectors_NxP)
    return tuple(made)


def _counts(sentences: Sentences) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sentence, piece and count, int[n] each, of all pieces that sentences have."""
    row = np.repeat(np.arange(len(sentences)), [len(s) for s in sentences])
    piece = np.concatenate(sentences).astype(np.int64)
    beyond = piece.max(initial=0) + 1
    pairs, count = np.unique(row * beyond + piece, return_counts=True)
    return *np.divmod(pairs, beyond), count.astype(np.float64)


LEXICAL: dict[str, Callable[[Sentences, Sentences], tuple[Vectors, Vectors]]] = {
    "tf-idf": tf_idf,
    "length": length,
}
