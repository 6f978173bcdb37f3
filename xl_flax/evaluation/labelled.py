"""Evaluations of what a trained head says of labelled examples: the frame that all of them share.

One of them predicts every example of a test and counts what is right; the frame turns the counts of
each language into scores with confidence intervals, means over languages, and the gap between the
languages of training and all others, which is what zero-shot transfer loses.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xl_flax.checkpoints.description import Description, trained_on
from xl_flax.data.batches import global_batch
from xl_flax.data.layout import Layout, Length, Policy
from xl_flax.data.manifest import Manifest
from xl_flax.data.mixtures import mixture_names
from xl_flax.data.prepare import DatasetSpec
from xl_flax.data.stream import HeldOutRows
from xl_flax.data.vocabulary import SpecialIds
from xl_flax.errors import UserError
from xl_flax.evaluation import report_labelled
from xl_flax.evaluation.ahead import rows_per_batch, run_ahead
from xl_flax.evaluation.base import Baseline, Evaluation, Subject
from xl_flax.evaluation.bootstrap import DRAWS, Score, drawn_sums, interval
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.results import MACRO, OTHERS, Result, data_name, of_model, signature
from xl_flax.models.heads import Model
from xl_flax.models.labelling import Batch, Reading
from xl_flax.ops.languages import language_rows
from xl_flax.settings import MixtureNames, Name, Names

TOKENS_PER_DEVICE = 8192  # in a batch, padding included


class Scored(NamedTuple):
    """What was predicted of one language's examples, in the order of their numbers."""

    counts: Mapping[str, np.ndarray]  # metric -> float64[n, k], whose sums over examples it scores
    predictions: Sequence[Any]  # of each example, as JSON can hold it


