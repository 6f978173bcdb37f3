"""What the benchmarks share: `--tiny`, workers, and the sizes of the BERT that two of them use.

Nothing large is imported here: stream.py measures its own memory, and workers do without PyTorch.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from xl_flax.data.vocabulary import SpecialIds
from xl_flax.models.config import EncoderConfig

# The BERT of retrieval.py and contrastive_vs_st.py.
VOCAB, LAYERS, WIDTH, LENGTH = 8000, 4, 128, 128
SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def bert_config(layers: int, **settings: Any) -> EncoderConfig:
    """The configuration of an encoder that is a BERT without dropout."""
    return EncoderConfig(
        vocab_size=VOCAB,
        num_layers=layers,
        width=WIDTH,
        num_heads=WIDTH // 64,
        mlp_width=4 * WIDTH,
        max_positions=LENGTH,
        token_types=2,
        **settings,
    )


# ---- Arguments


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, **tiny: Any
) -> argparse.Namespace:
    """Parses arguments; adds `--tiny`, which changes the defaults of others.

    Args:
      parser: with all other arguments.
      argv: without the program's name; None for those of the process.
      **tiny: default of each argument with `--tiny`.
    """
    values = ", ".join(f"{name}={value}" for name, value in tiny.items())
    parser.add_argument(
        "--tiny",
        action="store_true",
        help=f"a smoke run of seconds, whose numbers mean nothing: {values}",
    )
    if parser.parse_args(argv).tiny:
        parser.set_defaults(**tiny)
    return parser.parse_args(argv)


# ---- Workers (for commits.py)


def serve(step: Callable[[int], Any], batches: int) -> None:
    """Answers each line of the standard input, a number of steps, with the seconds these took.

    An answer is `seconds WALL PROCESSOR`, the latter of all threads.

    Args:
      step: trains on a batch, which is given by its number, and waits for the result.
      batches: how many different batches there are; they take turns.
    """
    done = 0
    for line in sys.stdin:
        start = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            step(done % batches)
            done += 1
        wall, processor = time.perf_counter() - start[0], time.process_time() - start[1]
        print("seconds", wall, processor, flush=True)
