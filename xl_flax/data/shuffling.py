"""A full, seeded shuffle of a stream of examples that need not fit in memory."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

HELD_TOKENS = 2**25  # what is held in memory before examples go to disk
BUCKETS = 64
_OVERHEAD = 32  # what an example weighs besides its tokens

Example = tuple[int, np.ndarray]  # number in the split, tokens int[n]


def shuffled(
    examples: Iterable[Example], folder: Path, seed: int, held: int = HELD_TOKENS
) -> Iterator[Example]:
    """Yields the examples in an order that depends on nothing but their order and the seed.

    A small split is permuted in memory. The examples of a large one are dealt to 64 files at
    random, and then each file is permuted in memory: every permutation is as likely as any other.

    Args:
      examples: in a reproducible order.
      folder: where the files go for the time being.
      seed: of the permutation.
      held: tokens to hold in memory.
    """
    rng = np.random.default_rng(seed)
    files = [folder / f"bucket-{i:02d}" for i in range(BUCKETS)]
    batch, size, spilled = [], 0, False
    for example in examples:
        batch.append(example)
        size += len(example[1]) + _OVERHEAD
        if size >= held:
            _deal(batch, files, rng)
            batch, size, spilled = [], 0, True
    if not spilled:
        yield from _permuted(batch, rng)
        return
    _deal(batch, files, rng)
    del batch
    for file in files:
        if file.exists():
            yield from _permuted(list(_read(file)), rng)
            file.unlink()


def _permuted(batch: list[Example], rng: np.random.Generator) -> Iterator[Example]:
    return (batch[i] for i in rng.permutation(len(batch)))


def _deal(batch: list[Example], files: list[Path], rng: np.random.Generator) -> None:
    chosen = rng.integers(len(files), size=len(batch))
    for number, group in itertools.groupby(np.argsort(chosen, kind="stable"), chosen.__getitem__):
        with files[number].open("ab") as out:
            for i in group:
                example, tokens = batch[i]
                out.write(np.array([example, len(tokens)], "<i8").tobytes())
                out.write(tokens.astype("<i4").tobytes())


def _read(file: Path) -> Iterator[Example]:
    data = np.memmap(file, "<i4", "r")
    at = 0
    while at < len(data):
        example, count = np.frombuffer(data[at : at + 4].tobytes(), "<i8").tolist()
        yield example, np.array(data[at + 4 : at + 4 + count])
        at += 4 + count
