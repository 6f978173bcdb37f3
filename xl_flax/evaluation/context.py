"""What every evaluation is given: data, vocabulary, devices, and a memory over checkpoints."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import gin
import numpy as np

from xl_flax.data.build import read_examples
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache, read_unigrams
from xl_flax.data.prepare import Caches, DatasetSpec
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

    caches: Caches  # of all that the evaluations read
    vocabulary: Vocabulary
    partitioning: Partitioning
    _memory: dict[Hashable, Any] = dataclasses.field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, remembered under `key`: data that was read, functions that were compiled."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]

    def aligned(self, mixture: str, split: str, layout: Layout) -> dict[str, list[np.ndarray]]:
        """The examples of a mixture of translations, by language, sorted by name.

        Args:
          mixture: name of a mixture whose tasks have a translation of sentence i as example i, or
            of one task of parallel text.
          split: as "test".
          layout: of the cached rows; examples come whole, whatever it is.

        Returns:
          Language (the task's name where two tasks have one language) -> int[n] tokens of each
          example, without special tokens.

        Raises:
          UserError: fewer than two tasks, they differ in their number of examples, or the texts of
            an example are no translations.
        """
        spec = DatasetSpec(mixture, split, layout)
        return self.once(spec, lambda: self._read_aligned(spec))

    def unigrams(self, specs: Sequence[DatasetSpec]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Language -> token ids int32[k] and counts int64[k] in some datasets; each task once."""
        return self.once(("unigrams", *specs), lambda: self._unigrams(specs))

    def _unigrams(self, specs: Sequence[DatasetSpec]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        manifests = {
            dataset.folders[task]: manifest
            for dataset in map(self.caches.__getitem__, specs)
            for task, manifest in dataset.manifests.items()
        }
        counts: dict[str, np.ndarray] = {}
        for folder, manifest in manifests.items():
            for text, language in enumerate(manifest.languages):
                ids, own = read_unigrams(folder, text)
                sums = counts.setdefault(language, np.zeros(self.vocabulary.size, np.int64))
                sums[ids] += own
        return {k: (ids := np.flatnonzero(v), v[ids]) for k, v in counts.items()}

    def _read_aligned(self, spec: DatasetSpec) -> dict[str, list[np.ndarray]]:
        _, manifests, folders = self.caches[spec]
        where = f"mixture {spec.mixture!r}, split {spec.split!r}"
        several = len(manifests) > 1
        if several and (parallel := [t for t, m in manifests.items() if m.num_texts > 1]):
            raise UserError(
                f"{where} holds several tasks, also of parallel text ({', '.join(parallel[:3])}): "
                "give the evaluation a list of these instead"
            )
        for task, manifest in manifests.items():
            if manifest.num_texts > 1 and not manifest.translations:
                raise UserError(
                    f"{where}: the texts of an example of task {task!r} are no translations "
                    f"(languages {', '.join(manifest.languages)}; features "
                    f"{', '.join(manifest.features) or 'none'}): name parallel text, each text in "
                    "a language of its own"
                )
        languages = [m.languages[0] for m in manifests.values()]
        texts = {}
        for task, manifest in manifests.items():
            examples = list(read_examples(folders[task], manifest))
            alone = languages.count(manifest.languages[0]) == 1
            for k, name in enumerate(manifest.languages if alone else [task]):
                texts[name] = [example.texts[k] for example in examples]
        check_aligned(where, texts)
        return dict(sorted(texts.items()))


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
