"""How fast rows come from the cache, and how fast and small a stream of many languages opens.

    JAX_PLATFORMS=cpu python tests/benchmarks/stream.py [--seconds 1.5] [--tiny]

Writes a cache of random rows to a temporary folder (rows of 512 tokens, sentences of 28 tokens in
the mean, uint32 ids as a vocabulary of 250,002 needs them) and measures in fresh processes, each
on one core, several times; the best counts, for other work on the machine only makes it slower.
Prints a table and, last, one line of JSON: row_length; tokens_per_s_12_languages and
tokens_per_s_120_languages; open_120_s and open_120_mb, what it takes to open 120 languages;
resume_at_row_1e6_s, until the first batch there.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import parse

from xl_flax.data.framing import Part
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache, Manifest, make_mark, write_manifest, write_unigrams
from xl_flax.data.mixtures import Mixture, write_mixture
from xl_flax.data.packing import best_fit
from xl_flax.data.prepare import prepare
from xl_flax.data.records import encode_row, ids_dtype, write_shards
from xl_flax.data.stream import Rows, open_stream

LENGTH = 512
BATCH = 64
VOCABULARY = types.SimpleNamespace(
    size=250_002,
    special=types.SimpleNamespace(cls=0, pad=1, sep=2, unk=3, mask=250_001),
    fingerprint="0" * 64,
    path="",
)
FINGERPRINT = {
    "modules": {},
    "vocabulary": VOCABULARY.fingerprint,
    "source": "",
    "preprocessors": [],
    "files": {},
    "filter": {"exclude": []},
}


def write_cache(directory: str, languages: int, size: int) -> None:
    """Writes `size` packed rows of each of so many languages, without seqio."""
    rng = np.random.default_rng(0)
    lengths = rng.gamma(2.0, 14.0, 60_000).astype(int).clip(3, LENGTH).tolist()
    rows = [[lengths[i] for i in row] for row in best_fit(lengths, LENGTH)][:size]
    ids = rng.integers(4, VOCABULARY.size - 1, 2 * LENGTH * size).astype(np.int32)
    dtype = ids_dtype(VOCABULARY.size)
    records, tokens = [], 0
    for number in range(size):
        row = rows[number % len(rows)]
        segments = []
        for count in row:
            segments.append(Part((ids[tokens % (LENGTH * size) :][:count],), count))
            tokens += count
        records.append(encode_row(segments, dtype))
    cache = Cache(directory, ["none"], on_missing="stop")
    names = [f"language{i:03d}" for i in range(languages)]
    for name in names:
        folder = cache.folder(name, "train", Layout(LENGTH))
        folder.mkdir(parents=True)
        mark = make_mark(name, "train", Layout(LENGTH), FINGERPRINT)
        shards = write_shards(folder, iter(records), mark)
        manifest = Manifest(
            task=name,
            split="train",
            layout=Layout(LENGTH),
            languages=(name,),
            examples_per_row=0,
            examples=len(lengths),
            empty=0,
            dropped={},
            cut=0,
            truncated=0,
            longest=LENGTH,
            tokens=tokens,
            unknown=(0,),
            known=(tokens,),
            rows=size,
            vocab_size=VOCABULARY.size,
            repacked_from=None,
            features={},
            shards=tuple(shards),
            unigrams=write_unigrams(folder, np.zeros((1, VOCABULARY.size), np.int64)),
            fingerprint=FINGERPRINT,
        )
        write_manifest(folder, manifest)
    for count in (12, 120):
        used = names[:count]
        mixture = Mixture(
            f"all{count}",
            {},
            {name: 1 / (1 + i % 10) for i, name in enumerate(used)},
            dict.fromkeys(used, len(lengths)),
        )
        write_mixture(cache, "train", mixture)


def measure(directory: str, languages: int, first_row: int, seconds: float) -> dict[str, float]:
    """Opens a stream in this process, reads a batch at `first_row`, then reads on for a while."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cache = Cache(directory, ["none"], on_missing="stop")
    begin = time.perf_counter()
    rows = Rows(f"all{languages}", LENGTH)
    stream = open_stream(rows, prepare(rows.datasets, cache, VOCABULARY), 0, VOCABULARY)
    opened = time.perf_counter()
    stream.rows(range(first_row, first_row + BATCH))
    first_batch = time.perf_counter()
    tokens, spent, row = 0, 0.0, first_row
    while spent < seconds:
        row += BATCH
        start = time.perf_counter()
        batch = stream.rows(range(row, row + BATCH))
        spent += time.perf_counter() - start
        tokens += int(np.count_nonzero(batch["segment_ids"]))
    return {
        "open_s": opened - begin,
        "first_batch_s": first_batch - opened,
        "tokens_per_s": tokens / spent,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark with these arguments, or those of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.5, help="of reading per measurement")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=2000, help="of each language")
    parser.add_argument("--trials", type=int, default=3, help="of which the best counts")
    args = parse(parser, argv, seconds=0.1, rows=100, trials=1)
    if args.measure:
        directory, languages, first_row = args.measure
        print(json.dumps(measure(directory, int(languages), int(first_row), args.seconds)))
        return
    with tempfile.TemporaryDirectory() as directory:
        write_cache(directory, 120, args.rows)
        size = sum(f.stat().st_size for f in Path(directory).rglob("*.arrayrecord")) / 2**20
        print(f"cache: 120 languages x {args.rows} rows of {LENGTH} tokens, {size:,.0f} MiB")
        results = {}
        for languages, first_row in ((12, 0), (120, 0), (120, 10**6)):
            command = [sys.executable, __file__, f"--seconds={args.seconds}"]
            command += ["--measure", directory, str(languages), str(first_row)]
            trials = []
            for _ in range(args.trials):
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                trials.append(json.loads(done.stdout.splitlines()[-1]))
            best = {name: min(trial[name] for trial in trials) for name in trials[0]}
            best["tokens_per_s"] = max(trial["tokens_per_s"] for trial in trials)
            results[languages, first_row] = best
    head = ("languages", "from row", "open (s)", "first batch (s)", "tokens/s", "memory (MB)")
    print("  ".join(f"{name:>15}" for name in head))
    for (languages, row), r in results.items():
        cells = (f"{languages}", f"{row:,}", f"{r['open_s']:.3f}", f"{r['first_batch_s']:.4f}")
        cells += (f"{r['tokens_per_s']:,.0f}", f"{r['memory_mb']:.0f}")
        print("  ".join(f"{cell:>15}" for cell in cells))
    few, many, far = results.values()
    summary = {
        "row_length": LENGTH,
        "tokens_per_s_12_languages": round(few["tokens_per_s"]),
        "tokens_per_s_120_languages": round(many["tokens_per_s"]),
        "open_120_s": round(many["open_s"], 3),
        "open_120_mb": round(many["memory_mb"]),
        "resume_at_row_1e6_s": round(far["first_batch_s"], 4),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
