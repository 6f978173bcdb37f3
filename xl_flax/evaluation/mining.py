"""Bitext mining: which sentences of two collections are translations of one another?"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import gin
import numpy as np
from annotated_types import Interval

from xl_flax.data.prepare import DatasetSpec
from xl_flax.errors import UserError
from xl_flax.evaluation import report_pairs as report
from xl_flax.evaluation.centring import centred, noted
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.pairs import Number, PairEvaluation, PairVectors
from xl_flax.evaluation.results import MACRO, Result
from xl_flax.evaluation.scores import NEIGHBOURS, ratio_margins
from xl_flax.evaluation.search import Vectors, unit
from xl_flax.evaluation.sentences import Space

K = NEIGHBOURS["margin"]


class Mined(NamedTuple):
    """Pairs of rows, the best first; each row is in one pair at most."""

    x: np.ndarray  # int64[pairs], rows of the first collection
    y: np.ndarray  # int64[pairs], rows of the second
    score: np.ndarray  # float64[pairs], descending


class Scores(NamedTuple):
    """Of mined pairs against the right ones."""

    precision: float
    recall: float
    f1: float


@gin.configurable
@dataclasses.dataclass(frozen=True)
class BitextMining(PairEvaluation):
    """Precision, recall and F1 of mining, after BUCC (Zweigenbaum et al. 2018).

    Of an aligned mixture a hash of the sentence's number makes a dev and a test half. In each, a
    share `gold` of the sentences is there in both languages of a pair; of the others only one side
    is, the first language's or the second's. Mining (`mine`) sees the two collections; a threshold
    on its scores is tuned for F1 on dev and applied to test. A sentence that is empty or repeated
    in either language is left out, and counted.
    """

    gold: Annotated[float, Interval(gt=0, le=1)] = 0.5  # share whose translation is there

    def signed(self, spaces: Sequence[Space], context: Context) -> list[str]:
        """One per mixture and space.

        Raises:
          UserError: the tasks are not aligned, a setting is wrong, or a pair has too few sentences
            or none with a translation.
        """
        for spec in self.mixtures(context):
            self._halves(spec, context)
        return super().signed(spaces, context)

    def compare(
        self, spec: DatasetSpec, space: Space, vectors: PairVectors, context: Context
    ) -> Iterator[tuple[None, Number]]:
        """Mines each pair.

        "precision" (n = pairs mined), "recall" and "f1" (n = right pairs) on test, "dev_f1", and
        the "threshold" that was tuned.
        """
        for pair, dev_test in self._halves(spec, context).items():
            for number in score_pair(pair, dev_test, vectors(*pair), self.centers(space)):
                yield None, number

    def averaged_as(self, result: Result) -> list[tuple[str, ...]]:
        """All pairs; a threshold has no mean."""
        return [] if result.metric == "threshold" else [(MACRO,)]

    def table(self, results: Sequence[Result]) -> str:
        """Macro F1 by layer, then the pairs in the layer that is best on the dev half."""
        return noted(self.center, report.mining(results))

    def details(self, results: Sequence[Result]) -> str:
        """All pairs, where they are many."""
        return noted(self.center, report.mining_details(results))

    def _halves(
        self, spec: DatasetSpec, context: Context
    ) -> dict[tuple[str, str], tuple["Half", "Half"]]:
        """For each pair of languages its dev and test `Half`."""
        texts = self.texts(spec, context)
        key = ("mining", spec, tuple(texts), self.gold, self.pivot)
        return context.once(key, lambda: self._split(spec, texts))

    def _split(self, spec: DatasetSpec, examples: dict[str, list[np.ndarray]]) -> dict:
        first = {language: _first_occurrences(s) for language, s in examples.items()}
        pairs = {}
        for a, b in self.pairs(spec, examples):
            kept = first[a] & first[b]
            where = f"{spec.mixture}, {a}-{b}"
            if left_out := int((~kept).sum()):
                print(f"{where}: {left_out:,} empty or repeated sentences are left out of mining")
            pairs[a, b] = halves(kept, self.gold)
            for name, half in zip(("dev", "test"), pairs[a, b], strict=True):
                if not half.gold:
                    raise UserError(
                        f"{where}: no sentence of the {name} half has its translation present; "
                        "raise BitextMining.gold or use a larger mixture"
                    )
                if min(len(half.x), len(half.y)) < K:
                    raise UserError(
                        f"{where}: the {name} half has {len(half.x)} and {len(half.y)} sentences; "
                        f"mining takes {K} or more, use a larger mixture"
                    )
        return pairs

    def template(
        self, specs: Sequence[DatasetSpec], space: Space, way: None, context: Context
    ) -> functools.partial:
        """As of `PairEvaluation`."""
        how = {
            "similarity": "ratio_margin",
            "k": K,
            "retrieval": "max",
            "halves": "index_hash",
            "sentences": "distinct",
            "gold": self.gold,
            "pivot": self.pivot or "none",
            "threshold": "dev",
        }
        return self.result_template("mining", specs, space, context, **how)


class Half(NamedTuple):
    """Two collections; numbers in the mixture, int[n]."""

    x: np.ndarray
    y: np.ndarray

    @property
    def gold(self) -> int:
        """Sentences that are in both."""
        return len(np.intersect1d(self.x, self.y))


def halves(kept: np.ndarray, gold: float) -> tuple[Half, Half]:
    """Deals sentences out by a hash of their number, which is all that decides about each.

    Args:
      kept: bool[n], which sentences take part.
      gold: share of them that is in both collections.

    Returns:
      dev, test.
    """
    draw = _hash(np.arange(len(kept)))
    place = (draw >> np.uint64(12)) / 2.0**52
    both, in_x = place < gold, place < (1 + gold) / 2
    in_y = both | ~in_x
    is_dev = draw % np.uint64(2) == 0
    return tuple(
        Half(np.flatnonzero(part & in_x & kept), np.flatnonzero(part & in_y & kept))
        for part in (is_dev, ~is_dev)
    )


def mine(x_NxD: Vectors, y_MxD: Vectors, k: int = K) -> Mined:
    """Pairs by ratio margin, greedily, as LASER's mine_bitexts with `--retrieval max`.

    Each sentence of either side proposes the best of its k nearest (Artetxe and Schwenk 2019,
    arXiv:1811.01136); of all proposals, the best first, one is taken if neither of its sentences is
    in a pair yet.

    Args:
      x_NxD: of length 1.
      y_MxD: of length 1.
      k: neighbours.

    Raises:
      UserError: one side has fewer than k sentences, or values are not finite.
    """
    proposals = []
    for score, index in ratio_margins(x_NxD, y_MxD, k):
        best = score.argmax(axis=1)[:, None]
        own = np.arange(len(score))
        proposals.append(
            (
                own,
                np.take_along_axis(index, best, 1)[:, 0],
                np.take_along_axis(score, best, 1)[:, 0],
            )
        )
    (fx, fy, fs), (by, bx, bs) = proposals
    x, y, score = np.concatenate([fx, bx]), np.concatenate([fy, by]), np.concatenate([fs, bs])
    order = np.argsort(-score, kind="stable")
    free_x, free_y = [True] * x_NxD.shape[0], [True] * y_MxD.shape[0]
    taken = []
    for i, a, b in zip(order.tolist(), x[order].tolist(), y[order].tolist(), strict=True):
        if free_x[a] and free_y[b]:
            free_x[a] = free_y[b] = False
            taken.append(i)
    return Mined(x[taken], y[taken], score[taken].astype(np.float64))


def tune_threshold(score: np.ndarray, right: np.ndarray, gold: int) -> float:
    """The threshold of best F1: midway to the first score that falls below it.

    Args:
      score: float[n], descending.
      right: bool[n], which pairs are right.
      gold: number of right pairs that there are, found or not.
    """
    hits = np.cumsum(right)
    f1 = 2 * hits / (np.arange(1, len(score) + 1) + gold)
    next_score = np.append(score[1:], -np.inf)
    f1[score == next_score] = -1  # a threshold cannot part equal scores
    best = int(np.argmax(f1))
    if best + 1 == len(score):
        return float(score[best])
    return (float(score[best]) + float(score[best + 1])) / 2


def evaluate_pairs(right: np.ndarray, gold: int) -> Scores:
    """Precision, recall and their harmonic mean; 0 if nothing was mined.

    Args:
      right: bool[n], which of the mined pairs are right.
      gold: number of right pairs that there are, found or not.
    """
    hits = int(right.sum())
    return Scores(hits / max(len(right), 1), hits / gold, 2 * hits / (len(right) + gold))


def score_pair(
    pair: tuple[str, str],
    dev_test: tuple[Half, Half],
    vectors: tuple[Vectors, Vectors],
    center: bool,
) -> list[Number]:
    """Mines both halves, the test half with the threshold that is best on dev."""
    mined, right = [], []
    for half in dev_test:
        x, y = vectors[0][half.x], vectors[1][half.y]
        if center:
            x, y = centred(x), centred(y)
        pairs = mine(unit(x), unit(y))
        mined.append(pairs)
        right.append(half.x[pairs.x] == half.y[pairs.y])
    (dev, test), (dev_mined, test_mined) = dev_test, mined
    threshold = tune_threshold(dev_mined.score, right[0], dev.gold)
    on_dev = evaluate_pairs(right[0][dev_mined.score >= threshold], dev.gold)
    accepted = right[1][test_mined.score >= threshold]
    on_test = evaluate_pairs(accepted, test.gold)
    rows = [
        ("precision", on_test.precision, len(accepted)),
        ("recall", on_test.recall, test.gold),
        ("f1", on_test.f1, test.gold),
        ("dev_f1", on_dev.f1, dev.gold),
        ("threshold", threshold, dev.gold),
    ]
    return [Number(pair, metric, float(value), n) for metric, value, n in rows]


def _first_occurrences(sentences: Sequence[np.ndarray]) -> np.ndarray:
    """bool[n]: is the sentence neither empty nor equal to one before?"""
    seen: set[bytes] = {b""}
    return np.array(
        [(key := s.tobytes()) not in seen and not seen.add(key) for s in sentences], bool
    )


def _hash(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea and Flood 2014): uint64, well mixed."""
    z = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))
