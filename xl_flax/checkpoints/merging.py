"""One model made of several of one shape: the mean of their parameters, or TIES."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import nnx

from xl_flax.checkpoints import intact
from xl_flax.checkpoints.load import load_array, read_description
from xl_flax.errors import UserError
from xl_flax.models.heads import build_model
from xl_flax.parallel import params as params_lib

DENSITY = 0.2  # of a difference the share that counts, in TIES

Merge = Callable[[list[np.ndarray]], np.ndarray]  # float32 arrays of one parameter, as it is saved


def merge(checkpoints: Sequence[str], how: Merge, done: Callable[[int], None]) -> dict[str, Any]:
    """Merges checkpoint by checkpoint, one parameter at a time.

    Args:
      checkpoints: their folders; all have the newest one's shape, heads and vocabulary.
      how: merges the values of one parameter.
      done: is called with the bytes of each parameter.

    Returns:
      Path -> array, in the dtype in which it was saved.

    Raises:
      UserError: a checkpoint is damaged, or of another model.
    """
    for checkpoint in checkpoints:
        intact.check(checkpoint, [intact.MODEL, intact.PARAMS])
    shapes = shapes_of(checkpoints)
    merged = {}
    for path, leaf in shapes.items():
        arrays = [load_array(c, path, np.float32) for c in checkpoints]
        merged[path] = how(arrays).astype(leaf.dtype)
        done(merged[path].nbytes)
    return merged


def shapes_of(checkpoints: Sequence[str]) -> dict[str, Any]:
    """Path -> shape and dtype of the parameters, which all checkpoints have in common.

    Raises:
      UserError: one is of another model.
    """
    first, *others = ((c, read_description(c)) for c in checkpoints)
    for checkpoint, description in others:
        same = dataclasses.replace(description, objectives=first[1].objectives)
        differ = first[1].differences(same)
        if differ:
            raise UserError(f"{checkpoint} is of another model than {first[0]}: {differ[0]}")
    abstract = params_lib.abstract(
        lambda: build_model(first[1].encoder, first[1].heads, nnx.Rngs(0))
    )
    return dict(params_lib.flat(abstract.shapes))


def mean(arrays: list[np.ndarray]) -> np.ndarray:
    """Their mean, float64 in between."""
    return np.mean(arrays, axis=0, dtype=np.float64)


def ties(checkpoints: Sequence[str], density: float = DENSITY) -> Merge:
    """TIES merging (Yadav et al. 2023, arXiv:2306.01708), as mmBERT merges its last phases.

    The first model is where the others come from. Of each other one's difference to it, over all
    parameters, the `density` largest by magnitude are kept (trim). Each place takes the sign of the
    sum of what is kept there (elect), and the mean of what has this sign (merge), which is added.

    Args:
      checkpoints: the first one, and those that were trained on from it.
      density: 0.2, as in the paper, whose weight of the sum is 1, too.

    Raises:
      UserError: as `merge`; or nothing was trained.
    """
    paths = shapes_of(checkpoints)
    thresholds = []
    for checkpoint in checkpoints[1:]:
        changes = (
            load_array(checkpoint, path, np.float32) - load_array(checkpoints[0], path, np.float32)
            for path in paths
        )
        sizes = np.concatenate([np.abs(change).ravel() for change in changes])
        kept = max(1, round(density * sizes.size))
        threshold = np.partition(sizes, -kept)[-kept]
        if not sizes.any():
            raise UserError(f"{checkpoint} does not differ from {checkpoints[0]}: nothing to merge")
        thresholds.append(max(threshold, np.finfo(np.float32).tiny))  # what is equal is no change

    def how(arrays: list[np.ndarray]) -> np.ndarray:
        base, *others = arrays
        changes = np.stack([x - base for x in others])
        limits = np.array(thresholds, np.float32).reshape(-1, *(1 for _ in base.shape))
        changes[np.abs(changes) < limits] = 0
        elected = np.sign(changes.sum(axis=0, dtype=np.float64))
        agree = (np.sign(changes) == elected) & (changes != 0)
        total = np.where(agree, changes, 0).sum(axis=0, dtype=np.float64)
        return base + total / np.maximum(agree.sum(axis=0), 1)

    return how
