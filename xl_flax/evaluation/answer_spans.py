"""The best answer of a context that was read in windows, from scores of starts and ends.

Shapes: N tokens of a context, S of a window's segment, W windows, A allowed tokens of an answer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """What a model says of one window."""

    first: int  # number in the context of its first token
    at: int  # that token's place in the segment
    size: int  # tokens of the context
    starts_S: np.ndarray  # float32, of each token of the segment, [CLS] and question too
    ends_S: np.ndarray


def owners(windows: Sequence[Window]) -> np.ndarray:
    """The window in which each token of a context has most context, int[N].

    That is the lesser number of the tokens before and behind it, and a hundredth of the window's
    size: BERT's code for SQuAD decides so in which window an answer may begin (Devlin et al. 2019).
    Of equal windows it is the first.
    """
    count = max(window.first + window.size for window in windows)
    most_N, owner_N = np.full(count, -1.0), np.zeros(count, int)
    for number, window in enumerate(windows):
        part = slice(window.first, window.first + window.size)
        inside = np.arange(window.size)
        context = np.minimum(inside, inside[::-1]) + 0.01 * window.size
        better = context > most_N[part]
        most_N[part] = np.where(better, context, most_N[part])
        owner_N[part] = np.where(better, number, owner_N[part])
    return owner_N


def best_span(windows: Sequence[Window], n_best: int, longest: int) -> tuple[int, int] | None:
    """The span with the greatest sum of its start's and its end's scores, over all windows.

    A start counts only in the window that owns it. Starts and ends are sought among the best ones
    of each window's segment, special tokens and question included, as in BERT's code for SQuAD; so
    a model that points there may have no answer.

    Args:
      windows: of one context, in their order.
      n_best: how many starts and ends of a window are looked at.
      longest: tokens of an answer at most.

    Returns:
      First and last token in the context; of equal spans that of the first window and the best
      start. None: there is no valid span.
    """
    owner_N = owners(windows)
    best, found = -np.inf, None
    for number, window in enumerate(windows):
        start_A, end_A = (
            np.argsort(-scores_S, kind="stable")[:n_best]
            for scores_S in (window.starts_S, window.ends_S)
        )
        first_A, last_A = start_A - window.at, end_A - window.at
        inside_A = (first_A >= 0) & (first_A < window.size)
        here_A = np.where(inside_A, first_A, 0) + window.first
        owned_A = inside_A & (owner_N[here_A] == number)
        length_AxA = last_A - first_A[:, None] + 1
        valid_AxA = owned_A[:, None] & (last_A < window.size)
        valid_AxA &= (length_AxA >= 1) & (length_AxA <= longest)
        sums_AxA = window.starts_S[start_A].astype(np.float64)[:, None] + window.ends_S[end_A]
        sums_AxA = np.where(valid_AxA, sums_AxA, -np.inf)
        i, j = np.unravel_index(sums_AxA.argmax(), sums_AxA.shape)
        if sums_AxA[i, j] > best:
            best, found = sums_AxA[i, j], (int(here_A[i]), int(last_A[j]) + window.first)
    return found
