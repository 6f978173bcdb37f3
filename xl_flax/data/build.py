"""Writes cached splits: from examples, or from the rows of a cache of another layout."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xl_flax.data.features import NO_FEATURES, Example, Features, check_example
from xl_flax.data.filtering import Hashes, are_translations, filtered
from xl_flax.data.fingerprint import Fingerprint
from xl_flax.data.framing import Framer, Part, join
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import (
    Cache,
    Manifest,
    make_mark,
    read_manifest,
    write_manifest,
    write_unigrams,
)
from xl_flax.data.packing import measured, pack_in_order, pack_windows
from xl_flax.data.records import RowSource, decode_row, encode_row, ids_dtype, write_shards
from xl_flax.data.shuffling import shuffled
from xl_flax.data.tables import describe_drops
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.files.folders import new_folder

TRAIN = "train"  # the one split that is shuffled and packed by best fit
SHUFFLE_SEED = 0


class _Packer:
    """Packs examples into the files of a folder, and counts what goes by."""

    def __init__(
        self,
        name: str,
        layout: Layout,
        num_texts: int,
        specs: Features,
        vocabulary: Vocabulary,
        train: bool,
    ):
        self.name, self.layout, self.num_texts, self.train = name, layout, num_texts, train
        special = vocabulary.special
        self.specs, self.framer = specs, Framer(name, layout, num_texts, specs, special)
        self.special = special
        self.examples = self.empty = self.cut = self.tokens = self.rows = self.examples_per_row = 0
        self.longest = 0
        self.dropped: Counter[str] = Counter()
        self.unigrams = np.zeros((num_texts, vocabulary.size), np.int64)
        self._ids: list[list[np.ndarray]] = [[] for _ in range(num_texts)]
        self._held = 0

    def parts(self, examples: Iterable[Example]) -> Iterator[Part]:
        """What lies in the rows: examples, or pieces of those that are too long."""
        for example in examples:
            if self.num_texts == 1 and not len(example.texts[0]):
                self.empty += 1
                if self.train:
                    continue
            parts = self.framer.parts(example)
            if not parts:
                self.dropped["too long"] += 1
                continue
            self.examples += 1
            self.cut += len(parts) > 1
            self.longest = max(self.longest, sum(map(len, example.texts)) + 2 * self.num_texts)
            for part in parts:
                self._take(part)
            yield from parts

    def _take(self, part: Part) -> None:
        for ids, segment in zip(self._ids, part.segments, strict=True):
            ids.append(segment)
        self.tokens += part.size
        self._held += part.size
        if self._held > 2**20:
            self.count()

    def count(self) -> None:
        for unigrams, held in zip(self.unigrams, self._ids, strict=True):
            if not held:
                continue
            ids = np.concatenate(held)
            if ids.min() < 0 or ids.max() >= len(unigrams):
                raise UserError(
                    f"{self.name}: token id {ids.max() if ids.min() >= 0 else ids.min()} is outside"
                    f" the vocabulary of {len(unigrams)} tokens: give the task the vocabulary of "
                    "the run (run_vocabulary.path)"
                )
            unigrams += np.bincount(ids, minlength=len(unigrams))
            held.clear()
        self._held = 0

    def packed(self, parts: Iterable[Part]) -> Iterator[list[Part]]:
        """The rows of the layout."""
        if self.layout.packing == "single":
            self.examples_per_row = 1
            return ([part] for part in parts)
        most = None
        if self.num_texts > 1 or self.specs:
            most, parts = measured(parts, self.layout.length)
            self.examples_per_row = most
        return (pack_windows if self.train else pack_in_order)(parts, self.layout.length, most)

    def write(self, folder: Path, examples: Iterable[Example], mark: int) -> dict[str, Any]:
        """Writes all files but the manifest; returns what it says of the rows."""
        dtype = ids_dtype(self.unigrams.shape[1])

        def records() -> Iterator[bytes]:
            for row in self.packed(self.parts(examples)):
                self.rows += 1
                yield encode_row(row, dtype, self.specs)

        shards = write_shards(folder, records(), mark)
        self.count()
        unknown = self.unigrams[:, self.special.unk].tolist()
        self.unigrams[:, list(vars(self.special).values())] = 0
        return {
            "shards": tuple(shards),
            "unigrams": write_unigrams(folder, self.unigrams),
            "unknown": tuple(unknown),
            "known": tuple(self.unigrams.sum(axis=1).tolist()),
            "examples_per_row": self.examples_per_row,
            "examples": self.examples,
            "dropped": dict(self.dropped),
            "cut": self.cut,
            "truncated": self.framer.truncated,
            "longest": self.longest,
            "tokens": self.tokens,
            "rows": self.rows,
        }

    def check(self, languages: Sequence[str]) -> None:
        """Raises UserError if no text is left."""
        if not self.examples + self.empty + self.dropped.total():
            raise UserError(f"{self.name} has no examples: check its source and its preprocessors")
        what = f"{self.name}, language {'-'.join(languages)!r}"
        if self.dropped and not self.examples:
            raise UserError(
                f"{what}: no example is left: {describe_drops(self.dropped)}"
                f"{f', empty {self.empty:,}' if self.empty else ''} were dropped; check the text, "
                "Filter in the Gin file, and the tokens per row"
            )
        if self.tokens == 2 * self.num_texts * self.examples:
            raise UserError(
                f"{what}: all {self.empty:,} examples are empty: check the source's text and the "
                "preprocessors"
            )


def write_split(
    cache: Cache,
    task: str,
    split: str,
    layout: Layout,
    examples: Iterable[Example],
    *,
    languages: Sequence[str],
    vocabulary: Vocabulary,
    fingerprint: Fingerprint,
    features: Features = NO_FEATURES,
    excluded: Hashes | None = None,
) -> Manifest:
    """Filters and packs the examples of a split and writes them; replaces what was there.

    Everything is written to a folder beside the final one and renamed at the end, so that a split
    is there as a whole or not at all.

    Args:
      cache: where to, and what is left out.
      task: name of the task.
      split: name of the split; "train" is shuffled, others keep the order of their examples.
      layout: of the rows.
      examples: in a reproducible order.
      languages: of the texts of an example.
      vocabulary: of the tokens.
      fingerprint: what the examples are made from.
      features: what the task declares, by name.
      excluded: hashes of the texts that `cache.filter.exclude` names.

    Raises:
      UserError: no examples, none with tokens, none that the filter keeps, a token outside the
        vocabulary, or features that do not fit what is declared.
    """
    train = split == TRAIN
    name = f"task {task!r}, split {split!r}"
    specs = dict(sorted(features.items()))
    packer = _Packer(name, layout, len(languages), specs, vocabulary, train)
    with new_folder(cache.folder(task, split, layout)) as folder:
        folder = Path(folder)
        if specs:
            examples = (check_example(name, example, specs) for example in examples)
        if len(languages) > 1:
            examples = _complete(examples, packer.dropped)
        if train:
            rules, translations = cache.filter, are_translations(languages, specs)
            examples = filtered(examples, rules, excluded or Hashes(), packer.dropped, translations)
            examples = shuffled(examples, folder, SHUFFLE_SEED, specs=specs)
        mark = make_mark(task, split, layout, fingerprint)
        written = packer.write(folder, examples, mark)
        packer.check(languages)
        manifest = Manifest(
            task=task,
            split=split,
            layout=layout,
            languages=tuple(languages),
            empty=packer.empty,
            vocab_size=vocabulary.size,
            repacked_from=None,
            features=specs,
            fingerprint=fingerprint,
            **written,
        )
        write_manifest(folder, manifest)
    return manifest


def _complete(examples: Iterable[Example], dropped: Counter[str]) -> Iterator[Example]:
    for example in examples:
        if all(map(len, example.texts)):
            yield example
        else:
            dropped["empty text"] += 1


def read_examples(folder: Path, manifest: Manifest) -> Iterator[Example]:
    """The examples of a cached split in the order of the rows, whole, special tokens stripped.

    Their numbers are those of the split where the task declares features, and else count from 0.
    """
    source = RowSource(folder, manifest.shards, manifest.mark)
    dtype, specs = ids_dtype(manifest.vocab_size), manifest.features
    rows = (source[i][1] for i in range(len(source)))
    parts = (p for row in rows for p in decode_row(row, dtype, manifest.num_texts, specs))
    for count, example in enumerate(join(parts, manifest.layout.stride, specs)):
        yield example if specs else Example(count, example.texts)


def can_repack(manifest: Manifest, layout: Layout) -> bool:
    """Whether rows of a layout can be made from cached ones: nothing that they need is lost."""
    if manifest.lossless:
        return True
    # What was too long for a row is too long for a shorter one.
    plain = manifest.num_texts == 1 and not manifest.features
    only_dropped = not manifest.truncated and not manifest.cut
    return (
        only_dropped
        and layout.resolve(plain) == manifest.layout.resolve(plain) == "drop"
        and layout.length <= manifest.layout.length
    )


def repack(
    task: str,
    split: str,
    cache: Cache,
    from_layout: Layout,
    to_layout: Layout,
    vocabulary: Vocabulary,
) -> Manifest:
    """Makes rows of another layout from cached ones, without TensorFlow.

    Pieces are joined first, so that every example is whole again before it is packed. The train
    split is shuffled already; its examples keep the order in which they are read.

    Returns:
      The manifest of the new rows.
    """
    source = cache.folder(task, split, from_layout)
    old = read_manifest(source)
    if old is None or not can_repack(old, to_layout):
        raise UserError(f"{source} holds no complete cache to make rows of {to_layout} from")
    name = f"task {task!r}, split {split!r}"
    packer = _Packer(name, to_layout, old.num_texts, old.features, vocabulary, split == TRAIN)
    packer.dropped.update(old.dropped)
    with new_folder(cache.folder(task, split, to_layout)) as folder:
        folder = Path(folder)
        mark = make_mark(task, split, to_layout, old.fingerprint)
        written = packer.write(folder, read_examples(source, old), mark)
        packer.check(old.languages)
        manifest = dataclasses.replace(
            old, layout=to_layout, repacked_from=str(from_layout), **written
        )
        write_manifest(folder, manifest)
    return manifest
