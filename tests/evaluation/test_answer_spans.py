"""The best span over windows: that of a plain search, and of one long window."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xl_flax.evaluation.answer_overlap import overlap_span
from xl_flax.evaluation.answer_spans import Window, best_span, owners


def windows_of(starts, ends, room, stride, before=3):
    """Windows of a context, each behind [CLS] and a question that score nothing."""
    windows, first = [], 0
    while True:
        size = min(room, len(starts) - first)
        part = slice(first, first + size)
        aside = np.full(before, -100.0)
        scores = [np.concatenate([aside, x[part], [-100.0]]) for x in (starts, ends)]
        windows.append(Window(first, before, size, *scores))
        if first + size == len(starts):
            return windows
        first += size - stride


@st.composite
def contexts(draw):
    size = draw(st.integers(1, 40))
    # Few values, so that many are equal.
    values = st.lists(st.integers(-3, 3).map(float), min_size=size, max_size=size).map(np.array)
    return draw(values), draw(values)


def plain(starts, ends, longest):
    spans = [
        (first, last)
        for first in range(len(starts))
        for last in range(first, min(len(starts), first + longest))
    ]
    return max(starts[first] + ends[last] for first, last in spans)


@given(contexts(), st.integers(1, 6), st.integers(1, 5))
def test_windows_give_the_answer_of_one_long_window(scores, longest, more):
    starts, ends = scores
    stride = 2 * longest  # so that the window which owns a start holds the whole answer
    first, last = best_span(windows_of(*scores, stride + more, stride), 10**6, longest)
    assert 0 <= first <= last < len(starts) and last - first < longest
    assert starts[first] + ends[last] == plain(*scores, longest)


def naive(windows, n_best, longest):
    """BERT's procedure, word by word: candidates of all windows, sorted by their sums."""
    best_context = {}
    for number, window in enumerate(windows):
        for i in range(window.size):
            context = min(i, window.size - 1 - i) + 0.01 * window.size
            place = window.first + i
            if place not in best_context or context > best_context[place][0]:
                best_context[place] = context, number
    candidates = []
    for number, window in enumerate(windows):
        order = [
            sorted(range(len(x)), key=lambda i: x[i], reverse=True)[:n_best]
            for x in (window.starts_S.tolist(), window.ends_S.tolist())
        ]
        for start in order[0]:
            for end in order[1]:
                first, last = start - window.at, end - window.at
                if not (0 <= first < window.size and 0 <= last < window.size):
                    continue
                place = window.first + first
                if best_context[place][1] != number or last < first or last - first >= longest:
                    continue
                total = window.starts_S[start] + window.ends_S[end]
                candidates.append((total, (place, window.first + last)))
    candidates.sort(key=lambda candidate: candidate[0], reverse=True)
    return candidates[0][1] if candidates else None


@given(st.data(), st.integers(1, 5), st.integers(1, 30), st.integers(0, 5))
def test_the_best_span_is_that_of_berts_procedure(data, n_best, longest, stride):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    room = stride + data.draw(st.integers(1, 8))
    size = data.draw(st.integers(1, 30))
    windows = windows_of(np.zeros(size), np.zeros(size), room, stride)

    # A model says something else of a token in each window, and may point to [CLS].
    def draw(scores_S):
        return rng.integers(0, 9, scores_S.size) / 2

    windows = [w._replace(starts_S=draw(w.starts_S), ends_S=draw(w.ends_S)) for w in windows]
    assert best_span(windows, n_best, longest) == naive(windows, n_best, longest)


def test_a_token_belongs_to_the_window_where_it_has_most_context():
    windows = windows_of(np.zeros(10), np.zeros(10), 6, 4)
    # Tokens 0-5, 2-7 and 4-9; token 3 has 2 neighbours in the first window and 1 in the second.
    assert owners(windows).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]


def test_a_model_that_points_to_cls_has_no_answer():
    starts = np.array([9.0, 0, 0, 0])
    assert best_span([Window(0, 2, 1, starts, starts)], 1, 30) is None


def test_what_stands_among_the_words_of_the_question():
    can = np.ones(9, bool)
    context = np.array([1, 2, 3, 4, 5, 1, 7, 8, 2])
    # 3 occurs once, 1 twice: the run behind 3 has the rare word beside it.
    assert overlap_span(np.array([1, 3]), context, can, 30) == (1, 1)
    assert overlap_span(np.array([3, 5]), context, can, 30) == (3, 3)
    assert overlap_span(np.array([9]), context, can, 4) == (0, 3)
    assert overlap_span(context, context, can, 30) is None
    can[3] = False  # a comma is no answer
    assert overlap_span(np.array([3, 5]), context, can, 30) == (0, 1)
