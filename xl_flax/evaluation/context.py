"""What every evaluation is given: data, vocabulary, devices, and a memory over checkpoints."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import gin
import numpy as np

from xl_flax.data.build import read_groups
from xl_flax.data.manifest import Cache, read_unigrams
from xl_flax.data.prepare import DatasetSpec, prepare
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.parallel.mesh import MeshConfig
from xl_flax.parallel.rules import Partitioning

T = TypeVar("T")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What `python -m xl_flax.evaluate` does."""

    model_dir: str = gin.REQUIRED  # a run's folder, its `checkpoints/`, or one checkpoint
    cache: Cache = gin.REQUIRED
    evaluations: Sequence[Any] = gin.REQUIRED  # as in [@MaskedAccuracy(), @SentenceRetrieval()]
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)


@dataclasses.dataclass
class Context:
    """Lives as long as the command; what it remembers is shared by the checkpoints of a sweep."""

    cache: Cache
    vocabulary: Vocabulary
    partitioning: Partitioning
    gin_flags: Sequence[str] = ()  # of this process, for the one that builds caches
    _memory: dict[Hashable, Any] = dataclasses.field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, remembered under `key`: data that was read, functions that were compiled."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]

    def aligned(self, mixture: str, split: str, length: int) -> dict[str, list[np.ndarray]]:
        """The examples of a mixture of translations, by language, sorted by name.

        Args:
          mixture: name of a mixture whose tasks have a translation of sentence i as example i, or
            of one task of parallel text.
          split: as "test".
          length: of the cached rows; examples come whole, whatever it is.

        Returns:
          Language (the task's name where two tasks have one language) -> int[n] tokens of each
          example, without special tokens.

        Raises:
          UserError: fewer than two tasks, or they differ in their number of examples.
        """
        return self.once(
            (mixture, split, length), lambda: self._read_aligned(mixture, split, length)
        )

    def unigrams(self, mixture: str, length: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Language -> token ids int32[k] and counts int64[k] in a mixture's train split."""
        return self.once(("unigrams", mixture, length), lambda: self._unigrams(mixture, length))

    def _unigrams(self, mixture: str, length: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        need = DatasetSpec(mixture, "train", length)
        (ready,) = prepare([need], self.cache, self.vocabulary, self.gin_flags)
        counts: dict[str, np.ndarray] = {}
        for task, manifest in ready.manifests.items():
            for side, language in enumerate(manifest.languages):
                ids, own = read_unigrams(self.cache.folder(task, "train", length), side)
                sums = counts.setdefault(language, np.zeros(self.vocabulary.size, np.int64))
                sums[ids] += own
        return {k: (ids := np.flatnonzero(v), v[ids]) for k, v in counts.items()}

    def _read_aligned(self, mixture: str, split: str, length: int) -> dict[str, list[np.ndarray]]:
        need = DatasetSpec(mixture, split, length)
        (ready,) = prepare([need], self.cache, self.vocabulary, self.gin_flags)
        where = f"mixture {mixture!r}, split {split!r}"
        several = len(ready.manifests) > 1
        if several and (parallel := [t for t, m in ready.manifests.items() if m.num_texts > 1]):
            raise UserError(
                f"{where} holds several tasks, also of parallel text ({', '.join(parallel[:3])}): "
                "give the evaluation a list of these instead"
            )
        languages = [m.languages[0] for m in ready.manifests.values()]
        examples = {}
        for task, manifest in ready.manifests.items():
            groups = list(read_groups(self.cache.folder(task, split, length), manifest))
            alone = languages.count(manifest.languages[0]) == 1
            for side, name in enumerate(manifest.languages if alone else [task]):
                examples[name] = [group[side] for group in groups]
        check_aligned(where, examples)
        return dict(sorted(examples.items()))


def check_aligned(what: str, examples: dict[str, Sequence[Any]]) -> None:
    """Raises UserError unless there are two or more languages with equally many examples."""
    if len(examples) < 2:
        raise UserError(
            f"{what} has one language ({', '.join(examples)}): retrieval needs a mixture of two or "
            "more tasks whose examples are translations of one another"
        )
    counts = {language: len(e) for language, e in examples.items()}
    empty = [language for language, count in counts.items() if not count]
    if empty:
        raise UserError(f"{what}: no examples in {', '.join(empty)}; check the task's source")
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{language} {count:,}" for language, count in counts.items())
        raise UserError(
            f"{what}: example i of each task must be the same sentence, but their numbers of "
            f"examples differ ({listed}); for pairs of their own size (Tatoeba) make one mixture "
            "per pair"
        )
