"""What every evaluation is given: data, vocabulary, devices, and a memory over checkpoints."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np

from xl_flax.data.build import read_examples
from xl_flax.data.features import Example
from xl_flax.data.manifest import Manifest, read_unigrams
from xl_flax.data.prepare import Caches, DatasetSpec
from xl_flax.data.stream import HeldOutRows, open_held_out
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.parallel.rules import Partitioning

T = TypeVar("T")

REMEMBERED_BYTES = 2 << 30  # of arrays, for the other evaluations of a subject


@dataclasses.dataclass
class Context:
    """Lives as long as the command or the run; its memory is shared by all that is evaluated."""

    caches: Caches  # of all that the evaluations read
    vocabulary: Vocabulary
    partitioning: Partitioning
    # Whether live parameters are evaluated while a run trains. No baselines are computed then, and
    # a language of which a small sample says nothing is left out instead of being an error.
    training: bool = False
    # By signature the data and what its examples were predicted to be, which the command writes.
    predictions: dict[str, Any] = dataclasses.field(default_factory=dict)
    _memory: dict[Hashable, Any] = dataclasses.field(default_factory=dict)
    _subject: Hashable = None  # whose arrays `_of_subject` holds
    _of_subject: dict[Hashable, np.ndarray] = dataclasses.field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, remembered under `key`: data that was read, functions that were compiled."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]

    def once_per_subject(
        self, subject: Hashable, key: Hashable, make: Callable[[], np.ndarray]
    ) -> np.ndarray:
        """An array that depends on parameters, made once for all evaluations of one subject.

        The arrays of one subject are remembered at a time, up to `REMEMBERED_BYTES` of them; what
        does not fit is made again.

        Args:
          subject: `Subject.key`.
          key: what the array is, with all settings that it depends on.
          make: makes it.
        """
        if subject != self._subject:
            self._subject = subject
            self._of_subject.clear()
        if key in self._of_subject:
            return self._of_subject[key]
        array = make()
        if array.nbytes + sum(x.nbytes for x in self._of_subject.values()) <= REMEMBERED_BYTES:
            self._of_subject[key] = array
        return array

    def forget_subject(self) -> None:
        """Frees what `once_per_subject` remembers."""
        self._subject = None
        self._of_subject.clear()

    def examples(self, spec: DatasetSpec) -> dict[str, list[Example]]:
        """The examples of a mixture by task, with their features, in the order of the cached rows.

        Those that were cut into pieces are joined again; those that the layout dropped are missing,
        and those that it truncated stay so: `Manifest.dropped` and `.truncated` count them.
        """

        def read() -> dict[str, list[Example]]:
            _, manifests, folders = self.caches[spec]
            return {task: list(read_examples(folders[task], m)) for task, m in manifests.items()}

        return self.once(("examples", spec), read)

    def aligned(self, spec: DatasetSpec) -> dict[str, list[np.ndarray]]:
        """The examples of a mixture of translations, by language, sorted by name.

        Args:
          spec: a mixture whose tasks have a translation of sentence i as example i, or one task of
            parallel text. Unlabelled sentences come whole, however long the rows are in which they
            are cached. Pairs of parallel text that are too long for a row are left out together.

        Returns:
          Language (the task's name where two tasks have one language) -> int[n] tokens of each
          example, without special tokens.

        Raises:
          UserError: fewer than two tasks, they differ in their number of examples, one of several
            tasks has lost examples or parts of them, or the texts of an example are no
            translations.
        """
        return self.once(("aligned", spec), lambda: self._read_aligned(spec))

    def rows(
        self,
        specs: Sequence[DatasetSpec],
        rows_per_task: int | None = None,
        languages: Sequence[str] | None = None,
    ) -> HeldOutRows:
        """The rows of one or more mixtures in order, those of a task that several have once.

        Args:
          specs: mixtures of one split and layout.
          rows_per_task: the first rows of each task; None: all.
          languages: those of the tasks that are read; None: all.

        Raises:
          UserError: there is no task of one of the languages.
        """
        chosen = None if languages is None else tuple(languages)

        def read() -> HeldOutRows:
            caches = self.caches if chosen is None else self._of_languages(specs, chosen)
            return open_held_out(specs, caches, self.vocabulary, rows_per_task=rows_per_task)

        return self.once(("rows", tuple(specs), rows_per_task, chosen), read)

    def _of_languages(self, specs: Sequence[DatasetSpec], languages: Sequence[str]) -> Caches:
        """The caches without the tasks of other languages."""
        kept = {}
        there: set[str] = set()
        for spec in specs:
            cached = self.caches[spec]
            there.update(*(m.languages for m in cached.manifests.values()))
            own = {t: m for t, m in cached.manifests.items() if {*m.languages} <= {*languages}}
            kept[spec] = cached._replace(manifests=own)
        if not languages or not there.issuperset(languages):
            raise UserError(
                f"languages = {list(languages)!r}: choose some of "
                f"{'+'.join(spec.mixture for spec in specs)}'s, {', '.join(sorted(there))}"
            )
        return Caches(kept)

    def unigrams(self, specs: Sequence[DatasetSpec]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Language -> token ids int32[k] and counts int64[k] in the tasks of these mixtures."""
        return self.once(("unigrams", tuple(specs)), lambda: self._read_unigrams(specs))

    def _read_unigrams(self, specs: Sequence[DatasetSpec]) -> dict:
        manifests = {
            dataset.folders[task]: manifest
            for dataset in map(self.caches.__getitem__, specs)
            for task, manifest in dataset.manifests.items()
        }
        counts: dict[str, np.ndarray] = {}
        for folder, manifest in manifests.items():
            for text, language in enumerate(manifest.languages):
                ids, own = read_unigrams(folder, manifest, text)
                sums = counts.setdefault(language, np.zeros(self.vocabulary.size, np.int64))
                sums[ids] += own
        return {k: (ids := np.flatnonzero(v), v[ids]) for k, v in counts.items()}

    def _read_aligned(self, spec: DatasetSpec) -> dict[str, list[np.ndarray]]:
        _, manifests, _ = self.caches[spec]
        where = f"mixture {spec.mixture!r}, split {spec.split!r}"
        parallel = [task for task, manifest in manifests.items() if manifest.num_texts > 1]
        if len(manifests) > 1 and parallel:
            raise UserError(
                f"{where} holds several tasks, also of parallel text ({', '.join(parallel[:3])}): "
                "give the evaluation a list of these instead"
            )
        for task in parallel:
            if not manifests[task].translations:
                raise UserError(
                    f"{where}: the texts of an example of task {task!r} are no translations "
                    f"(languages {', '.join(manifests[task].languages)}; features "
                    f"{', '.join(manifests[task].features) or 'none'}): name parallel text, each "
                    "text in a language of its own"
                )
        if len(manifests) > 1:
            for task, manifest in manifests.items():
                _check_complete(f"{where}, task {task!r}", manifest)
        languages = [manifest.languages[0] for manifest in manifests.values()]
        texts = {}
        for task, manifest in manifests.items():
            examples = self.examples(spec)[task]
            if manifest.features:  # then the cache holds the examples' numbers
                examples = sorted(examples, key=lambda example: example.number)
            alone = languages.count(manifest.languages[0]) == 1
            for k, name in enumerate(manifest.languages if alone else [task]):
                texts[name] = [example.texts[k] for example in examples]
        check_aligned(where, texts)
        return dict(sorted(texts.items()))


def _check_complete(what: str, manifest: Manifest) -> None:
    """Raises UserError if examples are missing or truncated: the others have moved up."""
    lost = {**manifest.dropped, "truncated": manifest.truncated}
    lost = {reason: count for reason, count in lost.items() if count}
    if lost:
        listed = ", ".join(f"{reason} {count:,}" for reason, count in lost.items())
        raise UserError(
            f"{what}: example i of each task must be the same sentence, whole, but of "
            f"{manifest.examples + sum(manifest.dropped.values()):,} examples some were dropped or "
            f"truncated in rows of {manifest.layout} ({listed}): raise the evaluation's length"
        )


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
