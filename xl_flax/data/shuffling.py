"""A full, seeded shuffle of a stream of examples that need not fit in memory."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

HELD_TOKENS = 2**25  # what is held in memory before examples go to disk
BUCKETS = 64
_OVERHEAD = 32  # what an example weighs besides its tokens

Sides = tuple[np.ndarray, ...]  # tokens int[n] of a sentence and of each translation it has
Example = tuple[int, Sides]  # number in the split, and the text


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
        size += sum(map(len, example[1])) + _OVERHEAD
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
                example, sides = batch[i]
                out.write(np.array([example, len(sides), *map(len, sides)], "<i8").tobytes())
                out.write(b"".join(side.astype("<i4").tobytes() for side in sides))


def _read(file: Path) -> Iterator[Example]:
    data = np.memmap(file, "<i4", "r")
    at = 0
    while at < len(data):
        example, count = data[at : at + 4].view("<i8").tolist()
        begin = at + 4 + 2 * count
        ends = begin + np.cumsum(data[at + 4 : begin].view("<i8"))
        yield example, tuple(map(np.array, np.split(data[begin : ends[-1]], ends[:-1] - begin)))
        at = int(ends[-1])
