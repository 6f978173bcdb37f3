"""What a run is going to read, as its Gin configuration says."""

import re

import gin

from xl_flax.data.prepare import Need


def required() -> list[Need]:
    """All rows that the Gin configuration names.

    Every configurable with a bound `mixture` is asked for its `needs`; one that has none, but a
    `split`, reads rows of the lengths that the others read.
    """
    needs, held_out = [], []
    pattern = r"^(?:(\S+)/)?(?:\w+\.)*(\w+)\.mixture\s*="
    for scope, name in dict.fromkeys(re.findall(pattern, gin.config_str(), re.MULTILINE)):
        with gin.config_scope(scope or None):
            reader = gin.get_configurable(name)()
        if hasattr(reader, "needs"):
            needs += [(name, need) for need in reader.needs]
        else:
            held_out.append(reader)
    lengths = dict.fromkeys(need.length for name, need in needs if name == "Rows")
    needs = [need for _, need in needs]
    needs += [Need(reader.mixture, reader.split, n) for reader in held_out for n in lengths]
    return list(dict.fromkeys(needs))


def planned_rows() -> int | None:
    """Rows that the configured run will read, its steps by its rows per step; None if unknown."""
    try:
        steps = gin.get_bindings("TrainConfig")["steps"]
        return steps * gin.get_bindings("MaskedLM")["batch_size"]
    except (KeyError, ValueError, TypeError, RuntimeError):
        return None
