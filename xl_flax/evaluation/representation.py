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
        together = [pairs] if space.model is None else [[pair] for pair in pairs]
        for own in together:  # a control's vectors are another's in each pair
            of = {}
            for pair in own:
                of |= zip(pair, vectors(*pair), strict=True)
            number = {language: i for i, language in enumerate(of)}
            similarities = linear_cka(list(of.values()))
            for a, b in own:
                n = of[a].shape[0]
                for metric, cka_LxL in zip(("cka", "cka_shuffled"), similarities, strict=True):
                    value = float(cka_LxL[number[a], number[b]])
                    yield None, Number((a, b), metric, value, n)

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


def linear_cka(vectors: Sequence[Vectors]) -> tuple[np.ndarray, np.ndarray]:
    """⟨K, L⟩ / (‖K‖ ‖L‖) of centred kernels K = XXᵀ (Kornblith et al. 2019, eq. 3 and 4).

    The kernels, sentences by sentences, are made once for each language and a few of their rows at
    a time: of many languages a pair costs far less than the products of its vectors would.

    Args:
      vectors: of the same sentences in each of L languages; all are sparse, or none is.

    Returns:
      float64[L, L] of each pair, and the same with the column's sentences in a fixed random order;
      between 0 and 1, and 0 where all vectors of a language are equal.
    """
    n = vectors[0].shape[0]
    order_N = np.random.default_rng(0).permutation(n)
    kernel_rows = _kernel_rows_sparse if issparse(vectors[0]) else _kernel_rows
    in_order, shuffled = kernel_rows(vectors), kernel_rows([v[order_N] for v in vectors])
    inner, others = np.zeros((2, len(vectors), len(vectors)))
    rows = max(1, SIMILARITIES // (n * len(vectors)))
    for first in range(0, n, rows):
        part = slice(first, first + rows)
        k, s = (np.stack([x(part).ravel() for x in each]) for each in (in_order, shuffled))
        inner += k @ k.T
        others += k @ s.T
    # What is left of equal vectors are rounding errors.
    largest = [np.square(v.multiply(v).sum() if issparse(v) else np.vdot(v, v)) for v in vectors]
    norm = np.sqrt(inner.diagonal() * (inner.diagonal() > 1e-26 * np.array(largest)))
    norms = np.outer(norm, norm)
    return tuple(
        np.divide(x, norms, out=np.zeros_like(x), where=norms > 0) for x in (inner, others)
    )


def _kernel_rows(vectors: Sequence[np.ndarray]) -> list[Callable[[slice], np.ndarray]]:
    """For each language, a function that gives some rows of its kernel."""
    centred = [(v - v.mean(axis=0, dtype=np.float64)).astype(np.float32) for v in vectors]
    return [lambda part, v=v: v[part] @ v.T for v in centred]


def _kernel_rows_sparse(vectors: Sequence[csr_array]) -> list[Callable[[slice], np.ndarray]]:
    """The same; centred vectors would not be sparse."""

    def rows(v: csr_array, own_N: np.ndarray, part: slice) -> np.ndarray:
        return products(v[part], v) - own_N[part, None] - own_N + own_N.mean()

    every = [v.astype(np.float64) for v in vectors]
    return [
        functools.partial(rows, v, v @ np.asarray(v.sum(axis=0)).ravel() / v.shape[0])
        for v in every
    ]
