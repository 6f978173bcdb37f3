"""Evaluations of pairs of languages, which score lexical baselines as they score a model."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

from xl_flax.checkpoints.description import Description
from xl_flax.data.prepare import DatasetSpec
from xl_flax.evaluation.base import Baseline, Subject
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.lexical import LEXICAL
from xl_flax.evaluation.results import Result
from xl_flax.evaluation.search import Vectors
from xl_flax.evaluation.sentences import SentenceEvaluation, Space

# float32[N, D] of the sentences of two languages. A baseline's follow from both texts; TF-IDF's
# are sparse.
PairVectors = Callable[[str, str], tuple[Vectors, Vectors]]
# A mixture, the space, and the vectors there: all that `score` is given, one after the other.
Embedded = tuple[DatasetSpec, Space, PairVectors]


@dataclasses.dataclass(frozen=True)
class PairEvaluation(SentenceEvaluation):
    """How well vectors of two languages' sentences go together.

    Must have `signed` and `score`.
    """

    def signed(self, spaces: Sequence[Space], context: Context) -> list[str]:
        """The signatures of the results in these spaces; refuses as `signatures` does."""
        raise NotImplementedError

    def score(self, embedded: Iterable[Embedded], context: Context) -> list[Result]:
        """The results."""
        raise NotImplementedError

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
