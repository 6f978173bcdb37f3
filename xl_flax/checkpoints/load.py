"""Loading a model from any checkpoint: what evaluation, sweeps and conversion start from."""

import dataclasses
import os
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from xl_flax.checkpoints import intact
from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.manager import (
    first_line,
    progress_path,
    read_best,
    read_progress,
)
from xl_flax.checkpoints.remote import BEST_FILE, bring
from xl_flax.checkpoints.threads import raise_only
from xl_flax.data.vocabulary import TOKENIZER_FILE, VOCABULARY_FILE
from xl_flax.errors import UserError
from xl_flax.files.read import read_bytes, read_json
from xl_flax.models.heads import Model, build_model
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.distributed import on_first
from xl_flax.parallel.mesh import MeshConfig, make_partitioning
from xl_flax.parallel.rules import Partitioning

BEST_SUFFIX = ":best"


def complete_checkpoints(path: str) -> list[str]:
    """The complete checkpoints under a run's folder, its `checkpoints/`, or one checkpoint itself.

    Returns:
      Folders, oldest step first; [] if there is none.
    """
    path = os.path.abspath(path)
    if intact.is_checkpoint(path):
        return [path]
    return [folder for folder in intact.step_folders(_folder(path)) if not _why_not(folder)]


def _why_not(folder: str) -> str:
    """Why a folder that is named as a step is not that step's checkpoint; "" if it is."""
    if not intact.is_checkpoint(folder):
        return "is no complete checkpoint"
    try:
        step = read_json(progress_path(folder)).get("step")
    except UserError:  # not of a run, or damaged, which whoever reads it says
        return ""
    renamed = type(step) is int and str(step) != os.path.basename(folder)
    return f"is the checkpoint of step {step}, under another name," if renamed else ""


def find_checkpoints(path: str) -> list[str]:
    """As `complete_checkpoints`, of which there must be one; says which folders are none.

    Raises:
      UserError: there is none.
    """
    checkpoints = complete_checkpoints(path)
    if not checkpoints:
        raise UserError(
            f"no checkpoint under {path}: give a run's folder (MODEL_DIR) or one checkpoint"
        )
    for folder in intact.step_folders(_folder(path)):
        if reason := _why_not(folder):
            print(f"WARNING: {folder} {reason} and left out", file=sys.stderr)
    return checkpoints


def gone(path: str) -> list[int]:
    """Steps that a run saved and then deleted (`TrainConfig.keep_last`).

    Args:
      path: a run's folder or its `checkpoints/`.
    """
    checkpoints = complete_checkpoints(path)
    alone = not checkpoints or checkpoints[-1] == os.path.abspath(path)
    if alone or not os.path.exists(progress_path(checkpoints[-1])):
        return []
    there = {int(os.path.basename(folder)) for folder in intact.step_folders(_folder(path))}
    return sorted(set(read_progress(checkpoints[-1]).saved) - there)


def _folder(path: str) -> str:
    """Where the checkpoints of a run are, if `path` is its folder; else `path`."""
    folder = os.path.join(os.path.abspath(path), intact.FOLDER)
    return folder if os.path.isdir(folder) else os.path.abspath(path)


def best_checkpoint(path: str) -> str:
    """The folder of the checkpoint that a run marked as its best (`TrainConfig.best`).

    Args:
      path: a run's folder or its `checkpoints/`.

    Raises:
      UserError: none is marked, or it is gone.
    """
    folder = _folder(path)
    best = read_best(folder)
    if best is None:
        raise UserError(
            f"{path} has no best checkpoint ({folder}/{BEST_FILE}): TrainConfig.best makes a run "
            "keep one"
        )
    checkpoint = os.path.join(folder, str(best["step"]))
    if not intact.is_checkpoint(checkpoint):
        raise UserError(f"{folder}/{BEST_FILE} names {checkpoint}, which is not there any more")
    said = read_progress(checkpoint).best or {}
    if any(said.get(name) != value for name, value in best.items()):
        raise UserError(
            f"{folder}/{BEST_FILE} does not agree with {progress_path(checkpoint)}: delete it; a "
            "run that goes on writes it again"
        )
    return checkpoint


