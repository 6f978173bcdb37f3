"""What evaluations of sentence embeddings share: which sentences, and how they are embedded."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import gin
import numpy as np
from annotated_types import Len, doc
from flax import nnx

from xl_flax.checkpoints.description import Description
from xl_flax.data.layout import Layout, Length
from xl_flax.data.mixtures import mixture_names
from xl_flax.data.prepare import DatasetSpec
from xl_flax.errors import UserError
from xl_flax.evaluation import centring
from xl_flax.evaluation.base import Evaluation, NotFiniteError, Subject
from xl_flax.evaluation.centring import Center
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.embed import Encoding, embed, make_pool
from xl_flax.evaluation.results import MACRO, Result, data_name, of_model, signature
from xl_flax.models.heads import HEADS
from xl_flax.ops.languages import language_rows
from xl_flax.ops.pooling import Pooling
from xl_flax.settings import LayerNumber, MixtureNames, Name, Names
from xl_flax.text_table import wrapped

Layers = Annotated[
    Literal["all"] | Annotated[Sequence[LayerNumber], Len(1)],
    doc('"all", or a list of layers: 0 = embeddings, i = after layer i, -1 = the last'),
]


class Space(NamedTuple):
    """Where sentences are vectors: a layer of a model, or a baseline that needs none."""

    length: int  # longest input, special tokens included
    layer: int | None = None
    pooling: Pooling | None = None
    head: str | None = None
    model: str | None = None  # as `Result.model`; None: the checkpoint


@dataclasses.dataclass(frozen=True)
class SentenceEvaluation(Evaluation):
    """An evaluation on mixtures of which example i of every task is the same sentence.

    Those that inherit from it take the embeddings of all layers asked for from `vectors`, and make
    their results with `result_template`. Those that compare pairs of languages inherit from
    `xl_flax.evaluation.pairs.PairEvaluation`.
    """

    # Its name, or several (one per pair: Tatoeba), each on its own; of phases, all that they name.
    mixture: MixtureNames = gin.REQUIRED
    # Some of the mixture's, as in ['deu', 'eng']; None: all. Of several mixtures each has them.
    languages: Names | None = None
    split: Name = "test"
    layers: Layers = "all"
    pooling: Pooling = "mean"  # without special tokens; or "mean_all", with them; or "cls"
    head: Name | None = None  # a trained sentence head, with its own layer and pooling
    pivot: Name | None = None  # only pairs with this language, as in "eng"; None: all pairs
    # Take away each language's mean first: see `centring`. Languages without training text in the
    # mixture that it may name are left out.
    center: Center = False
    length: Length = 128  # longest input, special tokens included; longer ones are cut, and counted

    @property
    def datasets(self) -> list[DatasetSpec]:
        """The mixtures of sentences, and the training text of means."""
        return self._test_sets + centring.training_text(self.center, self.length)

    def mixtures(self, context: Context) -> list[DatasetSpec]:
        """Those of sentences, without those of which means leave fewer than two languages.

        Raises:
          UserError: none is left.
        """
        kept = [spec for spec in self._test_sets if len(self.texts(spec, context)) > 1]
        if not kept:
            known = ", ".join(self._with_means(context) or ["none"])
            self.fail(
                f"center = {self.center!r}: fewer than two languages of any mixture have training "
                f"text there; it has {known}"
            )
        return kept

    def scopes(self, context: Context) -> list[list[DatasetSpec]]:
        """What results are about: each mixture, and all of them if there are several."""
        every = self.mixtures(context)
        return [[spec] for spec in every] + ([every] if len(every) > 1 else [])

    def texts(self, spec: DatasetSpec, context: Context) -> dict[str, list[np.ndarray]]:
        """The sentences of the chosen languages, as of `Context.aligned`.

        Raises:
          UserError: the tasks are not aligned, the mixture lacks a language, or one is chosen.
        """
        every = context.aligned(spec)
        if self.languages is not None:
            name = f"{type(self).__name__}.languages = {list(self.languages)!r}"
            if missing := [x for x in self.languages if x not in every]:
                raise UserError(
                    f"{name}: {spec.mixture} has no {', '.join(missing)}; it has {', '.join(every)}"
                )
            if len(set(self.languages)) < 2:
                raise UserError(f"{name}: two or more are needed; there are {', '.join(every)}")
            every = {language: own for language, own in every.items() if language in self.languages}
        if isinstance(self.center, str):
            known = self._with_means(context)
            if lacking := [language for language in every if language not in known]:
                say = functools.partial(_report_left_out, spec, lacking, self.center)
                context.once(("left out", spec, self.center, tuple(lacking)), say)
            every = {language: own for language, own in every.items() if language in known}
        return every

    def pairs(self, spec: DatasetSpec, languages: Collection[str]) -> list[tuple[str, str]]:
        """Pairs of a mixture's languages, each once; with a pivot those that it is part of.

        Raises:
          UserError: the mixture has no such language.
        """
        if self.pivot not in (None, *languages):
            raise UserError(
                f"{type(self).__name__}.pivot = {self.pivot!r} is no language of {spec.mixture}: "
                + ", ".join(languages)
            )
        every = itertools.combinations(languages, 2)
        return [pair for pair in every if self.pivot is None or self.pivot in pair]

    def encoding(self, description: Description) -> Encoding:
        """Layers, pooling and head, checked against the model.

        Raises:
          UserError: the model has no such layer or head.
        """
        name = f"{type(self).__name__}."
        if self.head is not None:
            return self._head_encoding(name, description)
        last = description.encoder.num_layers
        if self.layers == "all":
            return Encoding(tuple(range(last + 1)), self.pooling)
        if not all(-last - 1 <= i <= last for i in self.layers):
            raise UserError(
                f"{name}layers = {self.layers!r}: give a list of layers from 0 (embeddings) to "
                f'{last}, or "all"'
            )
        return Encoding(tuple(sorted({i % (last + 1) for i in self.layers})), self.pooling)

    def spaces(self, description: Description) -> list[Space]:
        """One for each layer of a model that is asked for.

        Raises:
          UserError: as `encoding`.
        """
        encoding, length = self.encoding(description), self._length(description)
        return [Space(length, i, encoding.pooling, encoding.head) for i in encoding.layers]

    def untrained(self, description: Description) -> Description:
        """The encoder, with the head that is read."""
        heads = {} if self.head is None else {self.head: description.heads[self.head]}
        return dataclasses.replace(description, heads=heads)

    def vectors(
        self, subject: Subject, context: Context
    ) -> Iterator[tuple[DatasetSpec, Space, dict[str, np.ndarray]]]:
        """Yields (mixture, space, language -> float32[N, D]), all layers of one mixture in turn.

        Raises:
          NotFiniteError: embeddings are NaN or infinite.
          UserError: the tasks are not aligned, or a setting is wrong.
        """
        description = subject.description
        spaces = self.spaces(description)
        sets = self.mixtures(context)
        means = self._means(subject, context, sets)
        for spec in sets:
            sentences = self.texts(spec, context)
            report = functools.partial(_report_lengths, spec, sentences, self._length(description))
            context.once(("lengths", spec, tuple(sentences), self._length(description)), report)
            embedded = self._embed(subject, context, spec, sentences)
            parts = np.split(embedded, len(sentences), axis=1)
            for i, space in enumerate(spaces):
                vectors = {name: part[i] for name, part in zip(sentences, parts, strict=True)}
                vectors = {name: x - means[name][i] if means else x for name, x in vectors.items()}
                check_finite(
                    vectors, f"{spec.mixture}, layer {space.layer}, step {description.step}"
                )
                yield spec, space, vectors

    def result_template(
        self,
        task: str,
        specs: Sequence[DatasetSpec],
        space: Space,
        context: Context,
        **how: Any,
    ) -> functools.partial:
        """`Result` without languages, metric, value and n; `how` is added to the signature.

        The share of unknown pieces is added, too, by the languages that it gets.
        """
        examples = [self.texts(spec, context) for spec in specs]
        languages = sorted({language for e in examples for language in e})
        chosen = self.languages is not None or isinstance(self.center, str)
        embedding = {
            "layer": space.layer,
            "pooling": space.pooling,
            "head": space.head or "none",
        } | centring.signed(self.center)
        sign = signature(
            task,
            data=data_name(specs),
            languages=",".join(languages) if chosen else len(languages),
            n=sum(len(next(iter(e.values()))) for e in examples),
            **(embedding if space.model is None else {}),
            **how,
            length=space.length,
        )
        if space.model is not None:
            sign = of_model(sign, f"{space.model}#{context.vocabulary.fingerprint[:12]}")
        return functools.partial(
            _result,
            self._unknown(specs, context),
            task=task,
            data=data_name(specs),
            signature=sign,
            layer=space.layer,
            pooling=space.pooling,
            head=space.head,
            model=space.model,
        )

    @property
    def _test_sets(self) -> list[DatasetSpec]:
        layout = Layout(self.length)
        return [DatasetSpec(name, self.split, layout) for name in mixture_names(self.mixture)]

    def _with_means(self, context: Context) -> dict[str, list[np.ndarray]]:
        """The training text of each language, of which its mean is made."""
        (spec,) = centring.training_text(self.center, self.length)
        return centring.sample(spec, context)

    def _means(
        self, subject: Subject, context: Context, sets: Sequence[DatasetSpec]
    ) -> dict[str, np.ndarray]:
        """Language -> float32[Layers, D], means of training text; {} if none are asked for."""
        if not isinstance(self.center, str):
            return {}
        (spec,) = centring.training_text(self.center, self.length)
        texts = self._with_means(context)
        languages = dict.fromkeys(x for own in sets for x in self.texts(own, context))
        return {
            language: self._embed(subject, context, spec, {language: texts[language]}).mean(axis=1)
            for language in languages
        }

    def _embed(
        self, subject: Subject, context: Context, spec: DatasetSpec, texts: dict
    ) -> np.ndarray:
        """Embeds all sentences, language after language: float32[Layers, sentences, D]."""
        description = subject.description
        encoding, length = self.encoding(description), self._length(description)
        pool = context.once(
            ("pool", subject.graph, encoding),
            lambda: make_pool(subject.graph, encoding, context.partitioning),
        )
        rows = language_rows(list(texts), description.all_languages)
        encode = functools.partial(
            embed,
            pool,
            subject.params,
            list(itertools.chain.from_iterable(texts.values())),
            context.vocabulary.special,
            length,
            context.partitioning,
            None if context.training else f"encoding {spec.mixture}",
            np.repeat(rows, [len(own) for own in texts.values()]),
        )
        key = ("sentences", spec, tuple(texts), encoding, length)
        return context.once_per_subject(subject.key, key, encode)

    def _unknown(self, specs: Sequence[DatasetSpec], context: Context) -> dict[str, float]:
        """The share of unknown pieces by language, and that of the worst."""
        texts = [self.texts(spec, context) for spec in specs]
        languages = sorted({language for own in texts for language in own})
        unk = context.vocabulary.special.unk

        def share(language: str) -> float:
            ids = np.concatenate([ids for own in texts for ids in own.get(language, ())])
            return float((ids == unk).sum() / max(ids.size, 1))

        def count() -> dict[str, float]:
            shares = {language: share(language) for language in languages}
            return shares | {MACRO: max(shares.values())}

        return context.once(("unknown", tuple(specs), tuple(languages)), count)

    def _head_encoding(self, name: str, description: Description) -> Encoding:
        kinds = {key: value.get("kind", key) for key, value in description.heads.items()}
        if kinds.get(self.head) != "sentence":
            heads = ", ".join(key for key, kind in kinds.items() if kind == "sentence") or "none"
            raise UserError(
                f"{name}head = {self.head!r}: the model has no such sentence head; it has {heads}"
            )
        settings = {k: v for k, v in description.heads[self.head].items() if k != "kind"}
        build = lambda: HEADS["sentence"](description.encoder, nnx.Rngs(0), **settings)  # noqa: E731
        head = nnx.eval_shape(build)
        return Encoding((head.layer,), head.pooling, self.head)

    def _length(self, description: Description) -> int:
        return min(self.length, description.encoder.max_positions)


def _result(unknown: dict[str, float], *, languages: Sequence[str], **about: Any) -> Result:
    known = unknown.keys() >= set(languages)
    shares = tuple(unknown[language] for language in languages) if known else None
    return Result(languages=tuple(languages), unknown=shares, **about)


def _report_left_out(spec: DatasetSpec, languages: Sequence[str], center: str) -> None:
    """Says which languages have no mean."""
    print(
        wrapped(
            f"{spec.mixture}: left out, for they have no training text in {center}: "
            + ", ".join(languages)
        )
    )


def _report_lengths(spec: DatasetSpec, texts: dict[str, list[np.ndarray]], length: int) -> None:
    """Says how many sentences are cut to `length` tokens or are empty, by language."""
    sizes = {language: np.array([len(s) for s in own]) for language, own in texts.items()}
    for what, count in (
        (f"sentences longer than {length} tokens were cut", lambda s: (s > length - 2).sum()),
        ("sentences are empty and can be found by chance only", lambda s: (s == 0).sum()),
    ):
        counts = {language: int(count(s)) for language, s in sizes.items()}
        if total := sum(counts.values()):
            listed = ", ".join(f"{language} {n}" for language, n in counts.items() if n)
            share = total / sum(map(len, sizes.values()))
            print(wrapped(f"{spec.mixture}: {total:,} {what} ({share:.1%}: {listed})"))


def is_about(result: Result, specs: Sequence[DatasetSpec]) -> bool:
    """Whether a result is of one of these mixtures, or a mean over several of them."""
    mixture, _, split = result.data.rpartition("/")
    first = re.sub(r"\+\d+#\w{6}$", "", mixture)
    return (first, split) in {(spec.mixture, spec.split) for spec in specs}


def check_finite(vectors: dict[str, Any], where: str) -> None:
    """Raises NotFiniteError if embeddings have NaN or infinite values."""
    for language, x_NxD in vectors.items():
        bad = int((~np.isfinite(x_NxD).all(axis=1)).sum())
        if bad:
            raise NotFiniteError(
                f"{where}: {bad:,} of {len(x_NxD):,} embeddings of {language!r} are NaN or "
                "infinite; evaluate an earlier checkpoint, and train with a lower learning rate"
            )
