"""Sentence retrieval: is the nearest sentence of the other language the translation?"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
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
from xl_flax.evaluation.pairs import Embedded, PairEvaluation
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

    def signed(self, spaces: Sequence[Space], context: Context) -> list[str]:
        """One per mixture, space and similarity.

        Raises:
          UserError: the tasks are not aligned, or a mixture lacks the pivot.
        """
        for spec in self.mixtures(context):
            self.pairs(spec, self.texts(spec, context))
        return [
            self._template(specs, space, similarity, context).keywords["signature"]
            for specs in self.scopes(context)
            for space in spaces
            for similarity in self.similarity
        ]

    def score(self, embedded: Iterable[Embedded], context: Context) -> list[Result]:
        """The results.

        Returns:
          Per mixture, space and similarity: "p@1" of each ordered pair (query language, language
          searched), "p@1_mean" of its two directions, and means over ordered pairs: of all as
          ("macro",), and by language as (language, "macro") where it is the query's and ("macro",
          language) where it is searched. By margin, all of them also as "xsim". And
          "p@1_unshared" of the pairs that have such queries, n of them, with the same means. The
          means come over all mixtures, too, if there are several.
        """
        results: list[Result] = []
        all_pairs: dict[tuple[Space, Similarity], list[Result]] = {}
        for spec, space, vectors in embedded:
            templates = {s: self._template([spec], space, s, context) for s in self.similarity}
            own: dict[Similarity, list[Result]] = {}
            for pair, shared_N in self._shared(spec, context).items():
                x, y = vectors(*pair)
                if self.center is True and space.model is None:
                    x, y = centred(x), centred(y)
                for similarity, template in templates.items():
                    found = found_at_1(x, y, similarity)
                    own.setdefault(similarity, []).extend(_pair(pair, found, shared_N, template))
            for similarity, pairs in own.items():
                all_pairs.setdefault((space, similarity), []).extend(pairs)
                results += pairs + _means(pairs, templates[similarity])
        if len(sets := self.mixtures(context)) > 1:
            for (space, similarity), pairs in all_pairs.items():
                template = self._template(sets, space, similarity, context)
                results += _means(pairs, template)
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

    def _template(
        self,
        specs: Sequence[DatasetSpec],
        space: Space,
        similarity: Similarity,
        context: Context,
    ) -> functools.partial:
        how = {
            "direction": DIRECTION,
            "similarity": "ratio_margin" if similarity == "margin" else similarity,
            "k": NEIGHBOURS[similarity] or "none",
            "candidates": "one_language",
        } | ({"pivot": self.pivot} if self.pivot else {})
        template = self.result_template("retrieval", specs, space, context, **how)
        return functools.partial(template, similarity=similarity)


def _pair(
    pair: tuple[str, str],
    found: tuple[np.ndarray, np.ndarray],
    shared_N: np.ndarray,
    template: Callable[..., Result],
) -> list[Result]:
    """Both directions of a pair, of which `found_at_1` gave these."""
    n, mean = len(shared_N), float(np.mean(found))
    results = [template(languages=pair, metric="p@1_mean", value=mean, n=2 * n)]
    for languages, found_N in zip((pair, pair[::-1]), found, strict=True):
        for metric, own in (("p@1", found_N), ("p@1_unshared", found_N[~shared_N])):
            if own.size:
                value = float(own.mean())
                results.append(
                    template(languages=languages, metric=metric, value=value, n=own.size)
                )
    return results


def _means(pairs: Sequence[Result], template: Callable[..., Result]) -> list[Result]:
    """Unweighted means over ordered pairs: of all, and by the language on either side."""
    values: dict[tuple[str, tuple[str, ...]], list[float]] = {}
    for result in pairs:
        if result.metric in ("p@1", "p@1_unshared"):
            query, searched = result.languages
            for languages in ((query, MACRO), (MACRO, searched), (MACRO,)):
                values.setdefault((result.metric, languages), []).append(result.value)
    return [
        template(languages=languages, metric=metric, value=float(np.mean(own)), n=len(own))
        for (metric, languages), own in sorted(values.items())
        if len(own) > 1
    ]
