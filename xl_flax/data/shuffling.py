"""A full, seeded shuffle of a stream of examples that need not fit in memory."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from xl_flax.data.features import NO_FEATURES, Example, Features, size, spill, unspill

HELD_TOKENS = 2**25  # tokens and numbers of features held in memory before examples go to disk
BUCKETS = 64
_OVERHEAD = 32  # what an example weighs besides these


def shuffled(
    examples: Iterable[Example],
    folder: Path,
    seed: int,
    held: int = HELD_TOKENS,
    specs: Features = NO_FEATURES,
) -> Iterator[Example]:
    """Yields the examples in an order that depends on nothing but their order and the seed.

    A small split is permuted in memory. The examples of a large one are dealt to 64 files at
    random, and then each file is permuted in memory: every permutation is as likely as any other.

    Args:
      examples: in a reproducible order.
      folder: where the files go for the time being.
      seed: of the permutation.
      held: tokens and numbers of features to hold in memory, four bytes each.
      specs: of the examples' features, which must have been checked.
    """
    rng = np.random.default_rng(seed)
    files = [folder / f"bucket-{i:02d}" for i in range(BUCKETS)]
    batch, total, spilled = [], 0, False
    for example in examples:
        batch.append(example)
        total += size(example, specs) + _OVERHEAD
        if total >= held:
            _deal(batch, files, rng, specs)
            batch, total, spilled = [], 0, True
    if not spilled:
        yield from _permuted(batch, rng)
        return
    _deal(batch, files, rng, specs)
    del batch
    for file in files:
        if file.exists():
            yield from _permuted(list(_read(file, specs)), rng)
            file.unlink()


def _permuted(batch: list[Example], rng: np.random.Generator) -> Iterator[Example]:
    return (batch[i] for i in rng.permutation(len(batch)))


def _deal(
    batch: list[Example], files: list[Path], rng: np.random.Generator, specs: Features
) -> None:
    chosen = rng.integers(len(files), size=len(batch))
    for number, members in itertools.groupby(np.argsort(chosen, kind="stable"), chosen.__getitem__):
        with files[number].open("ab") as out:
            for i in members:
                example, texts = batch[i].number, batch[i].texts
                out.write(np.array([example, len(texts), *map(len, texts)], "<i8").tobytes())
                out.write(b"".join(text.astype("<i4").tobytes() for text in texts))
                out.write(spill(batch[i], specs))


def _read(file: Path, specs: Features) -> Iterator[Example]:
    data = np.memmap(file, "<i4", "r")
    at = 0
    while at < len(data):
        number, count = data[at : at + 4].view("<i8").tolist()
        begin = at + 4 + 2 * count
        sizes = data[at + 4 : begin].view("<i8")
        ends = begin + np.cumsum(sizes)
        texts = tuple(map(np.array, np.split(data[begin : ends[-1]], ends[:-1] - begin)))
        at = int(ends[-1])
        features, used = unspill(data[at:], sizes, specs) if specs else (NO_FEATURES, 0)
        at += used
        yield Example(number, texts, features)
