"""Sentence retrieval: is the nearest sentence of the other language the translation?"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Annotated

import gin
import numpy as np
from annotated_types import Len, doc

from xl_flax.checkpoints.description import Description
from xl_flax.data.prepare import DatasetSpec
from xl_flax.evaluation import report
from xl_flax.evaluation.base import Subject
from xl_flax.evaluation.centring import centred, noted
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.results import MACRO, Result
from xl_flax.evaluation.scores import NEIGHBOURS, Similarity, found_at_1
from xl_flax.evaluation.sentences import SentenceEvaluation
from xl_flax.evaluation.unshared import share_a_string

# Of the languages of a result; XTREME's Tatoeba scores are those of ("eng", other) by this.
DIRECTION = "query>searched"
Similarities = Annotated[
    Sequence[Similarity], Len(1), doc(f"a list of some of {', '.join(map(repr, NEIGHBOURS))}")
]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SentenceRetrieval(SentenceEvaluation):
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

    def signatures(self, description: Description, context: Context) -> list[str]:
        """One per mixture, layer and similarity.

        Raises:
          UserError: the tasks are not aligned, or a mixture lacks the pivot.
        """
        for spec in self.mixtures(context):
            self.pairs(spec, self.texts(spec, context))
        return [
            self._template(specs, layer, similarity, description, context).keywords["signature"]
            for specs in self.scopes(context)
            for layer in self.encoding(description).layers
            for similarity in self.similarity
        ]

    def __call__(self, subject: Subject, context: Context) -> list[Result]:
        """Evaluates one subject.

        Returns:
          Per mixture, layer and similarity: "p@1" of each ordered pair (query language, language
          searched), "p@1_mean" of its two directions, and means over ordered pairs: of all as
          ("macro",), and by language as (language, "macro") where it is the query's and ("macro",
          language) where it is searched. By margin, all of them also as "xsim". And
          "p@1_unshared" of the pairs that have such queries, n of them, with the same means. The
          means come over all mixtures, too, if there are several.

        Raises:
          NotFiniteError: embeddings are NaN or infinite.
          UserError: as `signatures`.
        """
        description = subject.description
        self.signatures(description, context)  # checks the settings before anything is encoded
        results: list[Result] = []
        all_pairs: dict[tuple[int, Similarity], list[Result]] = {}
        for spec, layer, vectors in self.vectors(subject, context):
            if self.center is True:
                vectors = {language: centred(x) for language, x in vectors.items()}
            for similarity in self.similarity:
                template = self._template([spec], layer, similarity, description, context)
                pairs = _pairs(vectors, self._shared(spec, context), similarity, template)
                all_pairs.setdefault((layer, similarity), []).extend(pairs)
                results += pairs + _means(pairs, template)
        if len(sets := self.mixtures(context)) > 1:
            for (layer, similarity), pairs in all_pairs.items():
                template = self._template(sets, layer, similarity, description, context)
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
        """The mean by layer, then languages or pairs in the best layer."""
        return noted(self.center, report.retrieval(results))

    def details(self, results: Sequence[Result]) -> str:
        """All pairs in the best layer, where they are too many for the table."""
        return noted(self.center, report.retrieval_details(results))

    def _template(
        self,
        specs: Sequence[DatasetSpec],
        layer: int,
        similarity: Similarity,
        description: Description,
        context: Context,
    ) -> functools.partial:
        how = {
            "direction": DIRECTION,
            "similarity": "ratio_margin" if similarity == "margin" else similarity,
            "k": NEIGHBOURS[similarity] or "none",
            "candidates": "one_language",
        } | ({"pivot": self.pivot} if self.pivot else {})
        template = self.result_template("retrieval", specs, layer, description, context, **how)
        return functools.partial(template, similarity=similarity)


def _pairs(
    vectors: dict[str, np.ndarray],
    shared: dict[tuple[str, str], np.ndarray],
    similarity: Similarity,
    template: Callable[..., Result],
) -> list[Result]:
    results = []
    for (a, b), shared_N in shared.items():
        forward_N, backward_N = found_at_1(vectors[a], vectors[b], similarity)
        n, mean = len(shared_N), float(np.mean([forward_N, backward_N]))
        results.append(template(languages=(a, b), metric="p@1_mean", value=mean, n=2 * n))
        for pair, found_N in (((a, b), forward_N), ((b, a), backward_N)):
            for metric, own in (("p@1", found_N), ("p@1_unshared", found_N[~shared_N])):
                if own.size:
                    value = float(own.mean())
                    results.append(template(languages=pair, metric=metric, value=value, n=own.size))
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
