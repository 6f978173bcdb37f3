"""How alike languages are represented: centred kernel alignment of translations."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import gin
import numpy as np
from scipy.sparse import csr_array, issparse

from xl_flax.data.prepare import DatasetSpec
from xl_flax.evaluation import report_representation as report
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.pairs import Number, PairEvaluation, PairVectors
from xl_flax.evaluation.results import MACRO, Result
from xl_flax.evaluation.search import SIMILARITIES, Vectors, products
from xl_flax.evaluation.sentences import Space

SUMMED = 2**16  # products that are added up in float32


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

    def compare(
        self, spec: DatasetSpec, space: Space, vectors: PairVectors, context: Context
    ) -> Iterator[tuple[None, Number]]:
        """Of each pair "cka" and "cka_shuffled", between 0 and 1, n sentences each."""
        pairs = self.pairs(spec, self.texts(spec, context))
        # A baseline's vectors of a language depend on the other one of the pair.
        for together in [pairs] if space.model is None else [[pair] for pair in pairs]:
            of: dict[str, Vectors] = {}
            for pair in together:
                of |= zip(pair, vectors(*pair), strict=True)
            row = {language: i for i, language in enumerate(of)}
            cka_Px2 = linear_cka([*of.values()], [(row[a], row[b]) for a, b in together])
            for pair, values in zip(together, cka_Px2.tolist(), strict=True):
                for metric, value in zip(("cka", "cka_shuffled"), values, strict=True):
                    yield None, Number(pair, metric, value, of[pair[0]].shape[0])

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


def linear_cka(vectors: Sequence[Vectors], pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """⟨K, L⟩ / (‖K‖ ‖L‖) of centred kernels K = XXᵀ and L = YYᵀ (Kornblith et al. 2019, eq. 3).

    It equals ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) of centred columns (eq. 4), which is computed where it takes
    less: kernels are made once for each language, these products anew for each pair.

    Args:
      vectors: [N, D] for each language, of the same sentences; all are sparse, or none is.
      pairs: numbers of two languages each.

    Returns:
      float64[pairs, 2]: it, and the same with the second language's sentences in a fixed random
      order; between 0 and 1, and 0 where all vectors of a language are equal.
    """
    n, many, width = vectors[0].shape[0], len(vectors), max(v.shape[1] for v in vectors)
    order_N = np.random.default_rng(0).permutation(n)
    by_features = width**2 * (many + 2 * len(pairs)) < n * many * (2 * width + many)
    if issparse(vectors[0]) or not by_features:
        own_L, inner_Px2 = _inner_products_of_kernels(vectors, pairs, order_N)
    else:
        own_L, inner_Px2 = _inner_products_of_features(vectors, pairs, order_N)
    norm_P = np.sqrt([own_L[a] * own_L[b] for a, b in pairs])
    cka_Px2 = inner_Px2 / np.where(norm_P == 0, 1, norm_P)[:, None]
    return np.clip(np.where(norm_P[:, None] == 0, 0, cka_Px2), 0, 1)


def _inner_products_of_features(
    vectors: Sequence[np.ndarray], pairs: Sequence[tuple[int, int]], order_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """‖XᵀX‖² of each language, and ‖YᵀX‖² of each pair, in order and not; see `linear_cka`."""
    centred = [_centred(v) for v in vectors]
    inner = lambda x, y: np.square(y.T @ x).sum(dtype=np.float64)  # noqa: E731
    own = [inner(x, x) for x in centred]
    both = [
        (inner(centred[a], centred[b]), inner(centred[a], centred[b][order_N])) for a, b in pairs
    ]
    return np.array(own), np.array(both)


def _inner_products_of_kernels(
    vectors: Sequence[Vectors], pairs: Sequence[tuple[int, int]], order_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same from a few rows of all kernels at a time."""
    n, many = len(order_N), len(vectors)
    kernels = [_kernel_rows_sparse(v) if issparse(v) else _kernel_rows(v) for v in vectors]
    inner_LxL, shuffled_LxL = np.zeros((2, many, many))
    count = max(1, min(SIMILARITIES // (2 * many), SUMMED) // n)
    for first in range(0, n, count):
        rows = np.arange(first, min(first + count, n))
        k = np.stack([kernel(rows).ravel() for kernel in kernels])
        inner_LxL += k @ k.T
        shuffled_LxL += k @ np.stack([k(order_N[rows])[:, order_N].ravel() for k in kernels]).T
    own_L = inner_LxL.diagonal().copy()
    if issparse(vectors[0]):  # what is left of equal vectors are rounding errors
        own_L[own_L < 1e-26 * np.square([v.multiply(v).sum() for v in vectors])] = 0
    return own_L, np.array([(inner_LxL[a, b], shuffled_LxL[a, b]) for a, b in pairs])


def _centred(v_NxD: np.ndarray) -> np.ndarray:
    """Without the mean, and as large as 1: float32 has no room for fourth powers of all others."""
    x_NxD = v_NxD - v_NxD.mean(axis=0, dtype=np.float64)
    largest = abs(x_NxD).max()
    equal = largest <= 1e-13 * abs(v_NxD).max()  # rounding errors
    return np.zeros_like(v_NxD) if equal else (x_NxD / largest).astype(np.float32)


def _kernel_rows(v_NxD: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function that gives rows of the centred kernel by their numbers."""
    x_NxD = _centred(v_NxD)
    return lambda rows: x_NxD[rows] @ x_NxD.T


def _kernel_rows_sparse(v_NxD: csr_array) -> Callable[[np.ndarray], np.ndarray]:
    """The same; centred vectors would not be sparse."""
    v = v_NxD.astype(np.float64)
    mean_N = v @ np.asarray(v.sum(axis=0)).ravel() / v.shape[0]
    return lambda rows: products(v[rows], v) - mean_N[rows, None] - mean_N + mean_N.mean()
