"""Writes cached splits: from examples, or from the rows of a cache of another length."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from xl_flax.data.fingerprint import Fingerprint
from xl_flax.data.manifest import Cache, Manifest, read_manifest, write_manifest
from xl_flax.data.packing import Segment, join, pack_in_order, pack_windows, segments
from xl_flax.data.records import (
    MAX_LENGTH,
    RowSource,
    Shard,
    decode_row,
    encode_row,
    ids_dtype,
    write_shards,
)
from xl_flax.data.shuffling import shuffled
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError

TRAIN = "train"  # the one split that is shuffled and packed by best fit
SHUFFLE_SEED = 0


class _Packer:
    """Packs examples into the files of a folder, and counts what goes by."""

    def __init__(self, name: str, length: int, vocabulary: Vocabulary, keep_empty: bool):
        if not 3 <= length <= MAX_LENGTH:
            raise UserError(f"{length} tokens per row: choose between 3 and {MAX_LENGTH}")
        self.name, self.length = name, length
        self.keep_empty = keep_empty
        special = vocabulary.special
        self.cls_id, self.sep_id = special.cls, special.sep
        self.special = [special.pad, special.unk, special.cls, special.sep, special.mask]
        self.examples = self.empty = self.cut = self.tokens = self.rows = 0
        self.unigrams = np.zeros(vocabulary.size, np.int64)
        self._ids: list[np.ndarray] = []
        self._held = 0

    def segments(self, examples: Iterable[tuple[int, np.ndarray]]) -> Iterator[Segment]:
        for number, tokens in examples:
            if not len(tokens):
                self.empty += 1
                if not self.keep_empty:
                    continue
            self.examples += 1
            pieces = segments(number, tokens, self.length, self.cls_id, self.sep_id)
            self.cut += len(pieces) > 1
            for segment in pieces:
                self._ids.append(segment.ids)
                self.tokens += len(segment.ids)
                self._held += len(segment.ids)
                yield segment
            if self._held > 2**20:
                self.count()

    def count(self) -> None:
        if self._ids:
            ids = np.concatenate(self._ids)
            if ids.min() < 0 or ids.max() >= len(self.unigrams):
                raise UserError(
                    f"{self.name}: token id {ids.max() if ids.min() >= 0 else ids.min()} is outside"
                    f" the vocabulary of {len(self.unigrams)} tokens: give the task the vocabulary"
                    " of the run (run_vocabulary.path)"
                )
            self.unigrams += np.bincount(ids, minlength=len(self.unigrams))
        self._ids, self._held = [], 0

    def write(self, folder: Path, examples: Iterable[tuple[int, np.ndarray]]) -> list[Shard]:
        pack = pack_in_order if self.keep_empty else pack_windows
        dtype = ids_dtype(len(self.unigrams))

        def records() -> Iterator[bytes]:
            for row in pack(self.segments(examples), self.length):
                self.rows += 1
                yield encode_row(row, dtype)

        shards = write_shards(folder, records())
        self.count()
        self.unigrams[self.special] = 0
        ids = np.flatnonzero(self.unigrams)
        np.savez(folder / "unigrams.npz", ids=ids.astype(np.int32), counts=self.unigrams[ids])
        return shards


def write_split(
    cache: Cache,
    task: str,
    split: str,
    length: int,
    examples: Iterable[np.ndarray],
    *,
    language: str,
    vocabulary: Vocabulary,
    fingerprint: Fingerprint,
) -> Manifest:
    """Packs the examples of a split and writes them; replaces what was there.

    Everything is written to a folder beside the final one and renamed at the end, so that a split
    is there as a whole or not at all.

    Args:
      cache: where to.
      task: name of the task.
      split: name of the split; "train" is shuffled, others keep the order of their examples.
      length: tokens per row, special tokens included.
      examples: tokens int[n] of each example, without special tokens, in a reproducible order.
      language: of all examples.
      vocabulary: of the tokens.
      fingerprint: what the examples are made from.

    Raises:
      UserError: no examples, none with tokens, or a token outside the vocabulary.
    """
    train = split == TRAIN
    name = f"task {task!r}, split {split!r}"
    packer = _Packer(name, length, vocabulary, keep_empty=not train)
    with _building(cache.folder(task, split, length)) as folder:
        numbered = enumerate(examples)
        shards = packer.write(
            folder, shuffled(numbered, folder, SHUFFLE_SEED) if train else numbered
        )
        if not packer.examples + packer.empty:
            raise UserError(f"{name} has no examples: check its source and its preprocessors")
        if packer.tokens == 2 * packer.examples:
            raise UserError(
                f"{name}, language {language!r}: all {packer.empty:,} examples are empty: check the"
                " source's text and the preprocessors"
            )
        manifest = Manifest(
            task=task,
            split=split,
            length=length,
            language=language,
            examples=packer.examples,
            empty=packer.empty,
            cut=packer.cut,
            tokens=packer.tokens,
            rows=packer.rows,
            vocab_size=vocabulary.size,
            repacked_from=None,
            features={"tokens": "int32[n]", "language": "string"},
            shards=tuple(shards),
            fingerprint=fingerprint,
        )
        write_manifest(folder, manifest)
    return manifest


def read_examples(folder: Path, manifest: Manifest) -> Iterator[np.ndarray]:
    """Whole examples in the order of the rows: special tokens stripped, pieces joined again."""
    source = RowSource(folder, manifest.shards)
    dtype = ids_dtype(manifest.vocab_size)
    return join(s for i in range(len(source)) for s in decode_row(source[i][1], dtype))


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
    packer = _Packer(f"task {task!r}, split {split!r}", to_length, vocabulary, split != TRAIN)
    with _building(cache.folder(task, split, to_length)) as folder:
        shards = packer.write(folder, enumerate(read_examples(source, old)))
        manifest = dataclasses.replace(
            old,
            length=to_length,
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
