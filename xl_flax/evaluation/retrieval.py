"""Sentence retrieval: is the nearest sentence of the other language the translation?"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated

import gin
import numpy as np
from annotated_types import Len, doc

from xl_flax.data.mixtures import mixture_names
from xl_flax.data.prepare import DatasetSpec
from xl_flax.evaluation import report_pairs as report
from xl_flax.evaluation.base import Evaluation
from xl_flax.evaluation.centring import centred, noted
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.pairs import Embedded, Number, PairEvaluation, PairVectors
from xl_flax.evaluation.results import MACRO, Result
from xl_flax.evaluation.scores import NEIGHBOURS, Similarity, found_at_1
from xl_flax.evaluation.sentences import Space, is_about
from xl_flax.evaluation.unshared import share_a_string
from xl_flax.settings import MixtureNames

# Of the languages of a result; XTREME's Tatoeba scores are those of ("eng", other) by this.
DIRECTION = "query>searched"
VALIDATION = "validation"
Similarities = Annotated[
    Sequence[Similarity], Len(1), doc(f"a list of some of {', '.join(map(repr, NEIGHBOURS))}")
]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SentenceRetrieval(PairEvaluation):
    """P@1 of nearest-neighbour search between pairs of languages of a mixture.

    The candidates are all sentences of the other language (as in Tatoeba: Artetxe and Schwenk,
    2019, doi:10.1162/tacl_a_00288). A query whose best candidates tie gets the share of them that
    is right, so an encoder that maps everything to one point scores 1/n and not 1. By "margin",
    also LASER's xSIM error rate, 100 · (1 - P@1).

    "p@1_unshared" is the same without the queries whose translation shares a digit or a string of
    four letters or digits, which stay candidates: numerals and names are found without knowing a
    language.
    """

    similarity: Similarities = ("cosine",)  # each is scored, of one embedding
    # Aligned text whose validation split says which layer is shown, by the mean over all its pairs
    # and the first similarity; all its languages. None: the test does, which must not be quoted.
    choose_on: MixtureNames | None = None

    def __post_init__(self):
        super().__post_init__()
        both = {*mixture_names(self.choose_on or ())} & {*mixture_names(self.mixture)}
        if both and self.split == VALIDATION:
            self.fail(
                f"choose_on = {self.choose_on!r}: {', '.join(sorted(both))}/{VALIDATION} is what "
                "is tested; name other text"
            )

    @property
    def parts(self) -> list[Evaluation]:
        """The test, and the same on `choose_on`."""
        if self.choose_on is None:
            return [self]
        # Languages are chosen of the test's mixtures, and others may lack them.
        on = {"mixture": self.choose_on, "split": VALIDATION, "languages": None, "choose_on": None}
        return [self, dataclasses.replace(self, **on)]

    @property
    def ways(self) -> Sequence[Similarity]:
        """The similarities."""
        return self.similarity

    def compare(
        self, spec: DatasetSpec, space: Space, vectors: PairVectors, context: Context
    ) -> Iterator[tuple[Similarity, Number]]:
        """Both directions of each pair.

        "p@1" of (query language, language searched), "p@1_mean" of both, and "p@1_unshared" where
        there are such queries, n of them.
        """
        for pair, shared_N in self._shared(spec, context).items():
            x, y = vectors(*pair)
            if self.centers(space):
                x, y = centred(x), centred(y)
            for similarity in self.similarity:
                for number in _numbers(pair, found_at_1(x, y, similarity), shared_N):
                    yield similarity, number

    def averaged_as(self, result: Result) -> list[tuple[str, ...]]:
        """All ordered pairs, those of a query's language, those of a language searched.

        They are ("macro",), (language, "macro") and ("macro", language).
        """
        if result.metric == "p@1_mean":
            return []
        query, searched = result.languages
        return [(query, MACRO), (MACRO, searched), (MACRO,)]

    def means(self, results: Iterable[Result], template: Callable[..., Result]) -> list[Result]:
        """Those over several ordered pairs."""
        return [mean for mean in super().means(results, template) if mean.n > 1]

    def score(self, embedded: Iterable[Embedded], context: Context) -> list[Result]:
        """The results; "p@1" by margin also as "xsim"."""
        results = super().score(embedded, context)
        return results + [
            dataclasses.replace(r, metric="xsim", value=100 * (1 - r.value))
            for r in results
            if (r.metric, r.similarity) == ("p@1", "margin")
        ]

    def _shared(self, spec: DatasetSpec, context: Context) -> dict[tuple[str, str], np.ndarray]:
        """For each pair of languages, bool[N], which sentences share a string."""
        texts = self.texts(spec, context)
        pairs = tuple(self.pairs(spec, texts))
        count = functools.partial(share_a_string, texts, pairs, context.vocabulary)
        return context.once(("shared", spec, pairs), count)

    def table(self, results: Sequence[Result]) -> str:
        """The mean by layer, then languages or pairs in the layer that is chosen."""
        return noted(self.center, report.retrieval(*self._divided(results)))

    def details(self, results: Sequence[Result]) -> str:
        """All pairs in that layer, where they are too many for the table."""
        return noted(self.center, report.retrieval_details(*self._divided(results)))

    def _divided(self, results: Sequence[Result]) -> tuple[list[Result], list[Result]]:
        """Those of the test, and those of `choose_on`."""
        specs = [spec for part in self.parts[1:] for spec in part.datasets]
        choice = [r for r in results if is_about(r, specs)]
        return [r for r in results if not is_about(r, specs)], choice

    def template(
        self, specs: Sequence[DatasetSpec], space: Space, way: Similarity, context: Context
    ) -> functools.partial:
        """As of `PairEvaluation`."""
        how = {
            "direction": DIRECTION,
            "similarity": "ratio_margin" if way == "margin" else way,
            "k": NEIGHBOURS[way] or "none",
            "candidates": "one_language",
        } | ({"pivot": self.pivot} if self.pivot else {})
        template = self.result_template("retrieval", specs, space, context, **how)
        return functools.partial(template, similarity=way)


def _numbers(
    pair: tuple[str, str], both: tuple[np.ndarray, np.ndarray], shared_N: np.ndarray
) -> Iterator[Number]:
    """Of what `found_at_1` gave for a pair."""
    yield Number(pair, "p@1_mean", float(np.mean(both)), 2 * len(shared_N))
    for languages, found_N in zip((pair, pair[::-1]), both, strict=True):
        for metric, own in (("p@1", found_N), ("p@1_unshared", found_N[~shared_N])):
            if own.size:
                yield Number(languages, metric, float(own.mean()), own.size)
