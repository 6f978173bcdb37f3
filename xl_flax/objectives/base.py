"""The contract of an objective: everything that one must and may have.

An objective turns batches of rows into a loss. It is a frozen dataclass that Gin configures, and it
comes in two shapes with one signature:

* *A sum over rows* (`compares_rows = False`): masked language modelling, classification. The loss
  of a batch is the sum of the losses of its rows, so a batch can be cut into microbatches.
* *A comparison of encoded rows* (`compares_rows = True`): contrastive objectives. `encode` turns
  each row into vectors by itself, and `loss` compares the vectors of the whole batch.

Only `name` and `loss` (and `encode`) must be given; everything else here has a default. What the
step does with an objective is in `xl_flax.training.step`; docs/architecture.md has an example of
each shape.
"""

import dataclasses
import re
import zlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import gin
import jax
import numpy as np
from annotated_types import Predicate, doc

from xl_flax.data.features import Features
from xl_flax.data.stream import Rows, Stream
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.models.config import EncoderConfig
from xl_flax.models.flops import encoder_flops
from xl_flax.models.heads import HeadSettings, Model
from xl_flax.settings import PHASES, Count, Phases, Settings

Batch = dict[str, jax.Array]

LogName = Annotated[
    str,
    Predicate(lambda name: re.fullmatch(r"[A-Za-z0-9_-]+", name) and name not in ("step", "eval")),
    doc(
        "letters, digits, '_' and '-', and neither 'step' nor 'eval', which logs use for other "
        "values"
    ),
]
Weight = Annotated[
    float,
    Predicate(bool),
    doc(
        "a finite number other than 0, which would compute a loss for nothing: leave the objective "
        "out"
    ),
]

BatchSizes = Annotated[
    Count | Phases[Count],
    doc(f"a whole number, at least 1, or {PHASES.format('such a number')}"),
]


