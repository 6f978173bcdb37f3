"""Writes cached splits: from examples, or from the rows of a cache of another length."""

import contextlib
import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from xl_flax.data.filtering import Hashes, filtered
from xl_flax.data.fingerprint import Fingerprint
from xl_flax.data.manifest import Cache, Manifest, read_manifest, write_manifest
from xl_flax.data.packing import (
    Group,
    Segment,
    join,
    measured,
    pack_in_order,
    pack_windows,
    segments,
)
from xl_flax.data.records import (
    MAX_LENGTH,
    RowSource,
    Shard,
    decode_row,
    encode_row,
    ids_dtype,
    write_shards,
)
from xl_flax.data.shuffling import Example, Sides, shuffled
from xl_flax.data.tables import describe_drops
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError

TRAIN = "train"  # the one split that is shuffled and packed by best fit
SHUFFLE_SEED = 0


class _Packer:
    """Packs examples into the files of a folder, and counts what goes by."""

    def __init__(self, name: str, length: int, sides: int, vocabulary: Vocabulary, train: bool):
        if not 3 <= length <= MAX_LENGTH:
            raise UserError(f"{length} tokens per row: choose between 3 and {MAX_LENGTH}")
        self.name, self.length, self.num_texts, self.train = name, length, sides, train
        special = vocabulary.special
        self.cls_id, self.sep_id = special.cls, special.sep
        self.special = [special.pad, special.unk, special.cls, special.sep, special.mask]
        self.examples = self.empty = self.cut = self.tokens = self.rows = self.examples_per_row = 0
        self.dropped: Counter[str] = Counter()
        self.unigrams = np.zeros((sides, vocabulary.size), np.int64)
        self._ids: list[list[np.ndarray]] = [[] for _ in range(sides)]
        self._held = 0

    def pieces(self, examples: Iterable[Example]) -> Iterator[Group]:
        """Text of one language: an example longer than a row is cut, and lies in several rows."""
        for number, (tokens,) in examples:
            if not len(tokens):
                self.empty += 1
                if self.train:
                    continue
            self.examples += 1
            pieces = segments(number, tokens, self.length, self.cls_id, self.sep_id)
            self.cut += len(pieces) > 1
            for segment in pieces:
                self._take(0, segment)
                yield (segment,)

    def whole(self, examples: Iterable[Example]) -> Iterator[Group]:
        """Parallel text: sentence and translations lie in one row or are dropped."""
        for number, sides in examples:
            if sum(map(len, sides)) + 2 * len(sides) > self.length:
                self.dropped["too long"] += 1
                continue
            self.examples += 1
            group = [
                segments(number, side, self.length, self.cls_id, self.sep_id)[0] for side in sides
            ]
            for side, segment in enumerate(group):
                self._take(side, segment)
            yield group

    def _take(self, side: int, segment: Segment) -> None:
        self._ids[side].append(segment.ids)
        self.tokens += len(segment.ids)
        self._held += len(segment.ids)
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

    def write(self, folder: Path, examples: Iterable[Example]) -> list[Shard]:
        pack = pack_windows if self.train else pack_in_order
        dtype = ids_dtype(self.unigrams.shape[1])
        if self.num_texts == 1:
            groups, most = self.pieces(examples), None
        else:
            most, groups = measured(self.whole(examples), self.length)
            self.examples_per_row = most

        def records() -> Iterator[bytes]:
            for row in pack(groups, self.length, most):
                self.rows += 1
                yield encode_row(row, dtype)

        shards = write_shards(folder, records())
        self.count()
        self.unigrams[:, self.special] = 0
        ids = np.flatnonzero(self.unigrams.any(axis=0))
        counts = self.unigrams[:, ids]
        np.savez(folder / "unigrams.npz", ids=ids.astype(np.int32), counts=counts)
        return shards

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
        if self.tokens == 2 * self.examples:
            raise UserError(
                f"{what}: all {self.empty:,} examples are empty: check the source's text and the "
                "preprocessors"
            )


