"""Folders of models: new ones that appear only when all of them is written, and JSON in them."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

from xl_flax.errors import UserError
from xl_flax.files import folders
from xl_flax.files.disk import check_room, naming_full_disk
from xl_flax.files.read import read_json
from xl_flax.files.write import write_atomically

MEND = "fetch it again"


@contextlib.contextmanager
def new_folder(target: str, needed: int) -> Iterator[str]:
    """A folder to write to, which becomes `target` when the block ends without an error.

    Args:
      target: must not exist yet, or be empty.
      needed: bytes that will be written.

    Raises:
      UserError: it holds something, or the disk has not enough room.
    """
    target = os.path.realpath(target)
    if os.path.exists(target) and (not os.path.isdir(target) or folders.entries(target)):
        raise UserError(f"{target} exists already; nothing is overwritten: choose another --target")
    check_room(target, needed, "the model")
    with naming_full_disk(target, "the model", needed), folders.new_folder(target) as partial:
        yield partial


def optional_json(folder: str, name: str) -> dict[str, Any]:
    """The same of a file that need not be there: {}."""
    path = os.path.join(folder, name)
    return read_json(path, MEND) if os.path.exists(path) else {}


def write_json(path: str, content: Any) -> None:
    """Writes a JSON file, in Unicode."""
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False))
