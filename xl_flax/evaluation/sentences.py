"""What evaluations of sentence embeddings share: which sentences, and how they are embedded."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, get_args

import gin
import numpy as np
from flax import nnx

from xl_flax.checkpoints.description import Description
from xl_flax.data.layout import Layout
from xl_flax.data.mixtures import mixture_names
from xl_flax.data.prepare import DatasetSpec
from xl_flax.errors import UserError
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.embed import Encoding, embed, make_pool
from xl_flax.evaluation.results import Result, signature
from xl_flax.models.heads import HEADS, Model
from xl_flax.ops.languages import language_rows
from xl_flax.ops.pooling import Pooling

KEPT_BYTES = 2 << 30  # of embeddings, for the other evaluations of a checkpoint


@dataclasses.dataclass(frozen=True)
class SentenceEvaluation:
    """An evaluation on mixtures of which example i of every task is the same sentence."""

    mixture: str | Sequence[str] = gin.REQUIRED  # its name, or several (one per pair: Tatoeba)
    split: str = "test"
    layers: str | Sequence[int] = "all"  # 0 = embeddings, i = after layer i, -1 = last; or "all"
    pooling: Pooling = "mean"  # without special tokens; or "mean_all", with them; or "cls"
    head: str | None = None  # a trained sentence head, with its own layer and pooling
    pivot: str | None = None  # only pairs with this language, as in "eng"; None: all pairs
    center: bool = False  # subtract each language's mean first (Libovický et al. 2020)
    length: int = 128  # longest input, special tokens included; longer ones are cut, and counted

    @property
    def datasets(self) -> list[DatasetSpec]:
        """What must be cached."""
        layout = Layout(self.length)
        return [DatasetSpec(name, self.split, layout) for name in mixture_names(self.mixture)]

    def pairs(self, need: DatasetSpec, languages: Collection[str]) -> list[tuple[str, str]]:
        """Pairs of a mixture's languages, each once; with a pivot those that it is part of.

        Raises:
          UserError: the mixture has no such language.
        """
        if self.pivot not in (None, *languages):
            raise UserError(
                f"{type(self).__name__}.pivot = {self.pivot!r} is no language of {need.mixture}: "
                + ", ".join(languages)
            )
        every = itertools.combinations(languages, 2)
        return [pair for pair in every if self.pivot is None or self.pivot in pair]

    def encoding(self, description: Description) -> Encoding:
        """Layers, pooling and head, checked against the model.

        Raises:
          UserError: the model has no such layer or head, or there is no such pooling.
        """
        name = f"{type(self).__name__}."
        if self.head is not None:
            return self._head_encoding(name, description)
        if self.pooling not in get_args(Pooling):
            raise UserError(f"{name}pooling = {self.pooling!r}: choose 'mean', 'mean_all' or 'cls'")
        last = description.encoder.num_layers
        if self.layers == "all":
            return Encoding(tuple(range(last + 1)), self.pooling)
        wrong = isinstance(self.layers, str) or [
            i for i in self.layers if not isinstance(i, int) or not -last - 1 <= i <= last
        ]
        if wrong or not self.layers:
            raise UserError(
                f"{name}layers = {self.layers!r}: give a list of layers from 0 (embeddings) to "
                f'{last}, or "all"'
            )
        return Encoding(tuple(sorted({i % (last + 1) for i in self.layers})), self.pooling)

    def vectors(
        self, model: Model, description: Description, context: Context
    ) -> Iterator[tuple[DatasetSpec, int, dict[str, np.ndarray]]]:
        """Yields (mixture, layer, language -> float32[N, D]), all layers of one mixture in turn.

        Raises:
          UserError: the tasks are not aligned, or embeddings are not finite.
        """
        encoding, length = self.encoding(description), self._length(description)
        graph, state = nnx.split(model)
        params = nnx.to_pure_dict(state)
        pool = context.once(
            ("pool", graph, encoding), lambda: make_pool(graph, encoding, context.partitioning)
        )
        for need in self.datasets:
            examples = context.aligned(*need)
            self._tell(need, examples, length)
            rows = language_rows(list(examples), description.all_languages)
            encode = functools.partial(
                embed,
                pool,
                params,
                list(itertools.chain.from_iterable(examples.values())),
                context.vocabulary.special,
                length,
                context.partitioning,
                f"encoding {need.mixture}",
                np.repeat(rows, [len(e) for e in examples.values()]),
            )
            embedded = _kept(context, (description.step, need, encoding, length), encode)
            parts = np.split(embedded, len(examples), axis=1)
            for i, layer in enumerate(encoding.layers):
                vectors = {name: part[i] for name, part in zip(examples, parts, strict=True)}
                check_finite(vectors, f"{need.mixture}, layer {layer}, step {description.step}")
                yield need, layer, vectors

    def result_maker(
        self,
        task: str,
        needs: Sequence[DatasetSpec],
        layer: int,
        description: Description,
        context: Context,
        **how: Any,
    ) -> functools.partial:
        """`Result` with all but its number; `how` is what else the signature says."""
        examples = [context.aligned(*need) for need in needs]
        pooling = self.encoding(description).pooling
        sign = signature(
            task,
            data=_name(needs),
            languages=len({language for e in examples for language in e}),
            n=sum(len(next(iter(e.values()))) for e in examples),
            layer=layer,
            pooling=pooling,
            head=self.head or "none",
            center="language_mean" if self.center else "none",
            **how,
            length=self._length(description),
        )
        return functools.partial(
            Result,
            task=task,
            data=_name(needs),
            signature=sign,
            layer=layer,
            pooling=pooling,
            head=self.head,
        )

    def _head_encoding(self, name: str, description: Description) -> Encoding:
        kinds = {key: value.get("kind", key) for key, value in description.heads.items()}
        if kinds.get(self.head) != "sentence":
            found = ", ".join(key for key, kind in kinds.items() if kind == "sentence") or "none"
            raise UserError(
                f"{name}head = {self.head!r}: the checkpoint has no such sentence head; it has "
                f"{found}"
            )
        settings = {k: v for k, v in description.heads[self.head].items() if k != "kind"}
        build = lambda: HEADS["sentence"](description.encoder, nnx.Rngs(0), **settings)  # noqa: E731
        head = nnx.eval_shape(build)
        return Encoding((head.layer,), head.pooling, self.head)

    def _length(self, description: Description) -> int:
        return min(self.length, description.encoder.max_positions)

    def _tell(self, need: DatasetSpec, examples: dict[str, list[np.ndarray]], length: int) -> None:
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


def _kept(context: Context, key: tuple[Any, ...], encode: Callable[[], np.ndarray]) -> np.ndarray:
    """Embeddings that another evaluation of the same checkpoint has made, if they were kept."""
    kept: dict[tuple[Any, ...], np.ndarray] = context.once("embedded", dict)
    if any(step != key[0] for step, *_ in kept):
        kept.clear()
    if key in kept:
        return kept[key]
    embedded = encode()
    if embedded.nbytes + sum(x.nbytes for x in kept.values()) <= KEPT_BYTES:
        kept[key] = embedded
    return embedded


def _name(needs: Sequence[DatasetSpec]) -> str:
    """mixture/split; of several mixtures the first, how many more, and a digest of all names."""
    name = needs[0].mixture
    if len(needs) > 1:
        digest = hashlib.sha256("\n".join(need.mixture for need in needs).encode()).hexdigest()
        name += f"+{len(needs) - 1}#{digest[:6]}"
    return f"{name}/{needs[0].split}"


def centred(x_NxD: np.ndarray) -> np.ndarray:
    """Without their mean, so that what is common to a language falls away.

    Libovický, Rosa and Fraser, 2020 (arXiv:2004.05160).
    """
    return x_NxD - x_NxD.mean(axis=0)


def check_finite(vectors: dict[str, Any], where: str) -> None:
    """Raises UserError if embeddings have NaN or infinite values."""
    for language, x_NxD in vectors.items():
        bad = int((~np.isfinite(x_NxD).all(axis=1)).sum())
        if bad:
            raise UserError(
                f"{where}: {bad:,} of {len(x_NxD):,} embeddings of {language!r} are NaN or "
                "infinite; evaluate an earlier checkpoint, and train with a lower learning rate"
            )
