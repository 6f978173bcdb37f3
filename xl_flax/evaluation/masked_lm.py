"""Masked-token loss and accuracy per language, beside what token frequencies alone reach.

Shapes: Batch, Length, D = width, V = vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xl_flax.checkpoints.description import Description
from xl_flax.data.batches import global_batch
from xl_flax.data.layout import Layout, Length
from xl_flax.data.mixtures import mixture_names
from xl_flax.data.prepare import DatasetSpec
from xl_flax.data.stream import HeldOutRows
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.evaluation import report
from xl_flax.evaluation.ahead import rows_per_batch, run_ahead
from xl_flax.evaluation.base import Evaluation, NotFiniteError, Subject
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.results import MACRO, Result, signature
from xl_flax.models.heads import MLM_HEAD, mlm_prediction
from xl_flax.ops.cross_entropy import chunk_size, linear_cross_entropy
from xl_flax.ops.languages import language_rows
from xl_flax.ops.masking import select_slots
from xl_flax.parallel.rules import Partitioning, constrain, local_shape
from xl_flax.settings import Count, MixtureNames, Name, Names, Rate

TOKENS_PER_DEVICE = 8192  # in a batch, padding included
LOGITS_MIB = 128  # memory for the logits of a batch that exist at once, per device
KEY = 0  # of the masks: every evaluation hides the same tokens


@dataclasses.dataclass
class Score:
    """Sums over the masked tokens of one language."""

    loss_sum: float = 0.0  # nats
    correct: float = 0.0
    targets: list[np.ndarray] = dataclasses.field(default_factory=list)  # int32, the hidden tokens

    @property
    def count(self) -> int:
        """Masked tokens."""
        return sum(map(len, self.targets))

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / self.count

    @property
    def accuracy(self) -> float:
        """Share of the masked tokens that got the highest probability."""
        return self.correct / self.count


@gin.configurable
@dataclasses.dataclass(frozen=True)
class MaskedAccuracy(Evaluation):
    """Masked-token loss and accuracy per language on held-out text, without dropout.

    Every chosen token is replaced by the mask token (Devlin et al., 2019, leave a tenth as it is
    when training; a model scores there by copying). The same tokens are hidden in every checkpoint.
    """

    # Its name, or several, or phases [(first row, name), …]: the rows of all their tasks.
    mixture: MixtureNames = gin.REQUIRED
    length: Length = gin.REQUIRED  # tokens per row
    languages: Names | None = None  # some of the mixture's, as in ['deu', 'eng']; None: all
    split: Name = "validation"
    rows_per_task: Count | None = None  # the first ones only; None: all
    rate: Rate = 0.15  # share of the tokens that are hidden
    baseline: Name | None = None  # mixture whose "train" split gives frequencies; None: the same

    @property
    def datasets(self) -> list[DatasetSpec]:
        """The held-out text."""
        return self._specs(self.mixture, self.split)

    @property
    def control_datasets(self) -> list[DatasetSpec]:
        """The text whose token frequencies are the baseline."""
        return self._specs(self.baseline or self.mixture, "train")

    def signatures(self, description: Description, context: Context) -> list[str]:
        """One, of all results.

        Raises:
          UserError: the model has no MLM head, or rows are longer than it takes.
        """
        if MLM_HEAD not in description.heads:
            raise UserError(
                "MaskedAccuracy needs a model with an MLM head, and this one has "
                f"{', '.join(description.heads) or 'no heads'}: leave MaskedAccuracy out of "
                "EvaluateConfig.evaluations and TrainConfig.held_out"
            )
        longest = description.encoder.max_positions
        if self.length > longest:
            raise UserError(
                f"MaskedAccuracy.length = {self.length}: the model takes at most {longest} tokens"
            )
        rows = self._rows(context)
        return [
            signature(
                "masked_lm",
                data=self._data,
                languages=",".join(rows.languages) if self.languages else len(rows.languages),
                rows=len(rows),
                length=self.length,
                rate=self.rate,
                masks=f"all,key{KEY}",
                baseline="none" if context.training else self._baseline,
                vocabulary=description.vocabulary[:12],
            )
        ]

    def __call__(self, subject: Subject, context: Context) -> list[Result]:
        """Evaluates one subject.

        Returns:
          Per language and as a mean over languages ("macro"): "loss", "accuracy", and, but for
          training, on the very same tokens "unigram_loss" and "unigram_accuracy".

        Raises:
          NotFiniteError: a loss is not finite.
          UserError: as `signatures`, or no token of a language was hidden, or the baseline lacks
            a language.
        """
        (sign,) = self.signatures(subject.description, context)
        score = context.once(
            ("masked_lm", subject.graph, self.rate),
            lambda: make_score(subject.graph, context.vocabulary, self.rate, context.partitioning),
        )
        scores = score_rows(
            score,
            subject.params,
            self._rows(context),
            context.partitioning,
            subject.description.all_languages,
        )
        where = f"{self._data}, step {subject.description.step}"
        if context.training:  # a few rows may have nothing of a language to hide
            scores = {language: score for language, score in scores.items() if score.count}
        check_scores(scores, where)
        values = {k: {"loss": s.loss, "accuracy": s.accuracy} for k, s in scores.items()}
        if not context.training:
            for language, baseline in self._unigram_values(scores, context).items():
                values[language] |= baseline
        counts = {language: score.count for language, score in scores.items()}
        unknown = self._rows(context).unknown()
        return list(self._results(values, counts, unknown, sign))

    def table(self, results: Sequence[Result]) -> str:
        """Per language: loss and accuracy of the model and of token frequencies."""
        return report.masked_lm(results)

    def summary(self, results: Sequence[Result]) -> str:
        """Means over languages."""
        macro = {r.metric: r.value for r in results if r.languages == (MACRO,)}
        return f"{self._name}: loss {macro['loss']:.4f} acc {macro['accuracy']:.3f}"

    @property
    def _name(self) -> str:
        return "+".join(mixture_names(self.mixture))

    @property
    def _data(self) -> str:
        return f"{self._name}/{self.split}"

    @property
    def _baseline(self) -> str:
        return f"{'+'.join(mixture_names(self.baseline or self.mixture))}/train"

    def _specs(self, mixture: Any, split: str) -> list[DatasetSpec]:
        layout = Layout(self.length)
        return [DatasetSpec(name, split, layout) for name in mixture_names(mixture)]

    def _rows(self, context: Context) -> HeldOutRows:
        rows = context.rows(self.datasets, self.rows_per_task, self.languages)
        if rows.num_texts > 1:
            raise UserError(
                f"MaskedAccuracy: {self._data} is parallel text; give it a mixture of text in one "
                "language each"
            )
        return rows

    def _unigram_values(
        self, scores: Mapping[str, Score], context: Context
    ) -> dict[str, dict[str, float]]:
        unigrams = context.unigrams(self.control_datasets)
        ordinary_V = ~context.vocabulary.special_mask()
        values = {}
        for language, score in scores.items():
            if language not in unigrams:
                raise UserError(
                    f"{self._baseline} has no {language!r} to take the unigram baseline from; set "
                    "MaskedAccuracy.baseline to a mixture that has"
                )
            targets_N = np.concatenate(score.targets)
            loss, accuracy = unigram_scores(targets_N, *unigrams[language], ordinary_V)
            values[language] = {"unigram_loss": loss, "unigram_accuracy": accuracy}
        return values

    def _results(
        self,
        values: Mapping[str, Mapping[str, float]],
        counts: Mapping[str, int],
        unknown: Mapping[str, float],
        sign: str,
    ) -> Iterator[Result]:
        make = functools.partial(Result, "masked_lm", self._data, signature=sign)
        for language, metrics in values.items():
            for metric, value in metrics.items():
                share = (unknown[language],)
                n = counts[language]
                yield make((language,), metric, value, n, unknown=share)
        share = (max(unknown[language] for language in values),)
        for metric in next(iter(values.values())):
            mean = float(np.mean([metrics[metric] for metrics in values.values()]))
            yield make((MACRO,), metric, mean, len(values), unknown=share)


def check_scores(scores: Mapping[str, Score], where: str) -> None:
    """Raises an error unless every language has masked tokens and a finite loss."""
    if not scores:
        raise UserError(f"{where}: no token was hidden; raise MaskedAccuracy.rows_per_task")
    for language, score in scores.items():
        if not score.count:
            raise UserError(
                f"{where}: no token of {language!r} was hidden; give it more held-out text, or "
                "raise MaskedAccuracy.rate"
            )
        if not math.isfinite(score.loss_sum):
            raise NotFiniteError(
                f"{where}: the loss of {language!r} is not finite; evaluate an earlier checkpoint, "
                "and train with a lower learning rate"
            )


def make_score(
    graph: nnx.GraphDef, vocabulary: Vocabulary, rate: float, partitioning: Partitioning
) -> Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]:
    """Builds the jitted `score(params, batch)`, compiled once and good for any parameters.

    Args:
      graph: of the model.
      vocabulary: of the rows.
      rate: share of the tokens to hide, all of them behind the mask token.
      partitioning: the batch is spread over its data axes.

    Returns:
      A function of parameters and a batch (`tokens`, `segment_ids`, `positions`, `row_id`, and as
      `languages` int32[B, 1] rows of the encoder's language table). It returns `hidden` bool[B, L],
      and `loss` and `correct` float32[B, L], 0 where nothing is hidden.
    """
    special_V = jnp.asarray(vocabulary.special_mask())
    mask_id = vocabulary.special.mask

    def score(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        with partitioning.activate():
            model = nnx.merge(graph, params)
            tokens_BxL, segments_BxL = batch["tokens"], batch["segment_ids"]
            size, length = tokens_BxL.shape

            def hide(row: jax.Array, tokens_L: jax.Array, segments_L: jax.Array) -> jax.Array:
                key = jax.random.fold_in(jax.random.key(KEY), row)
                # A slot for every token: here nothing may overflow.
                slots = select_slots(key, tokens_L, segments_L, special_V, rate, length)
                return jnp.zeros(length, bool).at[slots.positions_K].set(True, mode="drop")

            hidden_BxL = jax.vmap(hide)(batch["row_id"], tokens_BxL, segments_BxL)
            x_BxLxD = model.encoder(
                jnp.where(hidden_BxL, mask_id, tokens_BxL),
                segment_ids=segments_BxL,
                positions=batch["positions"],
                languages=batch["languages"],
            )
            head, table_VxD, bias_V = mlm_prediction(model)
            local_rows, local_vocab = local_shape(("batch", "vocab"), (size, table_VxD.shape[0]))
            result = linear_cross_entropy(
                constrain(head.features(x_BxLxD), ("batch", None, None)),
                table_VxD,
                bias_V,
                tokens_BxL,
                hidden_BxL.astype(jnp.float32),
                chunk=chunk_size(rate * length * local_rows, 4 * local_vocab, LOGITS_MIB),
                shards=size // local_rows,
            )
            return {
                "hidden": hidden_BxL,
                "loss": result.loss_BxK,
                "correct": result.correct_BxK,
            }

    return jax.jit(score, out_shardings=partitioning.sharding(()))


def score_rows(
    score: Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]],
    params: Any,
    rows: HeldOutRows,
    partitioning: Partitioning,
    languages: Sequence[str] = (),
) -> dict[str, Score]:
    """Scores parameters on held-out rows, during training or after it.

    Args:
      score: from `make_score`.
      params: of the model.
      rows: held-out rows; all of them are read.
      partitioning: that `score` was made with.
      languages: those of the run, in the order of the encoder's language table.

    Returns:
      The sums of each language in `rows.languages`.
    """
    table = language_rows(rows.languages, languages)
    batch_size = rows_per_batch(rows.length, TOKENS_PER_DEVICE, partitioning, len(rows))
    sharding = partitioning.sharding(("batch", None))
    scores = {language: Score() for language in rows.languages}

    def batches() -> Iterator[tuple[int, tuple]]:
        for first in range(0, len(rows), batch_size):
            batch = global_batch(rows, first, batch_size, sharding)
            yield first, (batch | {"languages": _looked_up(table, batch["languages"])},)

    for first, scored in run_ahead(score, params, batches(), partitioning):
        hidden_BxL, loss_BxL, correct_BxL = (scored[k] for k in ("hidden", "loss", "correct"))
        # Read again rather than fetched: another process may hold these rows' devices.
        own = rows.rows(range(first, first + batch_size))
        for i in np.unique(own["languages"]):
            hidden = hidden_BxL & (own["languages"] == i)
            total = scores[rows.languages[i]]
            total.loss_sum += float(loss_BxL[hidden].sum(dtype=np.float64))
            total.correct += float(correct_BxL[hidden].sum(dtype=np.float64))
            total.targets.append(own["tokens"][hidden])
    return scores


@jax.jit
def _looked_up(table: jax.Array, indices: jax.Array) -> jax.Array:
    return table[indices]


def unigram_scores(
    targets_N: np.ndarray, ids: np.ndarray, counts: np.ndarray, ordinary_V: np.ndarray
) -> tuple[float, float]:
    """What a language's token frequencies reach on targets, without looking at the context.

    The probability of a token is its relative frequency; the share that Good (1953) estimates for
    unseen tokens, that of tokens seen once, is spread evenly over them.

    Args:
      targets_N: int[N], the hidden tokens.
      ids: int[k], the tokens seen in training.
      counts: int[k], how often.
      ordinary_V: bool[V], the tokens that can be targets.

    Returns:
      Mean cross-entropy in nats, and the accuracy of always saying the most frequent token.
    """
    count_V = np.zeros(len(ordinary_V))
    count_V[ids] = counts
    count_V[~ordinary_V] = 0
    total = count_V.sum()
    unseen = ordinary_V & (count_V == 0)
    share = max((count_V == 1).sum(), 1) / (total + 1) if unseen.any() else 0.0
    p_V = np.where(unseen, share / max(unseen.sum(), 1), (1 - share) * count_V / total)
    return -float(np.log(p_V[targets_N]).mean()), float((targets_N == count_V.argmax()).mean())
