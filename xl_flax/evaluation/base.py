"""What an evaluation is: the one contract that all of them follow, and what they are given.

The command (`python -m xl_flax.evaluate`) evaluates checkpoints, a training run its live parameters
(`TrainConfig.held_out`). Both make a `Subject` and a `Context` and call the evaluation with them.
An evaluation reads no file of a checkpoint, so it is the same in both places; `Context.training`
says in which of them it runs.

A new evaluation is a frozen dataclass that inherits from `Evaluation`, has `@gin.configurable` and
is named in Gin. It may lie outside this package; the Gin file then begins with `import my.module`.
"""

import dataclasses
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.load import load_parts
from xl_flax.data.prepare import DatasetSpec
from xl_flax.errors import UserError
from xl_flax.evaluation import report
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.results import MACRO, Result, checkpoint_source
from xl_flax.models.heads import build_model
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.rules import Partitioning
from xl_flax.settings import Settings


class NotFiniteError(UserError):
    """A model's outputs are NaN or infinite. A run logs this and goes on; a sweep lists it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """What is evaluated: a model of a checkpoint, or of a run that is being trained."""

    graph: nnx.GraphDef  # `nnx.merge(graph, params)` gives the `Model`, under jit
    params: Any  # nested dict of sharded arrays
    description: Description  # `description.step` is the step of these very parameters
    key: Hashable  # of what `Context.once_per_subject` remembers; no two subjects share one
    checkpoint: str | None = None  # its folder, if it was read from one

    @classmethod
    def load(cls, checkpoint: str, partitioning: Partitioning) -> "Subject":
        """Reads the parameters of one checkpoint folder.

        Raises:
          UserError: it is damaged.
        """
        graph, params, description = load_parts(checkpoint, partitioning)
        source = checkpoint_source(checkpoint, description.step)
        key = (os.path.abspath(checkpoint), source.id)
        return cls(graph, params, description, key, os.path.abspath(checkpoint))

    @classmethod
    def live(
        cls, graph: nnx.GraphDef, params: Any, description: Description, run: str, step: int
    ) -> "Subject":
        """The parameters of a run after a step."""
        described = dataclasses.replace(description, step=step)
        return cls(graph, params, described, key=("live", run, step))

    @classmethod
    def untrained(
        cls, description: Description, seeds: Sequence[int], partitioning: Partitioning
    ) -> Iterator["Subject"]:
        """Models as runs with these seeds begin with, one by one; no checkpoint is read."""

        def build(seed: int) -> nnx.Module:
            rngs = nnx.Rngs(jax.random.key(seed))
            return build_model(description.encoder, description.heads, rngs)

        graph = params_lib.abstract(lambda: build(0)).graph
        create = params_lib.creator(build, partitioning)
        for seed in seeds:
            key = ("untrained", description.to_json(), seed)
            yield cls(graph, create(np.uint32(seed)), description, key)


class Baseline(NamedTuple):
    """A control that needs no model."""

    name: str  # `Result.model` of its results
    signatures: list[str]  # of its results, known before they are measured
    datasets: list[DatasetSpec]  # that it reads
    measure: Callable[[], list[Result]]


@dataclasses.dataclass(frozen=True)
class Evaluation(Settings):
    """Measures something of a model. Settings are dataclass fields, which Gin sets.

    Must have: `datasets`, `signatures`, `__call__`. May have: `untrained` and `baselines`, which
    are its controls, `control_datasets`, `parts`, `title`, `table`, `details`, `scalars`,
    `summary`; the defaults of the last two suit results with means over languages (`MACRO`).

    Whoever calls sees to it that all datasets are cached before `signatures` or `__call__` runs.
    What depends on data or settings alone is remembered by `context.once(key, make)`, and so are
    jitted functions, by the graph and the settings they are made of: then a sweep over checkpoints
    compiles once per shape. What depends on the parameters is remembered, for the other evaluations
    of the same subject, by `context.once_per_subject(subject.key, key, make)`.
    """

    @property
    def datasets(self) -> list[DatasetSpec]:
        """What must be cached, for checkpoints and in training."""
        raise NotImplementedError

    @property
    def control_datasets(self) -> list[DatasetSpec]:
        """What must be cached for baselines that `__call__` measures itself, but in no training."""
        return []

    @property
    def title(self) -> str:
        """What it is called in messages: by default its kind and its text."""
        mixtures = list(dict.fromkeys(spec.mixture for spec in self.datasets))
        more = f" and {len(mixtures) - 1} more" if len(mixtures) > 1 else ""
        return f"{type(self).__name__} of {mixtures[0]}{more}"

    @property
    def parts(self) -> list["Evaluation"]:
        """What the command measures for one table, with all controls: by default only this one.

        Others are measured in no training, as one on the text by which a layer is chosen.
        """
        return [self]

    @property
    def every_dataset(self) -> list[DatasetSpec]:
        """What the command reads."""
        return [spec for part in self.parts for spec in part.datasets + part.control_datasets]

    def untrained(self, description: Description) -> Description | None:
        """The model that is a control if it is not trained: this one, less the heads not read.

        The command evaluates it with several seeds (`xl_flax.evaluation.controls`) and shows the
        means beside the checkpoint's results. Every evaluation of representations should have this
        control, as random ones are no blank page. None, the default: it says nothing here.
        """
        return None

    def baselines(self, description: Description, context: Context) -> list[Baseline]:
        """Controls that need no model, which the command shows, too. By default none.

        They may depend on the vocabulary and on the longest input of the model described.
        """
        return []

    def signatures(self, description: Description, context: Context) -> list[str]:
        """Of the results that a call will give, so that it can be seen whether they are there.

        It is called before parameters are loaded, and once before a run's first step.

        Raises:
          UserError: a setting is wrong, the model lacks what is evaluated (a head, a layer), or
            the data does not suit.
        """
        raise NotImplementedError

    def __call__(self, subject: Subject, context: Context) -> list[Result]:
        """Evaluates one subject.

        With several processes all of them call it with the same arguments and get the same results.

        Raises:
          NotFiniteError: what the model computes is NaN or infinite.
          UserError: as `signatures`.
        """
        raise NotImplementedError

    def table(self, results: Sequence[Result]) -> str:
        """What the command shows of a checkpoint's results: a table and the signatures.

        Those of the other `parts` and of the controls are among them, these with a `Result.model`.
        It should fit into 80 columns.
        By default a line for each result.
        """
        return report.plain(results)

    def details(self, results: Sequence[Result]) -> str:
        """Tables too long or wide for that, which the command writes to a file; "" for none."""
        return ""

    def scalars(self, results: Sequence[Result]) -> dict[str, float]:
        """What a run logs in `metrics.jsonl` and TensorBoard, by names that begin with "eval/".

        By default the results of one language and the means over all: `scalar_name` says how they
        are called.
        """
        return {scalar_name(r): float(r.value) for r in results if len(set(r.languages)) == 1}

    def summary(self, results: Sequence[Result]) -> str:
        """What a run shows on the console, without a newline.

        By default the means over languages, of the last layer and the first similarity; without
        such means the results of each language.
        """
        means = [r for r in results if r.languages == (MACRO,)]
        means = means or [r for r in results if len(set(r.languages)) == 1]
        layer = max((r.layer for r in means if r.layer is not None), default=None)
        parts: dict[str, list[str]] = {}
        for r in means:
            if r.layer == layer and r.similarity == means[0].similarity:
                language = "" if r.languages == (MACRO,) else f"{r.languages[0]} "
                parts.setdefault(mixture_of(r), []).append(f"{language}{r.metric} {r.value:.4f}")
        of_layer = "" if layer is None else f" (layer {layer})"
        return "  ".join(f"{name}: {' '.join(shown)}{of_layer}" for name, shown in parts.items())


def scalar_name(result: Result) -> str:
    """`eval/MIXTURE/METRIC[/SIMILARITY][/layerN][/LANGUAGE]`; no language for the mean over all."""
    parts = ["eval", mixture_of(result), result.metric]
    if result.similarity is not None:
        parts.append(result.similarity)
    if result.layer is not None:
        parts.append(f"layer{result.layer}")
    languages = dict.fromkeys(result.languages)  # texts of one language name it once
    return "/".join(parts + [language for language in languages if language != MACRO])


def mixture_of(result: Result) -> str:
    """The mixture of `Result.data`, which also names the split."""
    return result.data.rpartition("/")[0]
