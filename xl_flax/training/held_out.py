"""Held-out masked-token loss during training: fixed masks, no dropout, per language."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from xl_flax.data.batches import global_batch
from xl_flax.data.stream import open_eval_rows
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.parallel.rules import Partitioning
from xl_flax.training.config import TrainConfig
from xl_flax.training.logging import objective_means

RATE = 0.15  # of masking, whatever the rate in training is: losses stay comparable across phases


def make_held_out(
    config: TrainConfig, graph: nnx.GraphDef, partitioning: Partitioning, vocabulary: Vocabulary
) -> Callable[[Any], dict[str, float]]:
    """Opens the held-out mixtures and compiles their loss once.

    Returns:
      A function from parameters to values such as `eval/MIXTURE/loss/LANGUAGE`.
    """
    objective = next((o for o in config.objectives if "mlm" in o.heads), None)
    opened = {}
    for held_out in config.held_out:
        rows = open_eval_rows(
            held_out.mixture, held_out.split, objective.rows.length, config.cache, vocabulary,
            rows_per_task=held_out.rows_per_task,
        )  # fmt: skip
        constants = jax.device_put(objective.bind(vocabulary, rows), partitioning.sharding(()))
        opened[held_out.mixture] = (rows, constants)
    key = jax.random.key(0)

    @jax.jit
    def sums(params: Any, batch: Any, constants: Any) -> Any:
        with partitioning.activate():
            model = nnx.merge(graph, params)
            return objective.loss(model, batch, key, constants, RATE, train=False)[1]

    def evaluate(params: Any) -> dict[str, float]:
        values = {}
        for name, (rows, constants) in opened.items():
            size = objective.batch_size
            total: dict[str, Any] = {}
            for first in range(0, len(rows), size):
                batch = global_batch(rows, first, size, partitioning.sharding(("batch",)))
                for key_, value in jax.device_get(sums(params, batch, constants)).items():
                    total[key_] = total.get(key_, 0.0) + np.asarray(value, np.float64)
            means = objective_means(total, rows.languages)
            for key_, value in means.items():
                if key_.split("/")[0] in ("loss", "accuracy"):
                    values[f"eval/{name}/{key_}"] = value
        return values

    return evaluate
