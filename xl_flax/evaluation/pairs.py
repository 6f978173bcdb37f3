"""Evaluations of pairs of languages, which score lexical baselines as they score a model."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from xl_flax.checkpoints.description import Description
from xl_flax.data.prepare import DatasetSpec
from xl_flax.evaluation.base import Baseline, Subject
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.lexical import LEXICAL
from xl_flax.evaluation.results import MACRO, Result, means
from xl_flax.evaluation.search import Vectors
from xl_flax.evaluation.sentences import SentenceEvaluation, Space

# float32[N, D] of the sentences of two languages. A baseline's follow from both texts; TF-IDF's
# are sparse.
PairVectors = Callable[[str, str], tuple[Vectors, Vectors]]
# A mixture, the space, and the vectors there: all that `score` is given, one after the other.
Embedded = tuple[DatasetSpec, Space, PairVectors]
Way = str | None  # of comparing vectors, as by cosine or margin; None where there is one only


class Number(NamedTuple):
    """What was measured of a pair, as in `Result`."""

    languages: tuple[str, ...]
    metric: str
    value: float
    n: int


@dataclasses.dataclass(frozen=True)
class PairEvaluation(SentenceEvaluation):
    """How well vectors of two languages' sentences go together.

    Must have `compare` and `template`; its results are the numbers of each pair, and their means.
    """

    @property
    def ways(self) -> Sequence[Way]:
        """In which the same vectors are compared; each has results, and a signature, of its own."""
        return (None,)

    def compare(
        self, spec: DatasetSpec, space: Space, vectors: PairVectors, context: Context
    ) -> Iterable[tuple[Way, Number]]:
        """The numbers of all pairs of a mixture's languages."""
        raise NotImplementedError

    def template(
        self, specs: Sequence[DatasetSpec], space: Space, way: Way, context: Context
    ) -> functools.partial:
        """`Result` without languages, metric, value and n."""
        raise NotImplementedError

    def averaged_as(self, result: Result) -> Iterable[tuple[str, ...]]:
        """The languages of the means that a pair's result counts in."""
        return [(MACRO,)]

    def signed(self, spaces: Sequence[Space], context: Context) -> list[str]:
        """The signatures of the results: one per mixture, space and way.

        Raises:
          UserError: the tasks are not aligned, or a mixture lacks the pivot.
        """
        for spec in self.mixtures(context):
            self.pairs(spec, self.texts(spec, context))
        return [
            self.template(specs, space, way, context).keywords["signature"]
            for specs in self.scopes(context)
            for space in spaces
            for way in self.ways
        ]

    def score(self, embedded: Iterable[Embedded], context: Context) -> list[Result]:
        """The results: of each mixture with their means, and means over all of several mixtures."""
        results: list[Result] = []
        every: dict[tuple[Space, Way], list[Result]] = {}
        for spec, space, vectors in embedded:
            templates = {way: self.template([spec], space, way, context) for way in self.ways}
            own = collections.defaultdict(list)
            for way, number in self.compare(spec, space, vectors, context):
                own[way].append(templates[way](**number._asdict()))
            for way, found in own.items():
                every.setdefault((space, way), []).extend(found)
                results += found + self.means(found, templates[way])
        if len(sets := self.mixtures(context)) > 1:
            for (space, way), found in every.items():
                results += self.means(found, self.template(sets, space, way, context))
        return results

    def centers(self, space: Space) -> bool:
        """Whether sentences lose the mean of those that they are among; never a control's."""
        return self.center is True and space.model is None

    def means(self, results: Iterable[Result], template: Callable[..., Result]) -> list[Result]:
        """Unweighted means over pairs."""
        return means(results, self.averaged_as, template)

    def signatures(self, description: Description, context: Context) -> list[str]:
        """As of `signed`, in each layer.

        Raises:
          UserError: the tasks are not aligned, or a setting does not suit the model or the data.
        """
        return self.signed(self.spaces(description), context)

    def __call__(self, subject: Subject, context: Context) -> list[Result]:
        """Evaluates one subject, as `score` says.

        Raises:
          NotFiniteError: embeddings are NaN or infinite.
          UserError: as `signatures`.
        """
        self.signatures(subject.description, context)  # refuses before anything is encoded
        embedded = (
            (spec, space, lambda a, b, of=vectors: (of[a], of[b]))
            for spec, space, vectors in self.vectors(subject, context)
        )
        return self.score(embedded, context)

    def baselines(self, description: Description, context: Context) -> list[Baseline]:
        """TF-IDF of the vocabulary's pieces, and the length of sentences."""
        (length,) = {space.length for space in self.spaces(description)}
        made = []
        for name in LEXICAL:
            space = Space(length, model=name)
            measure = functools.partial(self._baseline, space, context)
            signatures = self.signed([space], context)
            made.append(Baseline(name, signatures, self.mixtures(context), measure))
        return made

    def _baseline(self, space: Space, context: Context) -> list[Result]:
        return self.score(self._lexical(space, context), context)

    def _lexical(self, space: Space, context: Context) -> Iterator[Embedded]:
        make = LEXICAL[space.model]
        for spec in self.mixtures(context):
            texts = {
                language: [sentence[: space.length - 2] for sentence in sentences]
                for language, sentences in self.texts(spec, context).items()
            }
            yield spec, space, lambda a, b, of=texts: make(of[a], of[b])
