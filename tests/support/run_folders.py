"""What tests read from a run's folder, and how they damage one."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from xl_flax.checkpoints.load import find_checkpoints

CLOCK = (
    "time",
    "goodput",
    "tokens_per_second",
    "seconds_per_step",
    "input_wait",
    "model_tflops",
    "mfu",
)


def lines_of(model_dir):
    """`metrics.jsonl` without what the clock says."""
    with open(os.path.join(model_dir, "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    return [{k: v for k, v in line.items() if not k.startswith(CLOCK)} for line in lines]


def saved(model_dir, item):
    """One item of the newest checkpoint as a dict of arrays by path."""
    path = os.path.join(find_checkpoints(model_dir)[-1], item)
    layout = ocp.PyTreeCheckpointHandler().metadata(epath.Path(path)).tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), layout)  # anywhere
    tree = ocp.PyTreeCheckpointer().restore(path, restore_args=as_numpy)
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def texts_of(model_dir):
    """What the plain files of a run's folder hold, by name."""
    names = [name for name in os.listdir(model_dir) if name.endswith((".gin", ".txt", ".jsonl"))]
    return {name: Path(model_dir, name).read_text() for name in names}


def steps_of(model_dir):
    """The steps of a run's checkpoints, oldest first."""
    return [int(os.path.basename(c)) for c in find_checkpoints(model_dir)]


def flip(checkpoint):
    """Changes one bit of the largest file of the parameters."""
    files = [os.path.join(w, n) for w, _, names in os.walk(f"{checkpoint}/params") for n in names]
    path = max(files, key=os.path.getsize)
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
