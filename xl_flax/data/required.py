"""What a run is going to read, as its Gin configuration says."""

import inspect
import re
from typing import Any

import gin

from xl_flax.data.prepare import Need
from xl_flax.data.stream import Rows


def required() -> list[Need]:
    """All rows that the Gin configuration names.

    These are the mixtures of all `Rows`, and of all other configurables with a parameter called
    `mixture`, which may have a `split` and a `length` too.
    """
    rows, others = [], []
    pattern = r"^(?:(\S+)/)?(?:\w+\.)*(\w+)\.mixture\s*="
    for scope, name in dict.fromkeys(re.findall(pattern, gin.config_str(), re.MULTILINE)):
        with gin.config_scope(scope or None):
            if name == "Rows":
                rows += Rows().needs
            else:
                others.append(_defaults(name) | gin.get_bindings(name))
    lengths = {need.length for need in rows}
    for values in others:
        length = values.get("length")
        if isinstance(values["mixture"], str):
            split = values.get("split", "validation")
            rows += [Need(values["mixture"], split, n) for n in ([length] if length else lengths)]
    return list(dict.fromkeys(rows))


def _defaults(name: str) -> dict[str, Any]:
    parameters = inspect.signature(gin.get_configurable(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def planned_rows() -> int | None:
    """Rows that the configured run will read: its steps by its rows per step."""
    try:
        return gin.query_parameter("TrainConfig.steps") * gin.query_parameter("MaskedLM.batch_size")
    except (ValueError, TypeError):
        return None
