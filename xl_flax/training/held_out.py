"""Held-out masked-token loss during training: the same hidden tokens each time, no dropout."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import nnx

from xl_flax.data.prepare import Caches
from xl_flax.data.stream import open_held_out
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.evaluation import masked_lm
from xl_flax.parallel.rules import Partitioning
from xl_flax.training.config import TrainConfig

RATE = 0.15  # of masking, whatever it is in training: losses stay comparable across phases


def make_held_out(
    config: TrainConfig,
    graph: nnx.GraphDef,
    partitioning: Partitioning,
    caches: Caches,
    vocabulary: Vocabulary,
    languages: Sequence[str],
) -> Callable[[Any], dict[str, float]]:
    """Opens the held-out mixtures of a run.

    Args:
      config: the run; rows are as long as its first objective's.
      graph: the model's graph definition, with an MLM head.
      partitioning: mesh and rules.
      caches: with the held-out mixtures.
      vocabulary: of the run.
      languages: of the run, in the order of the encoder's language table.

    Returns:
      A function from parameters to `eval/MIXTURE/loss`, `…/accuracy` and the same with
      `/LANGUAGE`; the values without a language are means over languages.
    """
    length = config.objectives[0].rows.length
    mixtures = {
        h.name: open_held_out(h.datasets(length), caches, vocabulary, rows_per_task=h.rows_per_task)
        for h in config.held_out
    }
    score = masked_lm.make_score(graph, vocabulary, RATE, partitioning)

    def evaluate(params: Any) -> dict[str, float]:
        values = {}
        for mixture, rows in mixtures.items():
            scores = masked_lm.evaluate(score, params, rows, partitioning, languages)
            for metric in ("loss", "accuracy"):
                found = {f"/{k}": getattr(s, metric) for k, s in scores.items() if s.count}
                found |= {"": float(np.mean([*found.values()]))}
                # JSON has no NaN; a run that diverged says so in the losses of its steps.
                values |= {
                    f"eval/{mixture}/{metric}{suffix}": value
                    for suffix, value in found.items()
                    if math.isfinite(value)
                }
        return values

    return evaluate
