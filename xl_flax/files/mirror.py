"""Small files that a local folder and a remote one have in common, as the logs of a run.

`.remote.json` in the local folder keeps what each file was like when both sides were last the
same. So a file that has changed on one side only is copied to the other, in whatever order
machines come and go, and what an upload that failed has left behind goes up with the next one.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping

from xl_flax.errors import UserError
from xl_flax.files import remote
from xl_flax.files.checksums import checksum
from xl_flax.files.folders import remove, set_aside
from xl_flax.files.lock import locked
from xl_flax.files.read import read_bytes, read_json
from xl_flax.files.write import write_atomically

INDEX, ARRIVING, ASIDE = ".remote.json", ".arriving", "set_aside"


class Mirror:
    """The files of one folder that go to and fro."""

    def __init__(self, folder: str, local: Callable[[], Iterable[str]], index: str = INDEX) -> None:
        """Reads what is known of the folder.

        Args:
          folder: a stage.
          local: the names of those of its files that are meant, relative to it.
          index: the name of the file that keeps what they were like.
        """
        self.folder, self.where = folder, remote.address(folder)
        self._local = local
        self._index: dict[str, list[str]] = {}  # name → checksum here, tag there
        self._seen: dict[str, tuple[int, int]] = {}  # name → what `os.stat` said when it was equal
        self._index_path = os.path.join(folder, index)
        if os.path.lexists(self._index_path):
            self._index = read_json(self._index_path, "delete it")

    def pull(self, there: Mapping[str, remote.Entry | None], ours: bool) -> None:
        """Fetches what is new or has changed in the store.

        Args:
          there: the objects that are meant, by name; None of what the store has not, or not any
            more: that goes up again.
          ours: whether of a file that has changed on both sides the local one counts. Lines of a
            `results.jsonl` count on both sides; what does not count is in `set_aside/`.

        Raises:
          UserError: the store cannot be read.
        """
        gone = {name for name, entry in there.items() if entry is None}
        self._index = {name: was for name, was in self._index.items() if name not in gone}
        here = {name: checksum(self._path(name)) for name in self._local()}
        new = {
            name: entry
            for name, entry in there.items()
            if entry
            if name not in here or self._index.get(name, ["", ""])[1] != entry.tag
        }
        arriving = os.path.join(self.folder, ARRIVING)
        remote.download(self.where, arriving, new)
        for name, entry in new.items():
            self._take(name, os.path.join(arriving, name), entry, here.get(name), ours)
        remove(arriving)
        self._write_index()

    def push(self) -> None:
        """Uploads what has changed here.

        Raises:
          UserError: the store cannot be written.
        """
        changed = {}
        for name in self._local():
            path = self._path(name)
            stat = os.stat(path)
            state = stat.st_size, stat.st_mtime_ns
            if self._seen.get(name) == state:
                continue
            value = checksum(path)
            if self._index.get(name, [""])[0] != value:
                changed[name] = value
            self._seen[name] = state
        try:
            remote.upload(self.folder, self.where, changed)
            for name, value in changed.items():
                entry = remote.entry(f"{self.where}/{name}")
                self._index[name] = [value, entry.tag if entry else ""]
        except UserError:
            for name in changed:
                self._seen.pop(name, None)
            raise
        if changed:
            self._write_index()

    def _take(
        self, name: str, arrived: str, entry: remote.Entry, mine: str | None, ours: bool
    ) -> None:
        """Puts a file that came from the store where it belongs."""
        theirs, path = checksum(arrived), self._path(name)
        if mine not in (None, theirs, self._index.get(name, [""])[0]):  # changed here, too
            if os.path.basename(name) == "results.jsonl":
                lines = read_bytes(path).splitlines(True)
                more = [line for line in read_bytes(arrived).splitlines(True) if line not in lines]
                write_atomically(path, b"".join([*lines, *more]))
                os.remove(arrived)
                self._index[name] = [theirs, entry.tag]  # what is here goes up again
                return
            loser = arrived if ours else path
            set_aside(loser, os.path.join(self.folder, ASIDE))
            if ours:
                self._index[name] = [theirs, entry.tag]
                return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.replace(arrived, path)
        self._index[name] = [theirs, entry.tag]

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _write_index(self) -> None:
        write_atomically(self._index_path, json.dumps(self._index, indent=1, sort_keys=True))


def alone(folder: str) -> contextlib.AbstractContextManager[None]:
    """Keeps other processes of this machine from fetching to the same folder; waits for them.

    Args:
      folder: a stage.
    """
    busy = f"waiting for another process that fetches {remote.address(folder)}"
    return locked(folder, busy, wait=True, name=".remote.lock")
