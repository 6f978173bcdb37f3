"""Answers that need no model: what stands among the words of the question.

Shapes: N tokens of a context, R candidates.
"""

import numpy as np


def overlap_span(
    question: np.ndarray, context: np.ndarray, can_answer_N: np.ndarray, longest: int
) -> tuple[int, int] | None:
    """The run of tokens with the greatest weight of the question's tokens around it.

    After the sliding window of Richardson et al. (2013, MCTest, §4.1), a baseline of Rajpurkar et
    al. (2016, SQuAD, §5.1): a token of the question that occurs c times in the context weighs
    log(1 + 1/c) where it stands near a candidate, here no farther than the question is long.
    Candidates are not the constituents of a parse, but the runs of tokens between those of the
    question, cut to `longest`.

    Args:
      question: int[n] its tokens.
      context: int[N].
      can_answer_N: bool, tokens of which a candidate needs one: no punctuation.
      longest: tokens of an answer at most.

    Returns:
      First and last token; of equal runs the first one, and None if there is no candidate.
    """
    _, inverse, count = np.unique(context, return_inverse=True, return_counts=True)
    asked_N = np.isin(context, question)
    weight_N = np.where(asked_N, np.log1p(1 / count[inverse]), 0)
    edges = np.flatnonzero(np.diff(asked_N, prepend=True, append=True))
    first_R, behind_R = edges[::2], edges[1::2]
    behind_R = np.minimum(behind_R, first_R + longest)
    can = np.concatenate([[0], np.cumsum(can_answer_N)])
    kept_R = can[behind_R] > can[first_R]
    if not kept_R.any():
        return None
    first_R, behind_R = first_R[kept_R], behind_R[kept_R]
    sums = np.concatenate([[0], np.cumsum(weight_N)])
    near = len(question)
    around_R = sums[np.minimum(behind_R + near, len(context))] - sums[np.maximum(first_R - near, 0)]
    best = int(around_R.argmax())
    return int(first_R[best]), int(behind_R[best]) - 1
