"""A folder of Hugging Face → one of our checkpoints."""

import contextlib
import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
from flax import nnx

from xl_flax.checkpoints.description import Description
from xl_flax.converters import families
from xl_flax.converters.config import Config
from xl_flax.converters.folders import MEND
from xl_flax.converters.tensors import Tensor, open_folder
from xl_flax.converters.weights import Place, places
from xl_flax.errors import UserError
from xl_flax.files.read import read_json
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.parallel import params as params_lib

CONFIG = "config.json"
LISTED = 8  # names in an error
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
# What the first published BERTs, multilingual ones among them, call weight and bias.
OLD_NORM_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


@dataclasses.dataclass(frozen=True)
class HuggingFaceModel:
    """A model's folder, understood but not read yet."""

    folder: str
    config: Config
    family: ModuleType
    encoder: EncoderConfig
    heads: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    places: list[Place]
    shapes: Mapping[str, tuple[int, ...]]  # of our parameters
    ignored: list[str]  # tensors that mean nothing here

    @property
    def languages(self) -> list[str]:
        """Names of the rows of the language table."""
        rows = self.encoder.languages
        with _errors_naming(os.path.join(self.folder, CONFIG)):
            by_name = self.config.get("lang2id") or {f"{i:04}": i for i in range(rows)}
            names = sorted(by_name, key=by_name.get)
        if rows and (len(names) != rows or names != sorted(names)):
            raise UserError(
                f"{self.folder}/{CONFIG}: lang2id does not name {rows} languages in alphabetical "
                "order, which is how ours are kept"
            )
        return names if rows else []


def open_model(folder: str) -> HuggingFaceModel:
    """Understands a folder: its family, sizes, heads, and where each tensor belongs.

    Args:
      folder: with `config.json` and the weights.

    Raises:
      UserError: what is missing, superfluous or of another shape, all of it at once.
    """
    path = os.path.join(folder, CONFIG)
    config = read_json(path, f"is it a model's folder? Or {MEND}")
    family = families.for_config(config, path)
    with _errors_naming(path):
        encoder = family.read_config(config)
    tensors = {_renamed(name): tensor for name, tensor in open_folder(folder).items()}
    if not families.is_prefixed(family, tensors):
        tensors = {family.PREFIX + name: tensor for name, tensor in tensors.items()}
    if encoder.num_layers > len(tensors):  # before so many are looked for
        raise UserError(
            f"{path} says that there are {encoder.num_layers:,} layers, and {folder} has "
            f"{len(tensors)} tensors"
        )
    if not encoder.tie_head:  # before Transformers 5 one of the two names was enough
        for pair in family.UNTIED.items():
            for name, other in (pair, pair[::-1]):
                if name in tensors:
                    tensors.setdefault(other, tensors[name])
    # RoBERTas have a row of zeros as their only token type.
    types = tensors.get(family.PREFIX + TOKEN_TYPES)
    if encoder.token_types == 1 and types is not None and not types.read().any():
        encoder = dataclasses.replace(encoder, token_types=0)
        del tensors[family.PREFIX + TOKEN_TYPES]
    with _errors_naming(path):
        heads = family.read_heads(config, tensors)
    shapes = param_shapes(encoder, heads)
    placed = places(families.weights(family, encoder), shapes, encoder)
    ignored = _check(folder, family, placed, shapes, tensors)
    return HuggingFaceModel(
        folder, config, family, encoder, heads, tensors, placed, shapes, ignored
    )


@contextlib.contextmanager
def _errors_naming(path: str) -> Iterator[None]:
    """What a value of a wrong type or range leads to becomes an error that names the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix('config.json: ')}") from None
    except (TypeError, AttributeError, KeyError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"{path}: a value has the wrong type ({type(error).__name__}: {error}); {MEND}"
        ) from error


def _renamed(name: str) -> str:
    for before, now in OLD_NORM_NAMES.items():
        if name.endswith(before):
            return name.removesuffix(before) + now
    return name


def param_shapes(encoder: EncoderConfig, heads: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of our parameters, by path."""
    layout = params_lib.abstract(lambda: build_model(encoder, heads, nnx.Rngs(0))).shapes
    return {path: leaf.shape for path, leaf in params_lib.flat(layout)}


def _check(
    folder: str,
    family: ModuleType,
    placed: list[Place],
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Tensor],
) -> list[str]:
    """The names that may be ignored; everything else that does not fit is an error."""
    wanted = {place.theirs: place.shape for place in placed}
    rest = sorted(set(tensors) - set(wanted))
    ignored = [name for name in rest if re.fullmatch(family.IGNORED, name)]
    problems = {
        "are missing": sorted(set(wanted) - set(tensors)),
        "do not belong to this model": [name for name in rest if name not in ignored],
        "have another shape than config.json says": [
            f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
            for name, shape in wanted.items()
            if name in tensors and tensors[name].shape != shape
        ],
        "are no floating-point numbers": [
            f"{name} {tensors[name].dtype}"
            for name in wanted
            if name in tensors and not np.issubdtype(_promoted(tensors[name].dtype), np.floating)
        ],
        "are of ours and nothing gives them": sorted(set(shapes) - {p.ours for p in placed}),
    }
    lines = []
    for what, names in problems.items():
        if names:
            more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
            lines.append(f"  {len(names)} {what}: {', '.join(names[:LISTED])}{more}")
    if lines:
        raise UserError(f"{folder}: its tensors do not make its model.\n" + "\n".join(lines))
    return ignored


def _promoted(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float32) if dtype.name == "bfloat16" else dtype


def read_params(model: HuggingFaceModel, progress: Callable[[int], Any]) -> dict[str, np.ndarray]:
    """Our parameters, by path, in the dtype that they have there.

    Nothing is held twice: each tensor goes to its place and is forgotten.

    Args:
      model: from `open_model`.
      progress: called with the bytes of each tensor that was read.
    """
    params: dict[str, np.ndarray] = {}
    by_path = lambda place: place.ours  # noqa: E731
    for path, group in itertools.groupby(sorted(model.places, key=by_path), key=by_path):
        parts = list(group)
        if len(parts) == 1 and not parts[0].inputs:  # a table, the largest of all: not copied
            params[path] = model.tensors[parts[0].theirs].read().reshape(model.shapes[path])
            progress(params[path].nbytes)
            continue
        dtypes = {model.tensors[place.theirs].dtype for place in parts}
        dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
        params[path] = np.empty(model.shapes[path], dtype)
        for place in parts:
            tensor = model.tensors[place.theirs]
            place.to_ours(tensor.read(), params[path])
            progress(tensor.nbytes)
    return params


def describe(model: HuggingFaceModel, vocabulary: str, heads: Mapping[str, Any]) -> Description:
    """The description of a converted checkpoint, which no objective has trained yet."""
    languages = {"converted": tuple(model.languages)} if model.languages else {}
    return Description(model.encoder, dict(model.heads) | dict(heads), vocabulary, languages, {})
