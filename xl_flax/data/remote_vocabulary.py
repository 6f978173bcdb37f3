"""Remote vocabularies: single files that come to their stages."""

import contextlib
import os
from collections.abc import Iterator

from xl_flax.files import remote
from xl_flax.files.mirror import Mirror, alone


@contextlib.contextmanager
def vocabulary_there(*paths: str) -> Iterator[None]:
    """A block that reads files of a vocabulary, and may write them: they go up when it ends.

    Args:
      paths: of one folder; nothing is done where it is not the stage of an address.

    Raises:
      UserError: the store cannot be read or written.
    """
    folder, names = os.path.dirname(os.path.abspath(paths[0])), list(map(os.path.basename, paths))
    if remote.address(folder) is None:
        yield
        return
    index = f".{names[0]}.remote.json"
    mirror = Mirror(
        folder, lambda: [n for n in names if os.path.isfile(os.path.join(folder, n))], index
    )
    with alone(folder):
        there = {name: remote.entry(f"{mirror.where}/{name}") for name in names}
        mirror.pull(there, ours=False)
    yield
    with alone(folder):
        mirror.push()


def fetch_vocabulary(path: str) -> None:
    """Makes a vocabulary what it is in its store; one that is only here goes there.

    Raises:
      UserError: the store cannot be read.
    """
    if not os.path.exists(os.path.join(os.path.dirname(path), os.pardir, "checksums.json")):
        with vocabulary_there(path):  # else it came with a checkpoint, which has checksums of it
            pass
