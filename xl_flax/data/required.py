"""What a run is going to read, as its Gin configuration says."""

import gin

from xl_flax.data.prepare import Need


def required() -> list[Need]:
    """What training (objectives and held-out text) and evaluation will read."""
    train, evaluate = gin.get_bindings("TrainConfig"), gin.get_bindings("EvaluateConfig")
    objectives = list(train.get("objectives", ()))
    needs = [need for objective in objectives for need in objective.rows.needs]
    for held_out in train.get("held_out", ()):
        needs.append(Need(held_out.mixture, held_out.split, objectives[0].rows.length))
    for evaluation in evaluate.get("evaluations", ()):
        needs += evaluation.needs
    return list(dict.fromkeys(needs))


def planned_rows() -> int | None:
    """Rows that the configured run will read, its steps by its rows per step; None if unknown."""
    try:
        steps = gin.get_bindings("TrainConfig")["steps"]
        return steps * gin.get_bindings("MaskedLM")["batch_size"]
    except (KeyError, ValueError, TypeError, RuntimeError):
        return None
