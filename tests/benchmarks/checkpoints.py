"""Time, memory and size of a run's checkpoints, at the size of XLM-R base with AdamW.

    python tests/benchmarks/checkpoints.py [--before=CHECKOUT] [--repeats 3] [--dir /tmp/x] [--tiny]

278 million float32 parameters and two moments of each, of random values (real ones compress no
better), 3.3 GB together, are saved and read back, in processes of their own; with `--before` by
another commit as well (`git worktree add CHECKOUT COMMIT`), in turns. What is written stays in the
system's memory or not, as the system sees fit; nothing is synced.

  blocks     seconds until training may go on
  on disk    seconds until the checkpoint is complete, checksums included
  checksums  of these, seconds that reading all files and computing them takes
  processor  seconds of all threads while saving
  check      seconds of comparing all files with the checksums, before they are read
  read       seconds until all arrays are back
  memory     the most that saving or reading takes beside what was there before, over the size of
             the arrays; those that are read count

Seconds are medians, of saves and reads that follow a first one. The last line is JSON, seconds:
{"after": {"on disk": …, …}, "before": {…}}.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import parse
from flax import nnx

from xl_flax.checkpoints import manager as manager_lib
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.mesh import MeshConfig, make_partitioning
from xl_flax.text_table import table

SIZES = {  # vocabulary, layers, width, heads, width of the MLP, positions
    "xlmr_base": (250_002, 12, 768, 12, 3072, 514),
    "tiny": (100, 1, 16, 2, 32, 16),
}
SAVED = ("blocks", "on disk", "checksums", "processor")
READ = ("check", "read")


def memory(key: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at most."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def layout(size: str) -> tuple[Any, Any]:
    """Shapes with shardings of the parameters and of both moments."""
    vocabulary, layers, width, heads, mlp, positions = SIZES[size]
    config = EncoderConfig(
        vocab_size=vocabulary, num_layers=layers, width=width, num_heads=heads, mlp_width=mlp,
        max_positions=positions,
    )  # fmt: skip
    abstract = params_lib.abstract(lambda: build_model(config, {"mlm": {}}, nnx.Rngs(0)))
    params = abstract.layout(make_partitioning(MeshConfig(), jax.devices()[:1]))
    return params, {"mu": params, "nu": params}


def save(folder: str, size: str, repeats: int) -> dict[str, float]:
    """Saves, in this process, one after the other."""
    rng = np.random.default_rng(0)

    def values(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.device_put(rng.standard_normal(leaf.shape, np.float32), leaf.sharding)

    params, moments = jax.block_until_ready(jax.tree.map(values, layout(size)))
    checkpoints = manager_lib.CheckpointManager(folder, keep_last=1)
    found = {name: [] for name in SAVED}
    before = memory("VmRSS")
    for step in range(repeats + 1):
        start, processor = time.perf_counter(), time.process_time()
        checkpoints.save(params, moments, manager_lib.Progress(step, {}, 0, {}), {"x": b"x"})
        blocks = time.perf_counter() - start
        checkpoints.wait()
        on_disk, processor = time.perf_counter() - start, time.process_time() - processor
        start = time.perf_counter()
        if intact := intact_module():
            intact.write_checksums(f"{folder}/checkpoints/{step}")
        values = blocks, on_disk, time.perf_counter() - start, processor
        for name, value in zip(SAVED, values, strict=True):
            found[name].append(value)
    peak = memory("VmHWM") - before
    checkpoints.close()
    return {name: statistics.median(times[1:]) for name, times in found.items()} | {"memory": peak}


def read(folder: str, size: str, repeats: int) -> dict[str, float]:
    """Reads the newest one again and again, in this process."""
    params, moments = layout(size)
    found = {name: [] for name in READ}
    before = memory("VmRSS")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        (name,) = (name for name in os.listdir(f"{folder}/checkpoints") if name.isdigit())
        if intact := intact_module():
            assert not intact.problems(f"{folder}/checkpoints/{name}", ("params", "optimizer"))
        found["check"].append(time.perf_counter() - start)
        checkpoints = manager_lib.CheckpointManager(folder)
        arrays = jax.block_until_ready(checkpoints.restore(int(name), params, moments))
        checkpoints.close()
        found["read"].append(time.perf_counter() - start - found["check"][-1])
        del arrays
    peak = memory("VmHWM") - before
    return {name: statistics.median(times[1:]) for name, times in found.items()} | {"memory": peak}


def intact_module() -> Any:
    """The module that computes and compares checksums; None in commits before it."""
    try:
        from xl_flax.checkpoints import intact
    except ImportError:
        return None
    return intact


def measure(checkout: Path, part: str, folder: str, size: str, repeats: int) -> dict[str, float]:
    """What `save` or `read` gives in a process of its own, with the code of a checkout."""
    command = [sys.executable, __file__, f"--part={part}", f"--dir={folder}", f"--size={size}"]
    done = subprocess.run(
        [*command, f"--repeats={repeats}"],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(checkout.resolve()), "JAX_PLATFORMS": "cpu"},
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark with these arguments, or those of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--size", default="xlmr_base", choices=SIZES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dir", default=None, help="where to; needs three times the arrays")
    parser.add_argument("--part", choices=("save", "read"), help=argparse.SUPPRESS)
    args = parse(parser, argv, size="tiny", repeats=1)
    if args.part:
        part = {"save": save, "read": read}[args.part]
        print(json.dumps(part(args.dir, args.size, args.repeats)))
        return
    arrays = 3 * 4 * sum(int(np.prod(x.shape)) for x in jax.tree.leaves(layout(args.size)[0]))
    checkouts = {"before": args.before} if args.before else {}
    checkouts["after"] = Path(__file__).parents[2]
    head = ("commit", "GB on disk", *SAVED, "memory", *READ, "memory")
    rows, summary = [head], {}
    for name, checkout in checkouts.items():
        folder = tempfile.mkdtemp(prefix="checkpoints-", dir=args.dir)
        saved, back = (
            measure(checkout, part, folder, args.size, args.repeats) for part in ("save", "read")
        )
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        shutil.rmtree(folder)
        seconds = [f"{saved[column]:.2f}" for column in SAVED], [f"{back[c]:.2f}" for c in READ]
        ratios = [f"{part['memory'] / arrays:.2f}" for part in (saved, back)]
        rows.append((name, f"{size / 1e9:.2f}", *seconds[0], ratios[0], *seconds[1], ratios[1]))
        summary[name] = {column: round(saved[column], 2) for column in SAVED}
        summary[name] |= {column: round(back[column], 2) for column in READ}
    print(f"{arrays / 1e9:.2f} GB of arrays")
    print(table(rows))
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
