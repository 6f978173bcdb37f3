"""Vectors of sentences that need no model: TF-IDF of pieces, and the length.

What they find, an encoder finds without knowing two languages: names and numerals that both write
alike, and sentences that are as long as each other.

Shapes: N sentences, P pieces or other features.
"""

from collections.abc import Callable, Sequence

import numpy as np

COLUMNS = 256  # numbers of columns are multiples of it, so that searches compile a few times only

Sentences = Sequence[np.ndarray]  # int[n] tokens of each, without special tokens


def tf_idf(x: Sentences, y: Sentences) -> tuple[np.ndarray, np.ndarray]:
    """Counts of pieces times ln((1 + n) / (1 + df)) + 1, df of the n sentences have the piece.

    These are scikit-learn's defaults (smooth idf). They are fitted on both texts. Columns are the
    pieces that occur on both sides, and two more for the length of the rest of each side's vectors:
    cosines between the sides are those of the whole vectors. So memory is N times the pieces in
    common.

    Args:
      x: the sentences of one language.
      y: of the other.

    Returns:
      float32[N, P] of each side, of length 1, zeros for an empty sentence.
    """
    sides = [_counts(x), _counts(y)]
    every, df_P = np.unique(np.concatenate([piece for _, piece, _ in sides]), return_counts=True)
    idf_P = np.log((1 + len(x) + len(y)) / (1 + df_P)) + 1
    common = np.intersect1d(sides[0][1], sides[1][1])
    made = []
    for side, (sentences, (row, piece, count)) in enumerate(zip((x, y), sides, strict=True)):
        weight = count * idf_P[np.searchsorted(every, piece)]
        square_N = np.bincount(row, weight**2, minlength=len(sentences))
        weight /= np.sqrt(square_N)[row]
        is_common = np.isin(piece, common)
        vectors_NxP = _zeros(len(sentences), len(common) + 2)
        vectors_NxP[row[is_common], np.searchsorted(common, piece[is_common])] = weight[is_common]
        rest_N = np.bincount(row[~is_common], weight[~is_common] ** 2, minlength=len(sentences))
        vectors_NxP[:, len(common) + side] = np.sqrt(rest_N)
        made.append(vectors_NxP)
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
        vectors_NxP = _zeros(len(own_N), len(points))
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


def _zeros(rows: int, columns: int) -> np.ndarray:
    return np.zeros((rows, -(-columns // COLUMNS) * COLUMNS), np.float32)


LEXICAL: dict[str, Callable[[Sentences, Sentences], tuple[np.ndarray, np.ndarray]]] = {
    "tf-idf": tf_idf,
    "length": length,
}