@dataclasses.dataclass(frozen=True)
class Mean:
    """A metric that is logged: the quotient of two of an objective's sums."""

    numerator: str  # a key of `Loss.sums`, or "loss"
    denominator: str = "count"  # a key of `Loss.sums`, or "steps" for a mean over updates
    by_language: bool = False  # also of each language, from the sums "language_…" of both
    on_console: bool = True  # and not only in metrics.jsonl and TensorBoard


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What `encode` and `loss` are given beside the model and the batch."""

    key: jax.Array  # random key of the objective, the same at every step: rows fold in their ids
    stream: Stream  # what the rows are: only languages, num_texts, examples_per_row and features
    buffers: Mapping[str, jax.Array]  # the constant arrays that `Objective.buffers` made
    state: Any = None  # the objective's own state as it was before this step
    phase: Hashable = None  # what `Objective.phase_at` said of this batch; static while compiling
    train: bool = True  # with dropout
    encoded: Any = None  # of a comparison: what `encode` returned, for all rows of the batch


class Loss(NamedTuple):
    """What `Objective.loss` returns. Gradients flow from `total` and from nothing else."""

    total: jax.Array  # float32[]: sum of the losses of the batch
    sums: dict[str, jax.Array]
    """float32 sums over the batch: "count", by which the total is divided for the gradient (0 if
    the batch has nothing to learn from), and the sums that `Objective.metrics` names. The step adds
    "loss", the total."""
    state_update: Any = None
    """What `Objective.update_state` is given. Of a sum over rows it must be a sum over rows, too,
    since it is added up over microbatches and devices: divide in `update_state`, by a count that it
    holds."""


@dataclasses.dataclass(frozen=True)
class Objective(Settings):
    """One of the losses that a run trains; a run trains a weighted sum of them.

    Raises:
      UserError: a setting that makes no sense.
    """

    rows: Rows = gin.REQUIRED  # what it reads
    batch_size: BatchSizes = gin.REQUIRED
    """Rows per step, on all devices together, or phases [(first row, rows per step), ...] at
    absolute row counts. A batch has the size of its first row; each size compiles its own step."""
    microbatches: Count = 1
    """Parts in which a batch is computed one after the other, for activations that do not fit. A
    comparison encodes each part twice, first for the vectors, then for the gradient (Gao et al.
    2021, GradCache, arXiv:2101.06983): the same gradient in less memory and a third more time."""
    weight: Weight = 1.0  # of this loss beside other objectives'
    name: LogName = gin.REQUIRED  # in logs, checkpoints and random keys; unique within a run

    compares_rows: ClassVar[bool] = False
    metrics: ClassVar[Mapping[str, Mean]] = {"loss": Mean("loss")}
    # Fields that may change when a run goes on from a checkpoint.
    free_fields: ClassVar[frozenset[str]] = frozenset({"batch_size", "microbatches", "name"})

    # ---- Its batches

    @property
    def batch_phases(self) -> list[tuple[int, int]]:
        """The batch size as phases [(first row, rows per step), ...]."""
        if isinstance(self.batch_size, int):
            return [(0, self.batch_size)]
        return [(first, size) for first, size in self.batch_size]

    def batch_at(self, row: int) -> int:
        """Rows of a batch that begins at this row of the stream."""
        return [size for first, size in self.batch_phases if first <= row][-1]

    def row_after(self, row: int, steps: int) -> int:
        """The first row that is not read yet, so many steps after a batch began at `row`."""
        ends = [first for first, _ in self.batch_phases[1:]]
        for end in ends:
            size = self.batch_at(row)
            taken = min(steps, max(0, -(-(end - row) // size)))
            row, steps = row + taken * size, steps - taken
        return row + steps * self.batch_at(row)

    # ---- The loss

    def encode(self, model: Model, batch: Batch, inputs: Inputs) -> Any:
        """Vectors of some rows, for an objective that compares rows.

        Each row is encoded independently of the others: the batch may be any part of the whole.

        Returns:
          A pytree of arrays whose first axis is the rows'; `loss` finds it in `inputs.encoded`.
        """
        raise NotImplementedError(f"{type(self).__name__} compares rows and needs `encode`")

    def loss(self, model: Model, batch: Batch, inputs: Inputs) -> Loss:
        """The loss of a batch.

        Args:
          model: encoder and heads.
          batch: what `Stream.rows` gives, with a leading axis of rows: a part of the batch for a
            sum over rows, the whole batch for a comparison.
          inputs: the rest.
        """
        raise NotImplementedError(f"{type(self).__name__} needs `loss`")

    # ---- What it needs of the model and the data

    def heads(self, stream: Stream) -> Mapping[str, HeadSettings]:
        """The heads it trains, by name, with their settings (see `xl_flax.models.heads`)."""
        del stream
        return {}

    def check(self, stream: Stream) -> None:
        """Raises UserError unless the rows of this stream are what the objective can read."""

    def usual_example(self) -> tuple[int, Features]:
        """Texts and features of an example, where no data is there to tell.

        With them a step is compiled before any text is cached: `train --dry_run`, `xl_flax.plan`.
        """
        return 1, {}

    def buffers(
        self, vocabulary: Vocabulary, stream: Stream, languages: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Constant arrays that the loss reads, as ids of special tokens; copied to each device.

        Args:
          vocabulary: of the run.
          stream: the rows that will be read.
          languages: of the run, in the order of the encoder's language table.
        """
        del vocabulary, stream, languages
        return {}

    def phase_at(self, row: int) -> Hashable:
        """A value that is static while the step is compiled, for a batch that begins at this row.

        Each value compiles a step of its own, as another masking rate does.
        """
        del row
        return None

    def at_phase(self, phase: Hashable) -> "Objective":
        """The objective as it is in a phase, of which `flops` is asked."""
        del phase
        return self

    # ---- State of its own, as a momentum encoder, a queue or centroids

    def init_state(self, params: Any, stream: Stream) -> Any:
        """The state before the first step, a pytree of arrays; None: there is none.

        Args:
          params: the model's parameters, a nested dict.
          stream: the rows that will be read.
        """
        del params, stream

    def state_axes(self, axes: Any) -> Any:
        """Logical axis names of the state: its pytree with a tuple of names at each leaf.

        Args:
          axes: the same of the model's parameters: a copy of parameters lies as these do.
        """
        del axes

    def update_state(self, state: Any, params: Any, update: Any) -> Any:
        """The state after an update of the parameters; a skipped step leaves it as it was.

        Args:
          state: before the step.
          params: after the update.
          update: `Loss.state_update` of the whole batch: of a sum over rows the sum over all
            microbatches.
        """
        del params, update
        return state

    # ---- What it costs and what it is

    def flops(self, encoder: EncoderConfig, stream: Stream, two_passes: bool) -> dict[str, float]:
        """FLOPs per token of a row in one step, by part; the formula is printed with every MFU.

        By default those of the whole encoder.

        Args:
          encoder: the encoder's configuration.
          stream: the rows that will be read.
          two_passes: whether rows are encoded twice, which a comparison in microbatches does.
        """
        return encoding_flops(encoder, stream.length, None, two_passes)

    def loop_turns(self, rows: int, length: int, vocabulary: int) -> float:
        """Turns of a loop of the loss of which only the batch knows the number; for plans.

        Args:
          rows: of a microbatch on one device.
          length: tokens per row.
          vocabulary: rows of the token table on one device.
        """
        del rows, length, vocabulary
        return 1

    def description(self) -> dict[str, Any]:
        """What a run may not change when it goes on from a checkpoint, as JSON can hold it."""
        fields = (f.name for f in dataclasses.fields(self))
        kept = (name for name in fields if name not in self.free_fields | {"rows"})
        own = {name: getattr(self, name) for name in kept}
        return {"kind": type(self).__name__, **self.rows.description(), **own}


def objective_key(key: jax.Array, name: str) -> jax.Array:
    """The random key of an objective; it follows from the objective's name, not from its place."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def row_keys(key: jax.Array, row_ids_B: jax.Array) -> jax.Array:
    """A key for each row, key array [B], which no mesh and no cut of the batch changes."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, row_ids_B)


def encoding_flops(
    encoder: EncoderConfig, length: int, layers: Sequence[int] | None, two_passes: bool
) -> dict[str, float]:
    """FLOPs per token of encoding rows and of the gradient, by part.

    Args:
      encoder: the encoder's configuration.
      length: tokens per row.
      layers: whose states are computed; None: the last one's.
      two_passes: whether the rows are encoded once more before, without a gradient.
    """
    parts = encoder_flops(encoder, length, layers)
    if two_passes:
        forward = encoder_flops(encoder, length, layers, backward=False)
        parts["second encoding"] = sum(forward.values())
    return parts