def write_split(
    cache: Cache,
    task: str,
    split: str,
    length: int,
    examples: Iterable[Sides],
    *,
    languages: Sequence[str],
    vocabulary: Vocabulary,
    fingerprint: Fingerprint,
    excluded: Hashes | None = None,
) -> Manifest:
    """Filters and packs the examples of a split and writes them; replaces what was there.

    Everything is written to a folder beside the final one and renamed at the end, so that a split
    is there as a whole or not at all.

    Args:
      cache: where to, and what is left out.
      task: name of the task.
      split: name of the split; "train" is shuffled, others keep the order of their examples.
      length: tokens per row, special tokens included.
      examples: the sides of each example, tokens int[n], without special tokens, in a reproducible
        order: one, or a sentence and its translations.
      languages: of the sides.
      vocabulary: of the tokens.
      fingerprint: what the examples are made from.
      excluded: hashes of the texts that `cache.filter.exclude` names.

    Raises:
      UserError: no examples, none with tokens, none that the filter keeps, or a token outside the
        vocabulary.
    """
    train = split == TRAIN
    name = f"task {task!r}, split {split!r}"
    packer = _Packer(name, length, len(languages), vocabulary, train)
    with _building(cache.folder(task, split, length)) as folder:
        numbered: Iterable[Example] = enumerate(examples)
        if len(languages) > 1:
            numbered = _complete(numbered, packer.dropped)
        if train:
            numbered = filtered(numbered, cache.filter, excluded or Hashes(), packer.dropped)
            numbered = shuffled(numbered, folder, SHUFFLE_SEED)
        shards = packer.write(folder, numbered)
        packer.check(languages)
        manifest = Manifest(
            task=task,
            split=split,
            length=length,
            languages=tuple(languages),
            examples_per_row=packer.examples_per_row,
            examples=packer.examples,
            empty=packer.empty,
            dropped=dict(packer.dropped),
            cut=packer.cut,
            tokens=packer.tokens,
            rows=packer.rows,
            vocab_size=vocabulary.size,
            repacked_from=None,
            features=_features(len(languages)),
            shards=tuple(shards),
            fingerprint=fingerprint,
        )
        write_manifest(folder, manifest)
    return manifest


def _complete(examples: Iterable[Example], dropped: Counter[str]) -> Iterator[Example]:
    for number, sides in examples:
        if all(map(len, sides)):
            yield number, sides
        else:
            dropped["empty side"] += 1


def _features(sides: int) -> dict[str, str]:
    if sides == 1:
        return {"tokens": "int32[n]", "language": "string"}
    return {"tokens": f"int32[{sides}, n]", "language": f"string[{sides}]"}


def read_groups(folder: Path, manifest: Manifest) -> Iterator[Sides]:
    """The sides of each example in the order of the rows: whole, special tokens stripped."""
    source = RowSource(folder, manifest.shards)
    dtype = ids_dtype(manifest.vocab_size)
    texts = join(s for i in range(len(source)) for s in decode_row(source[i][1], dtype))
    return zip(*[texts] * manifest.num_texts, strict=True)


def repack(
    task: str,
    split: str,
    cache: Cache,
    from_length: int,
    to_length: int,
    vocabulary: Vocabulary,
) -> Manifest:
    """Makes rows of another length from cached ones, without TensorFlow.

    Pieces are joined first, so that every example is whole again before it is packed. The train
    split is shuffled already; its examples keep the order in which they are read.

    Returns:
      The manifest of the new rows.
    """
    source = cache.folder(task, split, from_length)
    old = read_manifest(source)
    if old is None:
        raise UserError(f"{source} holds no complete cache to repack")
    name = f"task {task!r}, split {split!r}"
    packer = _Packer(name, to_length, old.num_texts, vocabulary, split == TRAIN)
    packer.dropped.update(old.dropped)
    with _building(cache.folder(task, split, to_length)) as folder:
        shards = packer.write(folder, enumerate(read_groups(source, old)))
        packer.check(old.languages)
        manifest = dataclasses.replace(
            old,
            length=to_length,
            examples_per_row=packer.examples_per_row,
            examples=packer.examples,
            dropped=dict(packer.dropped),
            cut=packer.cut,
            tokens=packer.tokens,
            rows=packer.rows,
            repacked_from=from_length,
            shards=tuple(shards),
        )
        write_manifest(folder, manifest)
    return manifest


@contextlib.contextmanager
def _building(final: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `final` once it is complete.

    What an interrupted build left is removed first; a failed one removes its own.
    """
    folder = final.with_name(f".{final.name}.partial")
    old = final.with_name(f".{final.name}.old")
    for leftover in (folder, old):
        shutil.rmtree(leftover, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if final.exists():
        final.rename(old)
    folder.rename(final)
    shutil.rmtree(old, ignore_errors=True)