def one_checkpoint(path: str) -> str:
    """The newest checkpoint under `path`, or with ":best" behind it the one marked as best.

    What is remote is fetched.

    Raises:
      UserError: there is none.
    """
    if path.endswith(BEST_SUFFIX):
        path = path.removesuffix(BEST_SUFFIX)
        bring(path, "best")
        return best_checkpoint(path)
    bring(path)
    return find_checkpoints(path)[-1]


def read_description(checkpoint: str) -> Description:
    """Reads the `model.json` of one checkpoint folder, of which `model/` must be intact.

    Raises:
      UserError: it is damaged, or the folder is no checkpoint.
    """
    intact.check(checkpoint, [intact.MODEL])
    path = os.path.join(checkpoint, intact.MODEL, "model.json")
    return Description.from_json(read_bytes(path), path)


def vocabulary_path(checkpoint: str) -> str:
    """Where a checkpoint keeps its copy of the vocabulary."""
    tokenizer = os.path.join(checkpoint, "model", TOKENIZER_FILE)
    if os.path.exists(tokenizer):
        return tokenizer
    return os.path.join(checkpoint, "model", VOCABULARY_FILE)


def load_params(checkpoint: str, layout: Any) -> Any:
    """Reads the parameters of one checkpoint into a layout of shapes with shardings.

    A layout with fewer parameters than the checkpoint reads only those. All processes read them
    together.

    Raises:
      UserError: the files are damaged, or hold no such parameters.
    """
    on_first(lambda: intact.check(checkpoint, [intact.PARAMS]))
    restore_args = ocp.checkpoint_utils.construct_restore_args(layout)
    return _restore(checkpoint, layout, restore_args)


def load_array(checkpoint: str, path: str, dtype: Any) -> np.ndarray:
    """Reads one parameter, as in "heads/mlm/bias", into memory of the host.

    The checkpoint is not compared with its checksums: see `intact.check`.

    Raises:
      UserError: the files are damaged, or hold no such parameter.
    """
    leaf = ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype)
    loaded = _restore(checkpoint, unflatten({path: 0}), unflatten({path: leaf}))
    return jax.tree.leaves(loaded)[0]


def _restore(checkpoint: str, item: Any, restore_args: Any) -> Any:
    raise_only()
    handler = ocp.PyTreeCheckpointHandler()
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            return checkpointer.restore(
                os.path.join(checkpoint, "params"),
                args=ocp.args.PyTreeRestore(
                    item=item, restore_args=restore_args, partial_restore=True
                ),
            )
    except Exception as error:  # Orbax raises bare ones, too
        raise UserError(
            f"the parameters of {checkpoint} cannot be read ({first_line(error)}); use an older one"
        ) from error


def load_parts(
    checkpoint: str, partitioning: Partitioning, dtype: str | None = None
) -> tuple[nnx.GraphDef, dict[str, Any], Description]:
    """Loads the model of one checkpoint folder, without putting it together.

    Args:
      checkpoint: the folder.
      partitioning: where the parameters go.
      dtype: of computation, as in "float32"; None: that of training.

    Returns:
      The graph definition, the parameters, a nested dict of sharded arrays, and the description.
      `nnx.merge(graph, params)` gives the model. Models of one description have equal graphs.

    Raises:
      UserError: the checkpoint is damaged.
    """
    description = read_description(checkpoint)
    encoder = description.encoder
    encoder = dataclasses.replace(encoder, dtype=dtype or encoder.dtype)
    abstract = params_lib.abstract(lambda: build_model(encoder, description.heads, nnx.Rngs(0)))
    return abstract.graph, load_params(checkpoint, abstract.layout(partitioning)), description


def load_model(
    path: str, partitioning: Partitioning | None = None, dtype: str | None = None
) -> tuple[Model, Description, str]:
    """Loads one model.

    Args:
      path: a run's folder, its `checkpoints/`, or one checkpoint; see `one_checkpoint`.
      partitioning: where the parameters go; by default all devices along the data axis.
      dtype: of computation, as in "float32"; None: that of training.

    Returns:
      The model, its description and the checkpoint's folder.

    Raises:
      UserError: no checkpoint is there, or it is damaged.
    """
    checkpoint = one_checkpoint(path)
    partitioning = partitioning or make_partitioning(MeshConfig())
    graph, params, description = load_parts(checkpoint, partitioning, dtype)
    return nnx.merge(graph, params), description, checkpoint


