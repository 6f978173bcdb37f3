"""A folder of Hugging Face or sentence-transformers becomes a checkpoint."""

import dataclasses
import os
from collections.abc import Collection
from typing import Any

import numpy as np

from xl_flax.checkpoints.description import RUNTIME_FIELDS, Description
from xl_flax.checkpoints.load import unflatten
from xl_flax.checkpoints.save import save_checkpoint
from xl_flax.converters import families, read, sentence_transformers, tokenizer, write
from xl_flax.converters.folders import new_folder
from xl_flax.data.vocabulary import Vocabulary, load_vocabulary
from xl_flax.errors import UserError
from xl_flax.files import remote
from xl_flax.files.read import read_bytes
from xl_flax.files.write import write_atomically
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import MLM_HEAD
from xl_flax.progress import progress
from xl_flax.text_table import wrapped


def to_ours(
    source: str, target: str, tokenizer_file: str | None = None, dtype: np.dtype | None = None
) -> None:
    """Writes the checkpoint of a folder of Hugging Face or sentence-transformers.

    Args:
      source: the folder.
      target: to write; it must not exist yet.
      tokenizer_file: a vocabulary, instead of the source's.
      dtype: of the weights written; None: as they are.

    Raises:
      UserError: it is no model that we know, or damaged.
    """
    model, heads, head_params = open_theirs(source)
    vocabulary = vocabulary_of(model, tokenizer_file)
    read_from = [model.tensors[place.theirs] for place in model.places]
    needed = sum(dataclasses.replace(t, dtype=dtype or t.dtype).nbytes for t in read_from)
    with new_folder(target, needed) as folder:
        with progress(sum(t.nbytes for t in read_from), "reading", "bytes") as done:
            params = read.read_params(model, done)
        for name, value in head_params.items():
            params[f"heads/{sentence_transformers.HEAD}/{name}"] = value
        for path in params if dtype else ():
            params[path] = params[path].astype(dtype, copy=False)
        description = _original_description(
            model, read.describe(model, vocabulary.fingerprint, heads)
        )
        files = {"model.json": description.to_json(), vocabulary.file_name: vocabulary.content}
        save_checkpoint(folder, unflatten(params), files)
        settings = _gin(target, model.encoder, model.heads, vocabulary)
        write_atomically(os.path.join(folder, "model.gin"), settings)
    for note in sentence_transformers.notes(source, model.folder, model.encoder.max_positions):
        print(wrapped(f"note: {note}"))
    if model.ignored:
        print(wrapped(f"left out, as computed or of no use here: {', '.join(model.ignored)}"))


def open_theirs(source: str) -> tuple[read.HuggingFaceModel, dict[str, Any], dict[str, Any]]:
    """The encoder's folder understood, heads for sentences, their parameters."""
    if not sentence_transformers.is_folder(source):
        return read.open_model(source), {}, {}
    folder, settings, params = sentence_transformers.read(source)
    model, heads = read.open_model(folder), {sentence_transformers.HEAD: settings}
    shapes = read.param_shapes(model.encoder, heads)
    for name, value in params.items():
        if value.shape != (wanted := shapes[f"heads/{sentence_transformers.HEAD}/{name}"]):
            raise UserError(
                f"{source}: the dense layer's {name} has shape {value.shape} and not {wanted}: it "
                "belongs to another encoder"
            )
    return model, heads, params


def vocabulary_of(model: read.HuggingFaceModel, path: str | None) -> Vocabulary:
    """The vocabulary in a file, or that of the model's folder.

    Raises:
      UserError: it has more pieces than the model's table has rows.
    """
    vocabulary = load_vocabulary(path) if path else tokenizer.read(model.folder)
    if vocabulary.size > model.encoder.vocab_size:
        raise UserError(
            f"{vocabulary.path} has {vocabulary.size:,} pieces, and the token table of "
            f"{model.folder} {model.encoder.vocab_size:,} rows: it belongs to another model"
        )
    return vocabulary


def _original_description(model: read.HuggingFaceModel, description: Description) -> Description:
    """The description that the folder was written from, if it is still that model."""
    path = os.path.join(model.folder, write.DESCRIPTION)
    if not os.path.exists(path):
        return description
    before = Description.from_json(read_bytes(path), path)
    changed = families.differences(before.encoder, description.encoder)
    if changed or before.vocabulary != description.vocabulary or before.heads != description.heads:
        return description
    return before


def _gin(
    target: str, encoder: EncoderConfig, heads: Collection[str], vocabulary: Vocabulary
) -> str:
    """Gin bindings with which a run goes on from the checkpoint."""
    path = os.path.abspath(target)
    lines = [
        "# The encoder of this checkpoint, for runs that go on from it:",
        "#   python -m xl_flax.train --gin_file=gin/runs/further.gin --gin_file=<this file> …",
        "TrainConfig.init_from = @InitFrom()",
        f"InitFrom.checkpoint = {remote.shown(path)!r}",
        f"VOCABULARY = {remote.shown(os.path.join(path, 'model', vocabulary.file_name))!r}",
        f"VOCAB_SIZE = {encoder.vocab_size}",
        "",
    ]
    if MLM_HEAD not in heads:
        lines.insert(4, "InitFrom.include = 'encoder/.*'  # it has no MLM head: a fresh one")
    for name, value in encoder.to_dict().items():  # all, whatever was bound before
        if (name not in RUNTIME_FIELDS or name.endswith("dropout")) and name != "vocab_size":
            lines.append(f"EncoderConfig.{name} = {value!r}")
    return "\n".join(lines) + "\n"
