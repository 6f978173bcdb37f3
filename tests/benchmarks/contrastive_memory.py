"""Compiled peak memory of a contrastive training step by batch size; nothing is run.

    python tests/benchmarks/contrastive_memory.py [--pairs 1024,2048,4096,8192,16384,32768]
        [--tiny]

One device, an encoder of 2 layers of width 64, rows of 64 tokens with 2 pairs each, AdamW. Sizes in
MiB, from XLA's memory analysis of the whole step:

  inputs      arguments: parameters, optimizer, batch
  one pass    temporaries of the step that encodes the batch at once
  two passes  temporaries of the step that encodes it in parts of 1,024 pairs (gradient caching);
              1,024 pairs are one part, encoded at once
  comparison  temporaries of the loss and its gradient in the vectors alone
  plain       temporaries of the same loss and gradient with the whole matrix of similarities

The last line is JSON: the growth of the number of pairs ("pairs") and of each column from the first
size to the last.
"""

import argparse
import json
import os
import types
from collections.abc import Sequence

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from common import parse
from steps import TrainingStep, vector_loss

from xl_flax.data.stream import Rows
from xl_flax.models.config import EncoderConfig
from xl_flax.objectives.contrastive import Contrastive
from xl_flax.training.optimizer import OptimizerConfig

LENGTH, GROUPS, WIDTH, PART = 64, 2, 64, 1024
STREAM = types.SimpleNamespace(
    num_texts=2, examples_per_row=GROUPS, tasks=("pairs",), languages=("a", "b"), length=LENGTH
)
CONFIG = EncoderConfig(
    vocab_size=1000, num_layers=2, width=WIDTH, num_heads=4, mlp_width=4 * WIDTH,
    max_positions=LENGTH, embedding_dropout=0.1, mlp_out_dropout=0.1,
)  # fmt: skip
COLUMNS = ("inputs", "one pass", "two passes", "comparison", "plain")


def batch_shapes(rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = dict.fromkeys(("tokens", "segment_ids", "positions"), (rows, LENGTH))
    shapes |= {"languages": (rows, 2), "row_id": (rows,)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}


def objective(pairs: int, microbatches: int = 1) -> Contrastive:
    rows = Rows("pairs", LENGTH)
    return Contrastive(rows=rows, batch_size=pairs // GROUPS, margin=0.3, microbatches=microbatches)


def step(pairs: int, microbatches: int = 1) -> tuple[int, int]:
    """Bytes of arguments and of temporaries of a training step."""
    contrastive = objective(pairs, microbatches)
    settings = OptimizerConfig(schedule="constant")
    lowered = TrainingStep(CONFIG, contrastive, None, STREAM, settings).lower(
        batch_shapes(contrastive.batch_size)
    )
    memory = lowered.compile().memory_analysis()
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes


def comparison(pairs: int) -> int:
    """Bytes of temporaries of the loss and its gradient in the vectors."""
    rows = pairs // GROUPS
    vectors = jax.ShapeDtypeStruct((rows, 2 * GROUPS, WIDTH), jnp.float32)
    loss = jax.value_and_grad(vector_loss(objective(pairs), STREAM))
    return temporaries(loss, vectors, batch_shapes(rows))


def plain(pairs: int) -> int:
    """As `comparison`, with all similarities in a matrix."""

    def loss(x, y):
        logits = 20.0 * (x @ y.T - 0.3 * jnp.eye(len(x)))
        found = (jax.nn.logsumexp(logits, axis).sum() for axis in (0, 1))
        return sum(found) - 2 * jnp.trace(logits)

    vectors = jax.ShapeDtypeStruct((pairs, WIDTH), jnp.float32)
    return temporaries(jax.value_and_grad(loss, (0, 1)), vectors, vectors)


def temporaries(function, *shapes) -> int:
    compiled = jax.jit(function).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def measure(pairs: int) -> dict[str, float]:
    """One line of the table, in MiB."""
    inputs, one = step(pairs)
    _, two = step(pairs, pairs // PART) if pairs > PART else (0, one)
    sizes = (inputs, one, two, comparison(pairs), plain(pairs))
    return {name: size / 2**20 for name, size in zip(COLUMNS, sizes, strict=True)}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark with these arguments, or those of the process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", default="1024,2048,4096,8192,16384,32768")
    args = parse(parser, argv, pairs="1024")
    sizes = [int(n) for n in args.pairs.split(",")]
    if bad := [n for n in sizes if n % PART]:
        parser.error(f"--pairs {bad}: use multiples of {PART}")
    print(f"{'pairs':>8}" + "".join(f"{name:>12}" for name in COLUMNS))
    table = []
    for pairs in sizes:
        table.append(measure(pairs))
        print(f"{pairs:>8,}" + "".join(f"{v:>12,.1f}" for v in table[-1].values()), flush=True)
    growth = {name: round(table[-1][name] / table[0][name], 2) for name in COLUMNS}
    print(json.dumps({"pairs": sizes[-1] / sizes[0], **growth}))


if __name__ == "__main__":
    main()