def replace_params(
    params: Any, path: str, include: str, exclude: str, stack: bool = False
) -> tuple[Any, list[str], str]:
    """Takes the parameters whose paths match from another checkpoint.

    Args:
      params: freshly created parameters, sharded; what is not taken stays as it is.
      path: where the checkpoint is, as in `one_checkpoint`.
      include: regular expression that a path must match as a whole.
      exclude: regular expression of paths to leave out all the same; "" for none.
      stack: the layers of a shallower model are repeated: layer i is its layer i mod n, of n (Gong
        et al. 2019, Efficient Training of BERT by Progressively Stacking, §3). A first layer that
        stands outside the stack (ModernBERT) is taken once: only the others are repeated.

    Returns:
      The new parameters, the paths that were taken, and the checkpoint's folder.

    Raises:
      UserError: an invalid expression, nothing matches, or a shape differs.
    """
    checkpoint = one_checkpoint(path)
    try:
        wanted = [
            name
            for name, _ in params_lib.flat(params)
            if re.fullmatch(include, name) and not (exclude and re.fullmatch(exclude, name))
        ]
    except re.error as error:
        raise UserError(f"InitFrom: {error.pattern!r} is no regular expression ({error})") from None
    description = read_description(checkpoint)
    outside = 0 if description.encoder.first_attention_norm else 1
    theirs = params_lib.abstract(
        lambda: build_model(description.encoder, description.heads, nnx.Rngs(0))
    )
    shapes = {name: leaf.shape for name, leaf in params_lib.flat(theirs.shapes)}
    axes = dict(params_lib.flat(theirs.axes, is_leaf=lambda leaf: isinstance(leaf, tuple)))
    ours = dict(params_lib.flat(params))
    if not wanted:
        raise UserError(
            f"InitFrom.include={include!r} without {exclude!r} matches no parameter; "
            f"paths look like {next(iter(ours))}"
        )
    times = {}
    for name in wanted:
        there, here = shapes.get(name), ours[name].shape
        layers = stack and axes.get(name, ())[:1] == ("layers",)
        times[name] = _repetitions(there, here, layers)
        if not times[name] and layers and there and there[1:] == here[1:]:
            raise UserError(_other_depth(here[0], there[0], outside, checkpoint))
        if not times[name]:
            raise UserError(
                f"InitFrom: {name} has shape {here} here and {there or 'does not exist'} in "
                f"{checkpoint}; exclude it, or change the model"
            )
    layout = {
        name: jax.ShapeDtypeStruct(shapes[name], ours[name].dtype, sharding=ours[name].sharding)
        for name in wanted
    }
    loaded = dict(params_lib.flat(load_params(checkpoint, unflatten(layout))))
    for name in wanted:
        if times[name] > 1:
            repeat = jax.jit(jnp.tile, static_argnums=1, out_shardings=ours[name].sharding)
            loaded[name] = repeat(loaded[name], (times[name], *(1 for _ in shapes[name][1:])))
    return unflatten(ours | loaded), wanted, checkpoint


def _repetitions(there: tuple | None, here: tuple, layers: bool) -> int:
    """How often an array's layers, if it has any, are repeated to have another shape; 0: no fit."""
    if there is None or there[1:] != here[1:]:
        return 0
    if there == here or not layers:
        return int(there == here)
    times, rest = divmod(here[0], there[0])
    return 0 if rest else times


def _other_depth(here: int, there: int, outside: int, checkpoint: str) -> str:
    """Why a stack of `here` layers is not made of one of `there`, and which depths are."""
    depths = [outside + times * there for times in range(1, 5)]
    return (
        f"InitFrom.stack: {outside + here} layers are not made of the {outside + there} of "
        f"{checkpoint}"
        f"{', of which the first is not repeated' if outside else ''}; set "
        f"EncoderConfig.num_layers to {', '.join(map(str, depths))} …"
    )


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `params.flat`: paths and leaves → a nested dict."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