@dataclasses.dataclass(frozen=True)
class LabelledEvaluation(Evaluation):
    """Must have: the class fields, and `scored`. May have: `baseline_names`, `baseline_scored`."""

    # Its name, or several: all their tasks, one or more for each language.
    mixture: MixtureNames = gin.REQUIRED
    length: Length = gin.REQUIRED  # tokens per row
    head: Name = gin.REQUIRED  # that is read
    split: Name = "test"
    languages: Names | None = None  # some of the mixture's, as in ['deu', 'eng']; None: all
    # Mixture whose "train" split the baselines without a model learn from; None: there are none.
    train: MixtureNames | None = None
    # </s></s> between texts, as in XLM-R. None: as the head was trained, else one separator.
    double_separator: bool | None = None

    task: ClassVar[str]  # `Result.task`
    kind: ClassVar[str]  # of the head that is read, as in "classification"
    too_long: ClassVar[Policy]  # of examples longer than a row
    metrics: ClassVar[Mapping[str, Score]]  # by name, the main one first: scores of summed counts
    baseline_names: ClassVar[tuple[str, ...]] = ()

    def scored(self, subject: Subject, context: Context) -> dict[str, Scored]:
        """What the model predicts, by language."""
        raise NotImplementedError

    def baseline_scored(self, name: str, context: Context) -> dict[str, Scored]:
        """What one of the `baseline_names` predicts, by language, after a look at `train`."""
        raise NotImplementedError

    def check(self, description: Description, rows: HeldOutRows) -> None:
        """Raises UserError unless head and data suit each other."""

    def settings(self) -> dict[str, Any]:
        """What else a signature must say."""
        return {}

    # ---- The contract of evaluations

    @property
    def layout(self) -> Layout:
        """How examples lie in rows."""
        return Layout(self.length, "packed", self.too_long)

    @property
    def datasets(self) -> list[DatasetSpec]:
        """The test."""
        return [DatasetSpec(name, self.split, self.layout) for name in mixture_names(self.mixture)]

    @property
    def control_datasets(self) -> list[DatasetSpec]:
        """What the baselines learn from."""
        if self.train is None:
            return []
        return [DatasetSpec(name, "train", self.layout) for name in mixture_names(self.train)]

    def signatures(self, description: Description, context: Context) -> list[str]:
        """One, of all results.

        Raises:
          UserError: the model lacks the head, or rows are longer than it takes, or the data does
            not suit the head.
        """
        name, rows = type(self).__name__, self.rows(context)
        settings = description.heads.get(self.head)
        if settings is None or settings.get("kind", self.head) != self.kind:
            there = ", ".join(f"{k} ({s.get('kind', k)})" for k, s in description.heads.items())
            raise UserError(
                f"{name}.head = {self.head!r}: the model needs a head of this name and of kind "
                f"{self.kind!r}, and has {there or 'no heads'}: fine-tune it first, or name "
                "another head"
            )
        longest = description.encoder.max_positions
        if self.length > longest:
            raise UserError(
                f"{name}.length = {self.length}: the model takes at most {longest} tokens"
            )
        self.check(description, rows)
        trained = _trained(self.head, description)
        chosen = description.chosen_by or "last"
        of_model = {"head": self.head, "trained": trained, "chosen": chosen}
        if rows.num_texts > 1:
            of_model["separators"] = 1 + self._double(description)
        return [self._signature(rows, context, **of_model)]

    def baselines(self, description: Description, context: Context) -> list[Baseline]:
        """Those of the names, if there is something that they can learn from."""
        del description
        if self.train is None:
            return []
        trained = "+".join(mixture_names(self.train)) + "/train"
        sign = self._signature(self.rows(context), context, trained=trained)
        return [
            Baseline(
                name,
                [of_model(sign, name)],
                self.datasets + self.control_datasets,
                functools.partial(self._baseline, name, of_model(sign, name), context),
            )
            for name in self.baseline_names
        ]

    def __call__(self, subject: Subject, context: Context) -> list[Result]:
        """Evaluates one subject.

        Returns:
          By language each of the `metrics`, with an interval but for training; the means over all
          languages ("macro") and, where some are not among those that the head was trained in, over
          these ("others"), with the gap to the mean of the languages of training, as "…_gap".
        """
        (sign,) = self.signatures(subject.description, context)
        if not context.training:
            self._check_whole(context)
        scored = self.scored(subject, context)
        if not context.training:
            context.predictions[sign] = (self._data, scored)
        trained = head_languages(self.head, subject.description)
        return list(self._results(scored, sign, context, trained))

    def table(self, results: Sequence[Result]) -> str:
        """A line for each language, the model's scores beside the controls'."""
        return report_labelled.table_of(results, tuple(self.metrics))

    # ---- What evaluations need

    def rows(self, context: Context) -> HeldOutRows:
        """The test's rows."""
        return context.rows(self.datasets, None, self.languages)

    def reading(self, description: Description, rows: HeldOutRows, context: Context) -> Reading:
        """How the head reads these rows: as it was trained, where the checkpoint says so."""
        special: SpecialIds = context.vocabulary.special
        table = language_rows(rows.languages, description.all_languages)
        return Reading(
            rows.num_texts,
            rows.examples_per_row,
            *map(jnp.asarray, (np.int32(special.sep), np.int32(special.pad), table)),
            self._double(description),
        )

    def _double(self, description: Description) -> bool:
        if self.double_separator is not None:
            return self.double_separator
        return bool(description.objectives.get(self.head, {}).get("double_separator", False))

    def predicted(
        self,
        subject: Subject,
        context: Context,
        predict: Callable[[Model, Batch, Reading], Any],
    ) -> Iterator[tuple[dict[str, np.ndarray], Any]]:
        """Yields each batch of the test with what `predict` says of it, all as NumPy.

        Padding rows, of row_id -1, are left out. `predict(model, batch, reading)` is compiled, once
        for all models of a shape.
        """
        rows, partitioning = self.rows(context), context.partitioning
        reading = self.reading(subject.description, rows, context)

        def run(params: Any, batch: Batch) -> Any:
            with partitioning.activate():
                return predict(nnx.merge(subject.graph, params), batch, reading)

        static = (reading.num_texts, reading.examples_per_row, reading.double_separator)
        table = tuple(np.asarray(reading.language_rows).tolist())
        function = context.once(
            (self.task, self.head, subject.graph, static, table),
            lambda: jax.jit(run, out_shardings=partitioning.sharding(())),
        )
        size = rows_per_batch(rows.length, TOKENS_PER_DEVICE, partitioning, len(rows))
        sharding = partitioning.sharding(("batch", None))

        def batches() -> Iterator[tuple[int, tuple]]:
            for first in range(0, len(rows), size):
                yield first, (global_batch(rows, first, size, sharding),)

        for first, outputs in run_ahead(function, subject.params, batches(), partitioning):
            last = min(first + size, len(rows))
            # Read again rather than fetched: another process may hold these rows' devices.
            own = rows.rows(range(first, last))
            yield own, jax.tree.map(lambda x, n=last - first: x[:n], outputs)

    def _baseline(self, name: str, sign: str, context: Context) -> list[Result]:
        scored = self.baseline_scored(name, context)
        results = self._results(scored, sign, context, ())
        return [dataclasses.replace(r, model=name) for r in results]

    @property
    def _data(self) -> str:
        return data_name(self.datasets)

    def _check_whole(self, context: Context) -> None:
        """Raises UserError if examples are missing, so that no score would be the test's."""
        for task, manifest in self._manifests(context).items():
            if empty := manifest.dropped.get("empty text"):
                raise UserError(
                    f"{task}/{self.split}: {empty:,} examples have an empty text and are not in "
                    "the cache, so that no score would be the test's: mend the task's file"
                )

    def _manifests(self, context: Context) -> dict[str, Manifest]:
        """Of the tasks that are tested, by name, sorted."""
        every = {k: m for spec in self.datasets for k, m in context.caches[spec].manifests.items()}
        return {task: every[task] for task in sorted(self.rows(context).tasks)}

    def _signature(self, rows: HeldOutRows, context: Context, **of_model: Any) -> str:
        sizes = {task: m.offered for task, m in self._manifests(context).items()}
        return signature(
            self.task,
            data=self._data,
            languages=",".join(rows.languages) if self.languages else len(rows.languages),
            # The tasks and their sizes: other files under one name are another test.
            n=f"{sum(sizes.values())}#{zlib.crc32(repr(sizes).encode()):08x}",
            length=self.length,
            **({"feature": self.feature} if hasattr(self, "feature") else {}),
            **of_model,
            **self.settings(),
            interval=f"bootstrap{DRAWS}",
        )

    def _results(
        self, scored: Mapping[str, Scored], sign: str, context: Context, trained: Sequence[str]
    ) -> Iterator[Result]:
        rows = self.rows(context)
        languages, by_language = rows.languages_by_name(), rows.unknown()
        unknown = {name: max(map(by_language.get, own)) for name, own in languages.items()}
        sources = [name for name in scored if {*languages[name]} <= {*trained}]
        others = [name for name in scored if name not in sources] if trained else []
        for metric, score in self.metrics.items():
            values, drawn = {}, {}
            for name, own in scored.items():
                counts = own.counts[metric]
                values[name] = float(score(counts.sum(axis=0)))
                if not context.training:
                    # Example i is drawn in all languages alike: where it is the same sentence, as
                    # in XNLI, a mean over languages is no surer than that.
                    drawn[name] = score(drawn_sums(counts, seed=0))
            make = functools.partial(self._result, sign, unknown)
            for name, value in values.items():
                n = len(scored[name].predictions)
                result = make((name,), metric, value, n, drawn.get(name))
                yield dataclasses.replace(result, trained=name in sources if trained else None)
            mean = functools.partial(_mean, values, drawn)
            yield make((MACRO,), metric, *mean([*scored]))
            if others:
                yield make((OTHERS,), metric, *mean(others))
            if others and sources:
                (source, _, of_source), (other, n, of_others) = mean(sources), mean(others)
                gap = None if of_source is None else of_source - of_others
                yield make((OTHERS,), f"{metric}_gap", source - other, n, gap)

    def _result(
        self,
        sign: str,
        unknown: Mapping[str, float],
        languages: tuple[str, ...],
        metric: str,
        value: float,
        n: int,
        drawn: np.ndarray | None,
    ) -> Result:
        if not math.isfinite(value):
            raise UserError(f"{self._data}: {metric} of {languages[0]} is not finite")
        return Result(
            *(self.task, self._data, languages, metric, value, n, sign),
            head=self.head,
            unknown=(unknown[languages[0]],) if languages[0] in unknown else None,
            interval=None if drawn is None else interval(drawn),
        )


def _mean(
    values: Mapping[str, float], drawn: Mapping[str, np.ndarray], names: Sequence[str]
) -> tuple[float, int, np.ndarray | None]:
    """Mean over languages, how many they are, and the mean of their draws."""
    draws = np.mean([drawn[name] for name in names], axis=0) if drawn else None
    return float(np.mean([values[name] for name in names])), len(names), draws


def head_languages(head: str, description: Description) -> set[str]:
    """The languages whose labels a head was trained with, or its encoder before it."""
    before = (description.heads_from.get(head, {}), description.encoder_from)
    return {
        *description.languages.get(head, ()),
        *(language for own in before for language in own.get("languages", ())),
    }


def _trained(head: str, description: Description) -> str:
    """What a head was trained on, for signatures: "panx_eng/train", then ">panx_deu/train[10]".

    If it is new, what labels its encoder was trained with before.
    """
    before = description.heads_from.get(head) or description.encoder_from
    own = trained_on(head, description)
    return f"{before['trained']}>{own}" if before else own
