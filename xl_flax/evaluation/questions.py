"""Answers to questions: spans of a context that is read in windows."""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import gin
import jax.numpy as jnp
import numpy as np

from xl_flax.checkpoints.description import Description
from xl_flax.data import spans
from xl_flax.data.features import Example
from xl_flax.data.layout import Layout, Policy
from xl_flax.data.stream import HeldOutRows
from xl_flax.errors import UserError
from xl_flax.evaluation import answers
from xl_flax.evaluation.answer_overlap import overlap_span
from xl_flax.evaluation.answer_spans import Window, best_span
from xl_flax.evaluation.base import Baseline, NotFiniteError, Subject
from xl_flax.evaluation.bootstrap import Score, ratio
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.labelled import LabelledEvaluation, Scored
from xl_flax.evaluation.results import of_model
from xl_flax.models.labelling import head_scores
from xl_flax.settings import Count, Name, Natural

N_BEST = 20  # starts and ends of a window that are looked at, as in BERT's code for SQuAD
TEXTS = ("id", "context", "answers")  # features of examples; the last is JSON, as in SQuAD

# From an example, and the tokens of its context as characters, to the answer's tokens.
Answer = Callable[[Example, np.ndarray], tuple[int, int] | None]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class AnswerScores(LabelledEvaluation):
    """F1 and exact match of a head of starts and ends (Rajpurkar et al. 2016, SQuAD v1.1, §6.1).

    The answer is the span with the greatest sum of scores over all windows of the context, cut out
    of the text as it was written.
    """

    head: Name = "question"
    rule: answers.Rule = "squad"  # how answers are compared: see `xl_flax.evaluation.answers`
    stride: Natural = 128  # tokens that two windows share
    max_answer: Count = 30  # tokens

    task: ClassVar[str] = "questions"
    kind: ClassVar[str] = "classification"
    too_long: ClassVar[Policy] = "window"
    metrics: ClassVar[Mapping[str, Score]] = {"f1": ratio, "exact_match": ratio}
    baseline_names: ClassVar[tuple[str, ...]] = ("overlap",)

    @property
    def layout(self) -> Layout:
        """Overlapping windows."""
        return Layout(self.length, "packed", self.too_long, self.stride)

    def settings(self) -> dict[str, Any]:
        """How answers are found and compared."""
        own = {"rule": self.rule, "stride": self.stride, "answer": self.max_answer}
        return own | {"nbest": N_BEST}

    def check(self, description: Description, rows: HeldOutRows) -> None:
        """Raises UserError unless the head gives starts and ends, and the data has questions."""
        where = f"AnswerScores: {', '.join(rows.tasks[:3])}"
        settings = description.heads[self.head]
        if settings.get("pooling") != "tokens" or len(settings.get("labels", ())) != 2:
            raise UserError(
                f"AnswerScores.head = {self.head!r}: it must give two scores of each token, start "
                "and end, as QuestionAnswering trains it"
            )
        missing = [key for key in TEXTS if key not in rows.features]
        if missing or rows.num_texts != 2:
            raise UserError(
                f"{where}: questions and contexts are needed, with {', '.join(TEXTS)} as texts: "
                "make the task with tasks.question_files.add_question_task"
            )
        unknown = sorted({*rows.languages} - {*answers.mlqa_languages()})
        if self.rule == "mlqa" and unknown:
            raise UserError(
                f"AnswerScores.rule = 'mlqa': MLQA does not say how answers in {unknown[0]!r} are "
                "compared: use 'squad'"
            )

    def scored(self, subject: Subject, context: Context) -> dict[str, Scored]:
        """The best spans of the model."""
        windows, scored = self._windows(subject, context), {}
        for task, name, language, examples in self._tests(context):
            found = functools.partial(self._best, windows[task])
            scored[name] = self._scored(examples, language, found, context)
        return scored

    def baselines(self, description: Description, context: Context) -> list[Baseline]:
        """What stands among the words of the question; it learns from nothing."""
        del description
        (name,) = self.baseline_names
        sign = of_model(self._signature(self.rows(context), context, trained="nothing"), name)
        measure = functools.partial(self._baseline, name, sign, context)
        return [Baseline(name, [sign], self.datasets, measure)]

    def baseline_scored(self, name: str, context: Context) -> dict[str, Scored]:
        """Spans of `overlap_span`."""

        def answer(example: Example, offsets_Nx2: np.ndarray) -> tuple[int, int] | None:
            written = example.features["context"]
            can = [any(c.isalnum() for c in written[begin:end]) for begin, end in offsets_Nx2]
            return overlap_span(*example.texts, np.array(can, bool), self.max_answer)

        return {
            shown: self._scored(examples, language, answer, context)
            for _, shown, language, examples in self._tests(context)
        }

    def _tests(self, context: Context) -> list[tuple[str, str, str, list[Example]]]:
        """Of each task its name, its name in results, its contexts' language, and its examples.

        Raises:
          UserError: questions have been dropped, so that no score would be the test's.
        """

        def read() -> list[tuple[str, str, str, list[Example]]]:
            rows, there = self.rows(context), {}
            for spec in self.datasets:
                manifests = context.caches[spec].manifests
                for task, examples in context.examples(spec).items():
                    if dropped := sum(manifests[task].dropped.values()):
                        raise UserError(
                            f"{task}/{self.split}: {dropped} questions were dropped from the cache "
                            f"in rows of {self.length} tokens; raise AnswerScores.length, so that "
                            "windows have room beside the question"
                        )
                    ordered = sorted(examples, key=lambda example: example.number)
                    there[task] = manifests[task].languages[-1], ordered
            names = zip(rows.tasks, rows.task_names(), strict=True)
            return [(task, name, *there[task]) for task, name in names]

        return context.once(
            ("questions", *self.datasets, self.languages and tuple(self.languages)), read
        )

    def _windows(self, subject: Subject, context: Context) -> dict[str, dict[int, list[Window]]]:
        """By task and number of the example its windows, in their order."""
        rows = self.rows(context)
        found = {task: collections.defaultdict(dict) for task in rows.tasks}

        def predict(model, batch, reading):
            scores_BxLx2, joined = head_scores(model, self.head, batch, reading)
            # [CLS] of the context has no place in the joined row.
            scores_BxLx2 = jnp.where(joined.segment_ids[..., None] != 0, scores_BxLx2, -jnp.inf)
            moved_BxL = jnp.argsort(joined.source, axis=1)
            return jnp.take_along_axis(scores_BxLx2, moved_BxL[..., None], axis=1)

        for own, scores_BxLx2 in self.predicted(subject, context, predict):
            if np.isnan(scores_BxLx2).any():
                raise NotFiniteError(
                    f"{self._data}, step {subject.description.step}: scores are NaN; evaluate an "
                    "earlier checkpoint, and train with a lower learning rate"
                )
            for row, place in np.argwhere(own["example"] >= 0):
                segments_L = own["segment_ids"][row]
                begin, middle, end = np.searchsorted(
                    np.where(segments_L == 0, np.iinfo(np.int32).max, segments_L),
                    [2 * place + 1, 2 * place + 2, 2 * place + 3],
                )
                starts_S, ends_S = scores_BxLx2[row, begin:end].T
                task = rows.tasks[rows.row_tasks[own["row_id"][row]]]
                number, piece = own["example"][row, place], own["piece"][row, place]
                at = middle + 1 - begin
                found[task][number][piece] = Window(0, at, end - middle - 2, starts_S, ends_S)
        return {
            task: {number: self._placed(windows) for number, windows in numbered.items()}
            for task, numbered in found.items()
        }

    def _placed(self, windows: Mapping[int, Window]) -> list[Window]:
        """Windows in their order, each with the number of its first token."""
        first, placed = 0, []
        for piece in sorted(windows):
            placed.append(windows[piece]._replace(first=first))
            first += windows[piece].size - self.stride
        return placed

    def _best(
        self, windows: Mapping[int, Sequence[Window]], example: Example, offsets_Nx2: np.ndarray
    ) -> tuple[int, int] | None:
        del offsets_Nx2
        return best_span(windows[example.number], N_BEST, self.max_answer)

    def _scored(
        self, examples: Sequence[Example], language: str, answer: Answer, context: Context
    ) -> Scored:
        counts, predictions, offsets = [], [], {}
        for example in examples:
            written = example.features["context"]
            if written not in offsets:  # several questions on one context
                offsets[written] = spans.encode(context.vocabulary, written)[1]
            span = answer(example, offsets[written])
            said = "" if span is None else spans.text_of(written, offsets[written], *span)
            gold = [own["text"] for own in json.loads(example.features["answers"])]
            counts.append(answers.scores(said, gold, self.rule, language))
            predictions.append({"id": example.features["id"], "text": said})
        exact_N, f1_N = np.array(counts, np.float64).reshape(-1, 2).T
        one_N = np.ones(len(counts))
        return Scored(
            {"f1": np.stack([f1_N, one_N], 1), "exact_match": np.stack([exact_N, one_N], 1)},
            predictions,
        )
