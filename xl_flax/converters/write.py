"""One of our checkpoints → a folder of Hugging Face or sentence-transformers."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from xl_flax.checkpoints import intact
from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.load import load_array, read_description, vocabulary_path
from xl_flax.checkpoints.manager import first_line
from xl_flax.converters import card, families, sentence_transformers, tokenizer
from xl_flax.converters.folders import write_json
from xl_flax.converters.read import CONFIG, TOKEN_TYPES
from xl_flax.converters.tensors import Tensor, write_folder
from xl_flax.converters.weights import Place, places
from xl_flax.data.vocabulary import SpecialIds, Vocabulary, load_vocabulary
from xl_flax.errors import UserError
from xl_flax.files.write import write_atomically
from xl_flax.models.heads import HeadSettings, build_model, full_settings
from xl_flax.parallel import params as params_lib

TOKEN_TABLE = "embeddings.word_embeddings.weight"
DESCRIPTION = "xl_flax.json"  # the checkpoint's model.json, so that coming back changes nothing


@dataclasses.dataclass(frozen=True)
class NativeModel:
    """One of our checkpoints, and what its folder will be; no parameter is read yet."""

    checkpoint: str
    description: Description
    vocabulary: Vocabulary
    family: ModuleType
    config: dict[str, Any]  # of config.json
    heads: dict[str, Any]  # those that are written
    places: list[Place]
    stored: dict[str, jax.ShapeDtypeStruct]  # all parameters, in the dtype that is stored

    def tensors(self, dtype: np.dtype | None) -> dict[str, Tensor]:
        """Their tensors by name; reading them in this order reads each of our arrays once."""
        read = ParamReader(self)
        ordered = sorted(self.places, key=lambda p: p.ours)
        tensors = {place.theirs: self._tensor(place, read, dtype) for place in ordered}
        if self.config.get("type_vocab_size") and not self.description.encoder.token_types:
            # Their embeddings always have a type: one that adds nothing.
            words = next(name for name in tensors if name.endswith(TOKEN_TABLE))
            shape = (1, self.description.encoder.width)
            kind = tensors[words].dtype
            name = words.removesuffix(TOKEN_TABLE) + TOKEN_TYPES
            tensors[name] = Tensor(shape, kind, lambda: np.zeros(shape, kind))
        return tensors

    def _tensor(self, place: Place, read: "ParamReader", dtype: np.dtype | None) -> Tensor:
        dtype = dtype or np.dtype(self.stored[place.ours].dtype)
        return Tensor(
            place.shape, dtype, lambda: place.to_theirs(read(place.ours)).astype(dtype, copy=False)
        )


class ParamReader:
    """Reads a checkpoint's parameters by path and remembers the last one only."""

    def __init__(self, model: NativeModel):
        self._model = model
        self._last: tuple[str, np.ndarray] | None = None

    def __call__(self, path: str) -> np.ndarray:
        """One whole array."""
        if self._last is None or self._last[0] != path:
            self._last = None  # gone before the next one comes
            leaf = self._model.stored[path]
            self._last = path, load_array(self._model.checkpoint, path, leaf.dtype)
        return self._last[1]


def open_checkpoint(checkpoint: str, heads: Sequence[str] | None = None) -> NativeModel:
    """Finds the family and names for a checkpoint.

    Args:
      checkpoint: its folder.
      heads: names of those to write; None: all that Transformers has classes for.

    Raises:
      UserError: no family has such an encoder or heads, or the vocabulary does not fit.
    """
    description = read_description(checkpoint)
    vocabulary = load_vocabulary(vocabulary_path(checkpoint))
    chosen = families.HEADS if heads is None else heads
    if unknown := sorted(set(chosen) - set(families.HEADS) - set(description.heads)):
        raise UserError(
            f"--heads: the checkpoint has no {', '.join(unknown)}; it has "
            + (", ".join(description.heads) or "none")
        )
    kept = {n: dict(s) for n, s in description.heads.items() if n in chosen}
    family, config = families.for_encoder(description.encoder, kept)
    stored = stored_layout(checkpoint, description)
    prefixed = bool(set(kept) - {"pooler"})
    shapes = {
        path: leaf.shape
        for path, leaf in stored.items()
        if not path.startswith("heads/") or path.split("/")[1] in kept
    }
    placed = places(
        families.weights(family, description.encoder, prefixed), shapes, description.encoder
    )
    if unplaced := sorted(set(shapes) - {place.ours for place in placed}):
        raise UserError(
            f"{family.MODEL_TYPES[0]} has no place for {', '.join(unplaced)}: leave heads out with "
            "--heads=NAME,…"
        )
    twice = [name for name, n in Counter(p.theirs for p in placed).items() if n > 1]
    if twice:
        raise UserError(
            f"several heads would be {', '.join(twice)}; choose with --heads=NAME,… of "
            + ", ".join(kept)
        )
    _check_heads(kept, family.read_heads(config, _names(placed, family)), family)
    _check_vocabulary(description, vocabulary, family)
    config |= _ids(vocabulary.special)
    if hasattr(family, "write_ids"):
        config |= family.write_ids(vocabulary.special, description.all_languages)
    return NativeModel(checkpoint, description, vocabulary, family, config, kept, placed, stored)


