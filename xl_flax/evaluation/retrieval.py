"""Sentence retrieval: is the nearest sentence of the other language the translation?"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xl_flax.checkpoints.description import Description
from xl_flax.data.prepare import Need
from xl_flax.errors import UserError
from xl_flax.evaluation import report
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.embed import embed, make_pool
from xl_flax.evaluation.results import MACRO, Result, signature
from xl_flax.models.heads import Model

BLOCK = 4096  # sentences on each side whose similarities exist at once: 64 MiB
TIE = 1e-6  # cosines closer than float32 can tell apart count as equal


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SentenceRetrieval:
    """P@1 of nearest-neighbour search by cosine between all pairs of languages of a mixture.

    Sentences are mean-pooled without special tokens. Example i of every task of the mixture is the
    same sentence; the candidates are all sentences of the other language (as in Tatoeba: Artetxe
    and Schwenk, 2019, doi:10.1162/tacl_a_00288). A query whose best candidates tie gets the share
    of them that is right, so an encoder that maps everything to one point scores 1/n and not 1.
    """

    mixture: str | Sequence[str] = gin.REQUIRED  # its name, or several (one per pair: Tatoeba)
    split: str = "test"
    layers: str | Sequence[int] = "all"  # 0 = embeddings, i = after layer i, -1 = last; or "all"
    length: int = 128  # longest input, special tokens included; longer ones are cut, and counted

    @property
    def needs(self) -> list[Need]:
        """What must be cached."""
        names = [self.mixture] if isinstance(self.mixture, str) else self.mixture
        return [Need(name, self.split, self.length) for name in names]

    def signatures(self, description: Description, context: Context) -> list[str]:
        """Of the results that a call will give: one per mixture and layer."""
        return [
            self._signature(need, layer, description, context)
            for need in self.needs
            for layer in self._layers(description)
        ]

    def __call__(self, model: Model, description: Description, context: Context) -> list[Result]:
        """Evaluates one checkpoint.

        Returns:
          Per layer: "p@1" of each ordered pair (query language, language searched), "p@1_mean" of
          its two directions, and the unweighted mean over all ordered pairs as "macro".

        Raises:
          UserError: the tasks are not aligned, a layer does not exist, embeddings are not finite.
        """
        layers = self._layers(description)
        graph, state = nnx.split(model)
        params = nnx.to_pure_dict(state)
        pool = context.once(
            ("pool", graph, layers), lambda: make_pool(graph, layers, context.partitioning)
        )
        results = []
        for need in self.needs:
            examples = context.aligned(*need)
            sentences = list(itertools.chain.from_iterable(examples.values()))
            length = self._length(description)
            self._tell(need, examples, length)
            embedded = embed(
                pool,
                params,
                sentences,
                context.vocabulary.special,
                length,
                context.partitioning,
                f"encoding {need.mixture}",
            )
            parts = np.split(embedded, len(examples), axis=1)
            by_language = dict(zip(examples, parts, strict=True))
            for i, layer in enumerate(layers):
                vectors = {language: part[i] for language, part in by_language.items()}
                check_finite(vectors, f"{need.mixture}, layer {layer}, step {description.step}")
                sign = self._signature(need, layer, description, context)
                results += self._pairs(vectors, need, layer, sign)
        return results

    def table(self, results: Sequence[Result]) -> str:
        """What the console shows."""
        return report.retrieval(results)

    def _pairs(
        self, vectors: dict[str, np.ndarray], need: Need, layer: int, sign: str
    ) -> list[Result]:
        make = functools.partial(
            Result,
            task="retrieval",
            data=f"{need.mixture}/{need.split}",
            signature=sign,
            layer=layer,
            pooling="mean",
        )
        results = []
        for a, b in itertools.combinations(vectors, 2):
            forward, backward = map(float, precision_at_1(vectors[a], vectors[b]))
            n = len(vectors[a])
            results += [
                make(languages=(a, b), metric="p@1", value=forward, n=n),
                make(languages=(b, a), metric="p@1", value=backward, n=n),
                make(languages=(a, b), metric="p@1_mean", value=(forward + backward) / 2, n=2 * n),
            ]
        values = [r.value for r in results if r.metric == "p@1"]
        mean = float(np.mean(values))
        return [*results, make(languages=(MACRO,), metric="p@1", value=mean, n=len(values))]

    def _layers(self, description: Description) -> tuple[int, ...]:
        last = description.encoder.num_layers
        if self.layers == "all":
            return tuple(range(last + 1))
        wrong = [i for i in self.layers if not isinstance(i, int) or not -last - 1 <= i <= last]
        if isinstance(self.layers, str) or wrong or not self.layers:
            raise UserError(
                f"SentenceRetrieval.layers = {self.layers!r}: give a list of layers from 0 "
                f'(embeddings) to {last}, or "all"'
            )
        return tuple(sorted({i % (last + 1) for i in self.layers}))

    def _length(self, description: Description) -> int:
        return min(self.length, description.encoder.max_positions)

    def _signature(self, need: Need, layer: int, description: Description, context: Context) -> str:
        examples = context.aligned(*need)
        return signature(
            "retrieval",
            data=f"{need.mixture}/{need.split}",
            languages=len(examples),
            n=len(next(iter(examples.values()))),
            layer=layer,
            pooling="mean",
            similarity="cosine",
            candidates="one_language",
            length=self._length(description),
        )

    def _tell(self, need: Need, examples: dict[str, list[np.ndarray]], length: int) -> None:
        sizes = {language: np.array([len(s) for s in e]) for language, e in examples.items()}
        for what, count in (
            (f"sentences longer than {length} tokens were cut", lambda s: (s > length - 2).sum()),
            ("sentences are empty and can be found by chance only", lambda s: (s == 0).sum()),
        ):
            counts = {language: int(count(s)) for language, s in sizes.items()}
            if total := sum(counts.values()):
                listed = ", ".join(f"{language} {n}" for language, n in counts.items() if n)
                share = total / sum(map(len, sizes.values()))
                print(f"{need.mixture}: {total:,} {what} ({share:.1%}: {listed})")


def check_finite(vectors: dict[str, Any], where: str) -> None:
    """Raises UserError if embeddings have NaN or infinite values."""
    for language, x_NxD in vectors.items():
        bad = int((~np.isfinite(x_NxD).all(axis=1)).sum())
        if bad:
            raise UserError(
                f"{where}: {bad:,} of {len(x_NxD):,} embeddings of {language!r} are NaN or "
                "infinite; evaluate an earlier checkpoint, and train with a lower learning rate"
            )


def precision_at_1(x_NxD: np.ndarray, y_NxD: np.ndarray) -> tuple[float, float]:
    """P@1 by cosine where row i of one side belongs to row i of the other.

    Similarities are computed in blocks: memory grows with N, not with N².

    Returns:
      Queries x searched in y, and queries y searched in x. A right candidate that ties with k
      others for the first place counts 1 / (k + 1): the expected value of breaking ties at random.
    """
    x_NxD, y_NxD = _unit(x_NxD), _unit(y_NxD)
    gold_N = jnp.einsum("nd,nd->n", x_NxD, y_NxD, precision="highest")
    n = len(gold_N)
    counts = np.zeros((2, 2, n), np.int64)  # direction; above the right one, tied with it
    for i in range(0, n, BLOCK):
        for j in range(0, n, BLOCK):
            rows, columns = slice(i, i + BLOCK), slice(j, j + BLOCK)
            forward, backward = _compare(x_NxD[rows], y_NxD[columns], gold_N[rows], gold_N[columns])
            counts[0, :, rows] += np.asarray(forward)
            counts[1, :, columns] += np.asarray(backward)
    above, tied = counts[:, 0], counts[:, 1]
    return tuple(np.where(above == 0, 1 / np.maximum(tied, 1), 0.0).mean(axis=1))


@jax.jit
def _unit(x_NxD: jax.Array) -> jax.Array:
    """Rows of length 1; zeros stay zeros."""
    x_NxD = jnp.asarray(x_NxD, jnp.float32)
    return x_NxD / jnp.maximum(jnp.linalg.norm(x_NxD, axis=1, keepdims=True), 1e-30)


@jax.jit
def _compare(x_QxD, y_CxD, gold_Q, gold_C) -> tuple[jax.Array, jax.Array]:
    """Counts of similarities above and equal to the right one, int32[2, Q] and int32[2, C]."""
    s_QxC = jnp.einsum("qd,cd->qc", x_QxD, y_CxD, precision="highest")

    def count(margin_QxC: jax.Array, axis: int) -> jax.Array:
        above = (margin_QxC > TIE).sum(axis)
        return jnp.stack([above, (margin_QxC >= -TIE).sum(axis) - above])

    return count(s_QxC - gold_Q[:, None], 1), count(s_QxC - gold_C[None, :], 0)
