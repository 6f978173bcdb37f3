"""Writing one checkpoint without a training run, as conversion does."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from xl_flax.checkpoints import intact
from xl_flax.files.write import write_atomically

# What is written at once: the memory that saving needs beside the arrays.
CHUNK_BYTES = 16 << 20
CONCURRENT_GB = 0.05


def save_checkpoint(folder: str, params: Any, files: Mapping[str, bytes]) -> None:
    """Writes a checkpoint that has parameters and no optimizer's state.

    The arrays are written as they are, in chunks, without a copy of them all: Orbax's default
    copies what is on the host, and its OCDBT format compresses all before it writes any. Without
    compression, which takes longer than all else and saves 8 % of trained float32 weights.

    Args:
      folder: a new or empty one. The caller gives it its final name when all is done.
      params: nested dict of NumPy arrays.
      files: `model.json` and what stands beside it, by name.
    """
    numpy_handler = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    handler = ocp.PyTreeCheckpointHandler(
        save_concurrent_gb=CONCURRENT_GB,
        use_ocdbt=False,
        use_compression=False,
        type_handler_registry=ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, numpy_handler)
        ),
    )
    save_args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), params)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(
            os.path.join(os.path.abspath(folder), intact.PARAMS),
            args=ocp.args.PyTreeSave(params, save_args=save_args),
        )
    for name, content in files.items():
        write_atomically(os.path.join(folder, intact.MODEL, name), content)
    intact.write_checksums(folder)
