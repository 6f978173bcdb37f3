"""What fine-tuning starts from: a checkpoint named in Gin, whose encoder and vocabulary it takes.

TrainConfig.encoder = @pretrained_encoder()
TrainConfig.init_from = @InitFrom()
InitFrom.checkpoint = @pretrained()
run_vocabulary.path = @pretrained_vocabulary()
pretrained.source = 'runs/bible'
pretrained.folder = %CACHE_DIR
"""

import dataclasses
import hashlib
import os
from typing import Literal

import gin

from xl_flax.checkpoints.load import (
    complete_checkpoints,
    one_checkpoint,
    read_description,
    vocabulary_path,
)
from xl_flax.checkpoints.remote import bring
from xl_flax.converters import read
from xl_flax.errors import UserError
from xl_flax.files import remote
from xl_flax.files.lock import locked
from xl_flax.models.config import EncoderConfig
from xl_flax.settings import Folder, Fraction, check, kinds


@gin.configurable
def pretrained(source: Folder = gin.REQUIRED, folder: Folder = gin.REQUIRED) -> str:
    """The checkpoint to start from.

    Args:
      source: a run's folder, perhaps with ":best", a checkpoint, or a folder of Hugging Face or
        sentence-transformers, which is converted.
      folder: where `pretrained/` holds what was converted, once for all runs.

    Returns:
      A path for `InitFrom.checkpoint`.

    Raises:
      UserError: there is no such model.
    """
    for name, value in {"source": source, "folder": folder}.items():
        check(f"pretrained.{name}", value, Folder)
    source, folder = remote.staged(source), remote.staged(folder)
    bring(source)
    if not is_foreign(source):
        return source
    target = os.path.join(folder, "pretrained", _digest(source))
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with locked(os.path.dirname(target), f"waiting for the conversion of {source}", wait=True):
        if not complete_checkpoints(target):
            from xl_flax.converters.ours import to_ours  # what only a conversion needs

            to_ours(source, target)
            print(f"converted {source} to {target}")
    return target


@gin.configurable
def pretrained_vocabulary() -> str:
    """The path of the vocabulary that the checkpoint keeps."""
    return vocabulary_path(one_checkpoint(pretrained()))


@gin.configurable
def pretrained_vocab_size() -> int:
    """The rows of the checkpoint's token table."""
    return read_description(one_checkpoint(pretrained())).encoder.vocab_size


@gin.configurable
def pretrained_encoder(
    dropout: Fraction | None = None,
    attention_dropout: Fraction | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    attention: Literal["auto", "plain", "cudnn"] | None = None,
    scan: Literal["scan", "unroll"] | None = None,
    remat: Literal["none", "full", "dots"] | None = None,
) -> EncoderConfig:
    """The checkpoint's encoder, computed in another way where something is set.

    Args:
      dropout: of embeddings, attention's and feed-forward's output.
      attention_dropout: of attention probabilities; None: as `dropout`.
      dtype: of computation.
      attention: see `EncoderConfig`.
      scan: see `EncoderConfig`.
      remat: see `EncoderConfig`.
    """
    given = {
        "dropout": dropout,
        "attention_dropout": attention_dropout,
        "dtype": dtype,
        "attention": attention,
        "scan": scan,
        "remat": remat,
    }
    for name, kind in kinds(pretrained_encoder).items():
        check(f"pretrained_encoder.{name}", given[name], kind)
    encoder = read_description(one_checkpoint(pretrained())).encoder
    wanted = {
        "embedding_dropout": dropout,
        "attention_dropout": dropout if attention_dropout is None else attention_dropout,
        "attention_out_dropout": dropout,
        "mlp_out_dropout": dropout,
        "dtype": dtype,
        "attention": attention,
        "scan": scan,
        "remat": remat,
    }
    return dataclasses.replace(encoder, **{k: v for k, v in wanted.items() if v is not None})


def is_foreign(source: str) -> bool:
    """Whether a folder holds a model of others, and no checkpoint of ours."""
    if not os.path.isdir(source) or complete_checkpoints(source):
        return False
    return any(os.path.exists(os.path.join(source, name)) for name in (read.CONFIG, "modules.json"))


def _digest(source: str) -> str:
    """A name that another model, or another version of it, does not get."""
    path = os.path.realpath(source)
    files = sorted(
        os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names
    )
    if not files:
        raise UserError(f"{source} is empty")
    stats = [(file, (stat := os.stat(file)).st_size, stat.st_mtime_ns) for file in files]
    digest = hashlib.sha256(repr((path, stats)).encode()).hexdigest()[:8]
    return f"{os.path.basename(path)}-{digest}"