def stored_layout(checkpoint: str, description: Description) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of each stored parameter, by path.

    Raises:
      UserError: they are damaged, or not those of the model that the checkpoint describes.
    """
    intact.check(checkpoint, [intact.PARAMS])
    build = lambda: build_model(description.encoder, description.heads, nnx.Rngs(0))  # noqa: E731
    shapes = params_lib.abstract(build).shapes
    wanted = {path: leaf.shape for path, leaf in params_lib.flat(shapes)}
    is_leaf = lambda x: hasattr(x, "shape")  # noqa: E731
    try:
        metadata = ocp.PyTreeCheckpointHandler().metadata(_params_path(checkpoint))
        tree = getattr(metadata, "tree", metadata)
        stored = {
            path: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype)
            for path, leaf in params_lib.flat(tree, is_leaf=is_leaf)
        }
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"the parameters of {checkpoint} cannot be read ({first_line(error)}); use another"
        ) from error
    wrong = {p for p in wanted.keys() | stored.keys() if p not in stored or p not in wanted}
    wrong |= {p for p in wanted.keys() & stored.keys() if wanted[p] != stored[p].shape}
    if wrong:
        raise UserError(
            f"{checkpoint}: its parameters are not those that its model.json describes: "
            + ", ".join(sorted(wrong)[:8])
        )
    return stored


def _params_path(checkpoint: str) -> Any:
    from etils import epath

    return epath.Path(os.path.join(os.path.abspath(checkpoint), "params"))


def _names(placed: Sequence[Place], family: ModuleType) -> set[str]:
    """As reading would see them, whether or not the body's have a prefix."""
    return {name for place in placed for name in (place.theirs, family.PREFIX + place.theirs)}


def _check_heads(
    ours: Mapping[str, HeadSettings], theirs: Mapping[str, HeadSettings], family: ModuleType
) -> None:
    """Raises UserError unless the heads that would be read back are those that are written."""
    for name, settings in ours.items():
        mine, back = (full_settings(name, s) for s in (settings, theirs.get(name, {})))
        lost = [key for key in mine if mine[key] != back.get(key)]
        if name not in theirs or lost:
            what = ", ".join(f"{key} = {mine[key]!r}" for key in lost) or name
            raise UserError(
                f"{family.MODEL_TYPES[0]} has no head {name!r} with {what}: leave it out with "
                "--heads=NAME,…"
            )


def _check_vocabulary(description: Description, vocabulary: Vocabulary, family: ModuleType) -> None:
    if description.vocabulary != vocabulary.fingerprint:
        raise UserError(
            f"the vocabulary {vocabulary.path} is not the one that the model was trained with: its "
            "bytes have changed"
        )
    if vocabulary.size > description.encoder.vocab_size:
        raise UserError(
            f"the vocabulary {vocabulary.path} has {vocabulary.size:,} pieces, and the embedding "
            f"{description.encoder.vocab_size:,} rows"
        )
    offset = description.encoder.position_offset
    if offset and vocabulary.special.pad != offset - 1:
        raise UserError(
            f"{family.MODEL_TYPES[0]} counts positions from the id of padding, which must be "
            f"{offset - 1} and is {vocabulary.special.pad} in {vocabulary.path}"
        )


def _ids(special: SpecialIds) -> dict[str, int]:
    return {
        "pad_token_id": special.pad,
        "bos_token_id": special.cls,
        "eos_token_id": special.sep,
        "cls_token_id": special.cls,
        "sep_token_id": special.sep,
        "mask_token_id": special.mask,
    }


def write_model(
    model: NativeModel,
    folder: str,
    sentence_head: str | None,
    dtype: np.dtype | None,
    shard_bytes: int,
    progress: Callable[[int], Any],
) -> list[str]:
    """Writes weights, configuration, tokenizer, model card and what sentence-transformers needs.

    Args:
      model: from `open_checkpoint`.
      folder: an empty one.
      sentence_head: name of the head of a folder for sentence-transformers; None: for Transformers.
      dtype: of the weights; None: as they are stored.
      shard_bytes: most bytes of one file.
      progress: called with the bytes of each tensor that was written.

    Returns:
      Remarks: what the folder has not, or does otherwise.
    """
    tensors = model.tensors(dtype)
    notes = []
    if left_out := sorted(set(model.description.heads) - set(model.heads) - {sentence_head}):
        notes.append(f"heads that the folder has no place for: {', '.join(left_out)}")
    # BERT's classifiers have the pooler inside.
    pooled = {"pooler", "sequence", "choice"} & model.heads.keys()
    if not pooled and any(w.ours.startswith("heads/pooler") for w in model.family.BODY):
        notes.append(
            "no pooler is there, and AutoModel makes a random one: take the mean of the hidden "
            "states, or add_pooling_layer=False"
        )
    write_folder(folder, tensors, shard_bytes, progress)
    kind = str(next(iter(tensors.values())).dtype)
    write_json(os.path.join(folder, CONFIG), model.config | {"dtype": kind, "torch_dtype": kind})
    longest = model.description.encoder.max_positions
    tokenizer.write(folder, model.vocabulary, longest, model.family.INPUTS)
    write_atomically(os.path.join(folder, DESCRIPTION), model.description.to_json())
    if sentence_head is not None:
        settings = dict(model.description.heads[sentence_head])
        read, start = ParamReader(model), f"heads/{sentence_head}/"
        params = {p.removeprefix(start): read(p) for p in model.stored if p.startswith(start)}
        params = {p: x if dtype is None else x.astype(dtype) for p, x in params.items()}
        encoder = model.description.encoder
        notes += sentence_transformers.write(
            folder, settings, params, encoder.width, encoder.max_positions
        )
    text = card.make(model.checkpoint, model.description, model.config, notes)
    write_atomically(os.path.join(folder, "README.md"), text)
    return notes
