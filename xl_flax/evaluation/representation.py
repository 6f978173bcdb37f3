"""How alike languages are represented: centred kernel alignment of translations."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import gin
import numpy as np
from scipy.sparse import csr_array, issparse

from xl_flax.data.prepare import DatasetSpec
from xl_flax.evaluation import report_representation as report
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.pairs import Number, PairEvaluation
from xl_flax.evaluation.results import MACRO, Result
from xl_flax.evaluation.search import SIMILARITIES, Vectors, products
from xl_flax.evaluation.sentences import Space


@gin.configurable
@dataclasses.dataclass(frozen=True)
class RepresentationSimilarity(PairEvaluation):
    """Linear CKA between the sentences of two languages and their translations.

    Centred kernel alignment (Kornblith et al. 2019, arXiv:1905.00414, eq. 4) says how far the
    distances among sentences are the same in both languages, whatever rotation lies between them:
    retrieval asks whether translations are near, this whether the two spaces have one shape, which
    a rotation would bring together (Conneau, Wu et al. 2020, arXiv:1911.01464, §5.2).

    "cka_shuffled" is the same with the sentences of one language in random order: what the spread
    of vectors alone gives, which is more the fewer sentences there are for each dimension.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.center is not False:
            self.fail(f"center = {self.center!r}: means do not count in CKA; leave it out")

    def compare(self, spec, pair, vectors, center, context) -> Iterator[tuple[None, Number]]:
        """Of a pair "cka" and "cka_shuffled", between 0 and 1, n sentences each."""
        n = vectors[0].shape[0]
        for metric, value in zip(("cka", "cka_shuffled"), linear_cka(*vectors), strict=True):
            yield None, Number(pair, metric, value, n)

    def averaged_as(self, result: Result) -> list[tuple[str, ...]]:
        """The pairs of each language, as (language, "macro"), and all pairs."""
        return [*((language, MACRO) for language in result.languages), (MACRO,)]

    def table(self, results: Sequence[Result]) -> str:
        """The mean by layer, then each language by layer."""
        return report.similarity(results)

    def template(
        self, specs: Sequence[DatasetSpec], space: Space, way: None, context: Context
    ) -> functools.partial:
        """As of `PairEvaluation`."""
        how = {"kernel": "linear"} | ({"pivot": self.pivot} if self.pivot else {})
        return self.result_template("representation", specs, space, context, **how)


def linear_cka(x_NxD: Vectors, y_NxE: Vectors) -> tuple[float, float]:
    """‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖), Frobenius norms of centred columns (Kornblith et al. 2019, eq. 4).

    Args:
      x_NxD: vectors of sentences.
      y_NxE: of their translations, in the same order; sparse if x is.

    Returns:
      It, and the same with the rows of y in a fixed random order; both between 0 and 1, and 0 where
      all vectors of a side are equal.
    """
    order_N = np.random.default_rng(0).permutation(x_NxD.shape[0])
    inner = _inner_products_sparse if issparse(x_NxD) else _inner_products
    xx, yy, *others = inner(x_NxD, y_NxE, order_N)
    norm = np.sqrt(xx * yy)
    return tuple(xy / norm if norm else 0.0 for xy in others)


def _inner_products(x_NxD: np.ndarray, y_NxE: np.ndarray, order_N: np.ndarray) -> list[float]:
    """⟨XXᵀ, YYᵀ⟩ = ‖YᵀX‖² of centred vectors: of x and x, y and y, x and y, x and y in an order."""
    x, y = ((v - v.mean(axis=0, dtype=np.float64)).astype(np.float32) for v in (x_NxD, y_NxE))
    pairs = (x, x), (y, y), (x, y), (x, y[order_N])
    return [float(np.square(b.T @ a).sum(dtype=np.float64)) for a, b in pairs]


def _inner_products_sparse(x_NxD: csr_array, y_NxE: csr_array, order_N: np.ndarray) -> list[float]:
    """The same, from the matrices of sentences by sentences, a few of their rows at a time."""
    n = x_NxD.shape[0]
    sides = [v.astype(np.float64) for v in (x_NxD, y_NxE, y_NxE[order_N])]
    means = [v @ np.asarray(v.sum(axis=0)).ravel() / n for v in sides]
    sums, rows = np.zeros(4), max(1, SIMILARITIES // n)
    for i in range(0, n, rows):
        part = slice(i, i + rows)
        x, y, shuffled = (
            products(v[part], v) - own[part, None] - own + own.mean()
            for v, own in zip(sides, means, strict=True)
        )
        sums += [np.vdot(a, b) for a, b in ((x, x), (y, y), (x, y), (x, shuffled))]
    # What is left of equal vectors are rounding errors.
    squares = [v.multiply(v).sum() for v in sides[:2]]
    sums[:2] *= sums[:2] > 1e-20 * np.square(squares)
    return sums.tolist()
