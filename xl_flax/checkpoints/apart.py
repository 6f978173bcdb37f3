"""Saving where each of several processes has a folder of its own, in which only its shards lie."""

from typing import Any

import jax
import orbax.checkpoint as ocp


def arrays() -> dict[str, Any]:
    """Options of `ocp.PyTreeCheckpointHandler`: each writes the shards it has, the first copy."""
    handler = ocp.type_handlers.ArrayHandler(
        primary_host=None, replica_id=0, use_replica_parallel=False
    )
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, handler))
    return {"multiprocessing_options": _everyone(), "type_handler_registry": registry}


def manager() -> dict[str, Any]:
    """Options of `ocp.CheckpointManagerOptions`: each makes and renames its own folders."""
    return {"multiprocessing_options": _everyone(), "create": False}


def _everyone() -> ocp.options.MultiprocessingOptions:
    return ocp.options.MultiprocessingOptions(primary_host=None)
