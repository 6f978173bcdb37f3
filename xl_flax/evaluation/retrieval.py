"""Sentence retrieval: is the nearest sentence of the other language the translation?"""

import dataclasses
import functools
from collections.abc import Sequence

import gin
import numpy as np

from xl_flax.checkpoints.description import Description
from xl_flax.data.prepare import DatasetSpec
from xl_flax.errors import UserError
from xl_flax.evaluation import report
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.results import MACRO, Result
from xl_flax.evaluation.scores import NEIGHBOURS, Similarity, precision_at_1
from xl_flax.evaluation.sentences import SentenceEvaluation, centred
from xl_flax.models.heads import Model

# Of the languages of a result; XTREME's Tatoeba scores are those of ("eng", other) by this.
DIRECTION = "query>searched"


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SentenceRetrieval(SentenceEvaluation):
    """P@1 of nearest-neighbour search between pairs of languages of a mixture.

    The candidates are all sentences of the other language (as in Tatoeba: Artetxe and Schwenk,
    2019, doi:10.1162/tacl_a_00288). A query whose best candidates tie gets the share of them that
    is right, so an encoder that maps everything to one point scores 1/n and not 1. By "margin",
    also LASER's xSIM error rate, 100 · (1 - P@1).
    """

    similarity: Sequence[Similarity] = ("cosine",)  # each is scored, of one embedding

    def signatures(self, description: Description, context: Context) -> list[str]:
        """Of the results that a call will give: one per mixture, layer and similarity."""
        self._check()
        sets = [[need] for need in self.datasets] + (
            [self.datasets] if len(self.datasets) > 1 else []
        )
        return [
            self._maker(needs, layer, similarity, description, context).keywords["signature"]
            for needs in sets
            for layer in self.encoding(description).layers
            for similarity in self.similarity
        ]

    def __call__(self, model: Model, description: Description, context: Context) -> list[Result]:
        """Evaluates one checkpoint.

        Returns:
          Per mixture, layer and similarity: "p@1" of each ordered pair (query language, language
          searched), "p@1_mean" of its two directions, and means over ordered pairs: of all as
          ("macro",), and by language as (language, "macro") where it is the query's and ("macro",
          language) where it is searched. By margin, all of them also as "xsim". The means come
          over all mixtures, too, if there are several.

        Raises:
          UserError: the tasks are not aligned, a setting is wrong, a mixture lacks the pivot,
            embeddings are not finite.
        """
        self._check()
        for need in self.datasets:
            self.pairs(need, context.aligned(*need))
        results, by_setting = [], {}
        for need, layer, vectors in self.vectors(model, description, context):
            if self.center:
                vectors = {language: centred(x) for language, x in vectors.items()}
            for similarity in self.similarity:
                make = self._maker([need], layer, similarity, description, context)
                pairs = self.pairs(need, vectors)
                found = _pairs(vectors, pairs, similarity, make)
                by_setting.setdefault((layer, similarity), []).extend(found)
                results += found + _means(found, make)
        if len(self.datasets) > 1:
            for (layer, similarity), found in by_setting.items():
                make = self._maker(self.datasets, layer, similarity, description, context)
                results += _means(found, make)
        return results + [
            dataclasses.replace(r, metric="xsim", value=100 * (1 - r.value))
            for r in results
            if (r.metric, r.similarity) == ("p@1", "margin")
        ]

    def table(self, results: Sequence[Result]) -> str:
        """What the console shows."""
        return report.retrieval(results)

    def _check(self) -> None:
        asked = self.similarity
        if isinstance(asked, str) or not asked or not set(asked) <= set(NEIGHBOURS):
            raise UserError(
                f"SentenceRetrieval.similarity = {asked!r}: give a list of some of "
                + ", ".join(map(repr, NEIGHBOURS))
            )

    def _maker(
        self,
        needs: Sequence[DatasetSpec],
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
        make = self.result_maker("retrieval", needs, layer, description, context, **how)
        return functools.partial(make, similarity=similarity)


def _pairs(
    vectors: dict[str, np.ndarray], pairs: Sequence[tuple[str, str]], similarity: Similarity, make
) -> list[Result]:
    results = []
    for a, b in pairs:
        forward, backward = precision_at_1(vectors[a], vectors[b], similarity)
        n = len(vectors[a])
        results += [
            make(languages=(a, b), metric="p@1", value=forward, n=n),
            make(languages=(b, a), metric="p@1", value=backward, n=n),
            make(languages=(a, b), metric="p@1_mean", value=(forward + backward) / 2, n=2 * n),
        ]
    return results


def _means(pairs: Sequence[Result], make) -> list[Result]:
    """Unweighted means over ordered pairs: of all, and by the language on either side."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for result in pairs:
        if result.metric == "p@1":
            query, searched = result.languages
            for group in ((query, MACRO), (MACRO, searched), (MACRO,)):
                groups.setdefault(group, []).append(result.value)
    return [
        make(languages=group, metric="p@1", value=float(np.mean(values)), n=len(values))
        for group, values in sorted(groups.items())
        if len(values) > 1
    ]
