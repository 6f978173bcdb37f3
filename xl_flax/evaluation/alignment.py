"""Word alignment: are words that translate each other the nearest ones of the two sentences?"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import gin
import numpy as np
from annotated_types import Len, doc

from xl_flax.checkpoints.description import Description
from xl_flax.data.layout import Layout, Length
from xl_flax.data.links import Links
from xl_flax.data.mixtures import mixture_names
from xl_flax.data.prepare import DatasetSpec
from xl_flax.evaluation import gold_links
from xl_flax.evaluation import links as links_lib
from xl_flax.evaluation import report_alignment as report
from xl_flax.evaluation.base import Baseline, Evaluation, NotFiniteError, Subject
from xl_flax.evaluation.bootstrap import DRAWS, drawn_sums, interval
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.links import ALPHA, ITERATIONS, METHODS, Method
from xl_flax.evaluation.results import MACRO, Result, data_name, means, of_model, signature
from xl_flax.evaluation.sentences import Layers, is_about
from xl_flax.evaluation.token_states import mixture_states
from xl_flax.settings import MixtureNames, Name

VALIDATION = "validation"
PIECES, DIAGONAL = "pieces", "diagonal"  # the baselines
Words = Literal["mean", "first", "any"]
Methods = Annotated[Sequence[Method], Len(1), doc(f"a list of some of {', '.join(METHODS)}")]


class Way(NamedTuple):
    """How links were made."""

    method: Method | None  # None: by the diagonal
    layer: int | None = None
    model: str | None = None  # as `Result.model`; None: the checkpoint


# Of a mixture, by task, of each example: int64[4], see `links`.
Counts = Mapping[Way, Mapping[str, list[np.ndarray]]]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class WordAlignment(Evaluation):
    """Links between words by the cosine of their states, against gold links, as SimAlign does.

    Jalili Sabet et al. (2020, arXiv:2004.08728); scores are those of Och and Ney (2003,
    doi:10.1162/089120103321337421), over all sentences of a pair of languages. Each sentence is
    encoded alone. Nothing is trained.
    """

    # Its name, or several; the tasks are of `tasks.alignment`, each pair of languages once in each.
    mixture: MixtureNames = gin.REQUIRED
    split: Name = "test"
    layers: Layers = "all"
    # The state of a word is the mean of its pieces' or the first one's; "any": pieces are linked,
    # and words of which any are (SimAlign's default, "bpe").
    words: Words = "mean"
    methods: Methods = tuple(METHODS)  # the first one chooses the layer that is shown
    # Mixtures whose validation split says which layer is shown, by the mean F1 over their pairs.
    # None: the test does, which must not be quoted.
    choose_on: MixtureNames | None = None
    length: Length = 128  # longest input, special tokens included; words beyond get no links

    def __post_init__(self):
        super().__post_init__()
        both = {*mixture_names(self.choose_on or ())} & {*mixture_names(self.mixture)}
        if both and self.split == VALIDATION:
            self.fail(
                f"choose_on = {self.choose_on!r}: {', '.join(sorted(both))}/{VALIDATION} is what "
                "is tested; name other text"
            )

    @property
    def datasets(self) -> list[DatasetSpec]:
        """The mixtures."""
        # Rows that hold both sentences whole, as far as they are encoded.
        layout = Layout(2 * self.length, too_long="cut")
        return [DatasetSpec(name, self.split, layout) for name in mixture_names(self.mixture)]

    @property
    def parts(self) -> list[Evaluation]:
        """The test, and the same on `choose_on`."""
        if self.choose_on is None:
            return [self]
        on = {"mixture": self.choose_on, "split": VALIDATION, "choose_on": None}
        return [self, dataclasses.replace(self, **on)]

    def untrained(self, description: Description) -> Description:
        """The encoder alone."""
        return dataclasses.replace(description, heads={})

    def signatures(self, description: Description, context: Context) -> list[str]:
        """One per mixture, layer and method.

        Raises:
          UserError: there is no such layer, a task is none of linked words, or it repeats a pair.
        """
        for spec in self.datasets:
            self._gold(spec, context)
        layers, length = self._layers(description), self._length(description)
        ways = [Way(method, layer) for layer in layers for method in self.methods]
        return self._signatures(ways, length, context)

    def __call__(self, subject: Subject, context: Context) -> list[Result]:
        """The results.

        Returns:
          Per mixture, layer and method (`Result.similarity`) and pair of languages: "aer",
          "precision", "recall" and "f1", and their unweighted means over pairs as ("macro",), over
          those of all mixtures, too, if there are several. n is what a score is divided by: links
          that were found (precision), sure ones (recall), or both. Pairs have an interval.

        Raises:
          NotFiniteError: states are NaN or infinite.
          UserError: as `signatures`.
        """
        self.signatures(subject.description, context)  # refuses before anything is encoded
        counts = {spec: self._count(subject, context, spec) for spec in self.datasets}
        return self._results(counts, self._length(subject.description), context)

    def baselines(self, description: Description, context: Context) -> list[Baseline]:
        """Words that have pieces in common, and those as far through the sentences."""
        made = []
        for name, methods in ((PIECES, self.methods), (DIAGONAL, (None,))):
            ways = [Way(method, model=name) for method in methods]
            measure = functools.partial(self._baseline, ways, context)
            signatures = self._signatures(ways, None, context)
            made.append(Baseline(name, signatures, self.datasets, measure))
        return made

    def table(self, results: Sequence[Result]) -> str:
        """The mean by layer, then pairs and methods in the layer that is chosen."""
        return report.alignment(*self._divided(results))

    def details(self, results: Sequence[Result]) -> str:
        """Each pair by each method, where there are several."""
        return report.alignment_details(*self._divided(results))

    def _divided(self, results: Sequence[Result]) -> tuple[list[Result], list[Result]]:
        """Those of the test, and those of `choose_on`."""
        specs = [spec for part in self.parts[1:] for spec in part.datasets]
        choice = [r for r in results if is_about(r, specs)]
        return [r for r in results if not is_about(r, specs)], choice

    def _layers(self, description: Description) -> tuple[int, ...]:
        encoder = description.encoder
        if self.layers == "all":
            return tuple(range(encoder.num_layers + 1))
        return tuple(sorted({*encoder.layer_numbers(self.layers, "WordAlignment.layers")}))

    def _length(self, description: Description) -> int:
        return min(self.length, description.encoder.max_positions)

    def _gold(self, spec: DatasetSpec, context: Context) -> dict[str, list[Links]]:
        """The gold links of each task's examples."""
        return context.once(("links", spec), lambda: gold_links.read(spec, context))

    def _count(self, subject: Subject, context: Context, spec: DatasetSpec) -> Counts:
        description = subject.description
        layers, length = self._layers(description), self._length(description)
        report_cut = functools.partial(gold_links.report_cut, spec, context, length)
        context.once(("cut", spec, length), report_cut)
        state = None if self.words == "any" else self.words
        sides = (
            mixture_states(
                subject, context, spec, layers, word_state=state, text=text, length=length
            )
            for text in (0, 1)
        )
        gold = itertools.chain.from_iterable(self._gold(spec, context).values())
        counts = _no_counts()
        for (task, example, x), (_, _, y), links in zip(*sides, gold, strict=True):
            similarity_LxMxN = links_lib.similarities(x, y)
            if not np.isfinite(similarity_LxMxN).all():
                raise NotFiniteError(
                    f"{task}, step {description.step}: states are NaN or infinite; evaluate an "
                    "earlier checkpoint, and train with a lower learning rate"
                )
            for layer, similarity_MxN in zip(layers, similarity_LxMxN, strict=True):
                for method in self.methods:
                    found = METHODS[method](similarity_MxN)
                    if state is None:
                        words = zip(example.features["word"], found.shape, strict=True)
                        found = links_lib.of_words(found, *(w[:n] for w, n in words))
                    counts[Way(method, layer)][task].append(links_lib.counts(found, links))
        return counts

    def _baseline(self, ways: Sequence[Way], context: Context) -> list[Result]:
        counts = {}
        for spec in self.datasets:
            counts[spec] = _no_counts()
            gold = self._gold(spec, context)
            for task, examples in context.examples(spec).items():
                bags = [gold_links.bags(example) for example in examples]
                idf_V = gold_links.idf(itertools.chain(*bags), context.vocabulary.size)
                for (x, y), links in zip(bags, gold[task], strict=True):
                    for way in ways:
                        if way.method is None:
                            found = links_lib.diagonal(len(x), len(y))
                        else:
                            found = gold_links.by_pieces(x, y, idf_V, METHODS[way.method])
                        counts[spec][way][task].append(links_lib.counts(found, links))
        return self._results(counts, None, context)

    def _results(
        self, counts: Mapping[DatasetSpec, Counts], length: int | None, context: Context
    ) -> list[Result]:
        results: list[Result] = []
        every: dict[Way, list[Result]] = {}
        for spec, by_way in counts.items():
            _, manifests, _ = context.caches[spec]
            for way, tasks in by_way.items():
                template = self._template([spec], way, length, context)
                pairs = [
                    result
                    for task, own in tasks.items()
                    for result in _scored(own, manifests[task].languages, template)
                ]
                every.setdefault(way, []).extend(pairs)
                results += pairs + means(pairs, _over_pairs, template)
        if len(counts) > 1:
            for way, pairs in every.items():
                template = self._template([*counts], way, length, context)
                results += means(pairs, _over_pairs, template)
        return results

    def _signatures(self, ways: Sequence[Way], length: int | None, context: Context) -> list[str]:
        sets = self.datasets
        scopes = [[spec] for spec in sets] + ([sets] if len(sets) > 1 else [])
        return [
            self._template(specs, way, length, context).keywords["signature"]
            for specs in scopes
            for way in ways
        ]

    def _template(
        self, specs: Sequence[DatasetSpec], way: Way, length: int | None, context: Context
    ) -> functools.partial:
        """`Result` without languages, metric, value and n."""
        gold = [links for spec in specs for links in self._gold(spec, context).values()]
        how = {"layer": way.layer, "words": self.words, "similarity": "cosine"}
        how = how if way.model is None else {}
        itermax = {"iterations": ITERATIONS, "alpha": ALPHA} if way.method == "itermax" else {}
        sign = signature(
            "word_alignment",
            data=data_name(specs),
            pairs=len(gold),
            n=sum(map(len, gold)),
            **how,
            **({} if way.method is None else {"links": way.method}),
            **itermax,
            **({} if length is None else {"length": length}),
            interval=f"bootstrap{DRAWS}",
        )
        if way.model is not None:
            sign = of_model(sign, f"{way.model}#{context.vocabulary.fingerprint[:12]}")
        return functools.partial(
            _result,
            gold_links.unknown(specs, context),
            task="word_alignment",
            data=data_name(specs),
            signature=sign,
            layer=way.layer,
            similarity=way.method,
            model=way.model,
        )


def _result(unknown: Mapping[str, float], *, languages: Sequence[str], **about: Any) -> Result:
    shares = tuple(unknown[language] for language in languages)
    return Result(languages=tuple(languages), unknown=shares, **about)


def _no_counts() -> dict[Way, dict[str, list[np.ndarray]]]:
    return collections.defaultdict(functools.partial(collections.defaultdict, list))


def _scored(
    counts: Sequence[np.ndarray], languages: Sequence[str], template: Callable[..., Result]
) -> list[Result]:
    counts_nx4 = np.stack(counts)
    _, _, found, sure = map(int, counts_nx4.sum(axis=0))
    n = {"aer": found + sure, "precision": found, "recall": sure, "f1": found + sure}
    # The same sentences are drawn for every layer, method and model.
    drawn = links_lib.scores(drawn_sums(counts_nx4, seed=0))
    return [
        template(
            languages=languages,
            metric=metric,
            value=float(value),
            n=n[metric],
            interval=interval(drawn[metric]),
        )
        for metric, value in links_lib.scores(counts_nx4.sum(axis=0)).items()
    ]


def _over_pairs(_: Result) -> list[tuple[str]]:
    return [(MACRO,)]
