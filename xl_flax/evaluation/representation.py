"""How alike languages are represented: centred kernel alignment of translations."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import gin
import numpy as np
from scipy.sparse import csr_array, issparse

from xl_flax.data.prepare import DatasetSpec
from xl_flax.evaluation import report_representation as report
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.pairs import Embedded, PairEvaluation
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

    def signed(self, spaces: Sequence[Space], context: Context) -> list[str]:
        """One per mixture and space.

        Raises:
          UserError: the tasks are not aligned, or a mixture lacks the pivot.
        """
        for spec in self.mixtures(context):
            self.pairs(spec, self.texts(spec, context))
        return [
            self._template(specs, space, context).keywords["signature"]
            for specs in self.scopes(context)
            for space in spaces
        ]

    def score(self, embedded: Iterable[Embedded], context: Context) -> list[Result]:
        """The results.

        Returns:
          Per mixture and space "cka" and "cka_shuffled" of each pair of languages, between 0 and 1,
          n sentences each; their unweighted means over the pairs of a language as (language,
          "macro") and over all pairs as ("macro",), over all mixtures too if there are several.
        """
        results: list[Result] = []
        by_space: dict[Space, list[Result]] = {}
        for spec, space, vectors in embedded:
            template = self._template([spec], space, context)
            pairs: list[Result] = []
            for pair in self.pairs(spec, self.texts(spec, context)):
                x, y = vectors(*pair)
                made = functools.partial(template, languages=pair, n=x.shape[0])
                own = zip(("cka", "cka_shuffled"), linear_cka(x, y), strict=True)
                pairs += [made(metric=metric, value=value) for metric, value in own]
            by_space.setdefault(space, []).extend(pairs)
            results += pairs + _means(pairs, template)
        if len(sets := self.mixtures(context)) > 1:
            for space, pairs in by_space.items():
                results += _means(pairs, self._template(sets, space, context))
        return results

    def table(self, results: Sequence[Result]) -> str:
        """The mean by layer, then each language by layer."""
        return report.similarity(results)

    def _template(
        self, specs: Sequence[DatasetSpec], space: Space, context: Context
    ) -> functools.partial:
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


def _means(pairs: Sequence[Result], template: Callable[..., Result]) -> list[Result]:
    values: dict[tuple[tuple[str, ...], str], list[float]] = {}
    for r in pairs:
        for languages in (*((language, MACRO) for language in r.languages), (MACRO,)):
            values.setdefault((languages, r.metric), []).append(r.value)
    return [
        template(languages=languages, metric=metric, value=float(np.mean(own)), n=len(own))
        for (languages, metric), own in sorted(values.items())
    ]
