"""A run's folder: its lock and its configurations."""

import contextlib
import os
from collections.abc import Sequence

import gin

from xl_flax.files.lock import locked
from xl_flax.files.read import read_bytes
from xl_flax.files.remote import shown
from xl_flax.files.write import write_atomically

CONFIG_FILE = "config.gin"


def alone(model_dir: str) -> contextlib.AbstractContextManager[None]:
    """Keeps other processes from training the same run at the same time.

    Raises:
      UserError: one is at it, on entering.
    """
    busy = (
        f"another process is training {shown(model_dir)}: wait for it, or choose another MODEL_DIR"
    )
    return locked(model_dir, busy)


def write_config(model_dir: str, step: int) -> str | None:
    """Writes the run's Gin configuration; that of the run as it was stays under another name.

    Args:
      model_dir: the run's folder.
      step: that the run has reached, with the configuration as it was.

    Returns:
      Where that is now, as in "config-0000200.gin"; None if nothing differs or the run is new.
    """
    path, text, kept = os.path.join(model_dir, CONFIG_FILE), gin.config_str(), None
    if step and os.path.lexists(path) and not _says(path, text):
        kept, number = os.path.join(model_dir, f"config-{step:07}.gin"), 1
        while os.path.lexists(kept):
            number += 1
            kept = os.path.join(model_dir, f"config-{step:07}-{number}.gin")
        os.rename(path, kept)
    try:
        write_atomically(path, text)
    except OSError:
        if kept:
            os.rename(kept, path)
        raise
    return kept


def write_info(model_dir: str, name: str, tables: Sequence[str]) -> str:
    """Writes tables to NAME-info.txt in a run's folder; returns its path."""
    path = os.path.join(model_dir, f"{name}-info.txt")
    write_atomically(path, "\n\n".join(tables) + "\n")
    return path


def _says(path: str, text: str) -> bool:
    """Whether a file, if it is one, holds this text."""
    return os.path.isfile(path) and read_bytes(path) == text.encode()
