"""Remote caches: what a run reads of them comes to their stages.

A cached split goes up with its manifest last, after the older one is deleted, so that what a cut
upload leaves is no split; it comes down into a folder of its own, which gets its name when all
files are there. Shards are compared with the sizes in the manifest, and each row with its own
checksum when it is read.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from xl_flax.data.layout import Layout
from xl_flax.data.records import REBUILD, UNIGRAMS
from xl_flax.errors import UserError
from xl_flax.files import remote
from xl_flax.files.folders import new_folder, remove
from xl_flax.files.mirror import Mirror, alone
from xl_flax.files.read import read_bytes
from xl_flax.files.write import write_atomically

MANIFEST = "manifest.json"
SENT = ".sent"  # in a split's folder: the SHA-256 of the manifest that the store has, too
MANIFESTS = ".manifests"  # in the stage of a cache: those of splits that are not read
TOGETHER = ("mixtures", "tables")  # folders with small files that belong to several splits

Split = tuple[str, str, Layout]  # task, split, layout


def fetch_mixtures(directory: str, names: Iterable[str]) -> None:
    """Fetches what a cache says of some mixtures; nothing of a local one.

    Raises:
      UserError: the store cannot be read.
    """
    if remote.address(directory) is None:
        return
    with alone(directory):
        mirror = _together(directory)
        there = {
            f"mixtures/{name}.json": remote.entry(f"{mirror.where}/mixtures/{name}.json")
            for name in sorted(set(names))
        }
        mirror.pull(there, ours=True)


def fetch_splits(directory: str, splits: Iterable[Split]) -> None:
    """Fetches cached splits; what is here and right stays, and so does what was built here.

    Of a split that the store lacks in this layout, others come, from which it can be made.

    Raises:
      UserError: the store cannot be read, or what it has is not whole.
    """
    if remote.address(directory) is None:
        return
    with alone(directory):
        for task, split, layout in splits:
            folder = Path(directory, task, split, str(layout))
            if not _fetch_split(folder) and not (folder / MANIFEST).exists():
                for other in _others(folder):
                    _fetch_split(folder.parent / other)


def fetch_manifests(directory: str) -> Path:
    """Where all manifests of a cache lie, in folders as those of the splits."""
    where = remote.address(directory)
    if where is None:
        return Path(directory)
    folder = os.path.join(directory, MANIFESTS)
    with alone(directory):
        there = remote.files(where)
        there = {n: e for n, e in there.items() if n.endswith(MANIFEST) and n.count("/") == 3}
        remove(folder)
        remote.download(where, folder, there)
    return Path(folder)


def send(directory: str) -> None:
    """Uploads what was built in the stage of a cache and is not in its store yet.

    Raises:
      UserError: the store cannot be written.
    """
    where = remote.address(directory)
    if where is None:
        return
    with alone(directory):
        for path in sorted(Path(directory).glob(f"[!.]*/*/*/{MANIFEST}")):
            folder = path.parent
            content = read_bytes(path)
            if _sent(folder) == _sha256(content):
                continue
            target = remote.address(folder)
            print(f"uploading {target}", file=sys.stderr, flush=True)
            remote.delete(target, [MANIFEST])
            names = [n for n in os.listdir(folder) if n not in (MANIFEST, SENT)]
            remote.upload(str(folder), target, names)
            remote.upload(str(folder), target, [MANIFEST])
            remote.delete(target, remote.files(target).keys() - {*names, MANIFEST})
            write_atomically(folder / SENT, _sha256(content))
        _together(directory).push()


def _fetch_split(folder: Path) -> bool:
    """Makes a split what it is in the store; False if that has none."""
    where = remote.address(folder)
    here = read_bytes(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    if here is not None and _sent(folder) != _sha256(here):
        return True  # built here: it was missing there, or stale
    content = remote.read(f"{where}/{MANIFEST}")
    if content is None:
        return False
    there = remote.files(where)
    wanted = {name: there.get(name) for name in _files(content, where)}
    if lacking := sorted(name for name, entry in wanted.items() if entry is None):
        raise UserError(f"{where}/{lacking[0]} is missing: {REBUILD}")
    if here == content and not _missing(folder, wanted):
        return True
    arriving = f"{folder.parent / f'.{folder.name}.arriving'}-{_sha256(content)[:12]}"
    missing = _missing(Path(arriving), wanted)
    size = sum(entry.size for entry in missing.values())
    print(f"fetching {where} ({size / 1e6:,.1f} MB)", file=sys.stderr, flush=True)
    remote.download(where, arriving, missing)
    with new_folder(folder) as new:
        for name in wanted:
            os.rename(os.path.join(arriving, name), os.path.join(new, name))
        write_atomically(os.path.join(new, MANIFEST), content)
        write_atomically(os.path.join(new, SENT), _sha256(content))
    remove(arriving)
    return True


def _files(manifest: bytes, where: str) -> list[str]:
    """The files of a split, beside its manifest; whether that is right is seen when it is read."""
    try:
        names = [shard["name"] for shard in json.loads(manifest)["shards"]] + [UNIGRAMS]
        if any(os.path.basename(name) != name for name in names):
            raise ValueError("a file that is elsewhere")
        return names
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}/{MANIFEST} is damaged ({error}): {REBUILD}") from None


def _missing(folder: Path, wanted: Mapping[str, remote.Entry]) -> dict[str, remote.Entry]:
    return {
        name: entry
        for name, entry in wanted.items()
        if not (folder / name).is_file() or (folder / name).stat().st_size != entry.size
    }


def _others(folder: Path) -> list[str]:
    """Layouts of the same split that the store has."""
    names = {n.partition("/")[0] for n in remote.files(remote.address(folder.parent))}
    return sorted(name for name in names if name[:1].isdecimal() and name != folder.name)


def _sent(folder: Path) -> str | None:
    with contextlib.suppress(FileNotFoundError):
        return (folder / SENT).read_text().strip()
    return None


def _together(directory: str) -> Mirror:
    def names() -> Iterator[str]:
        for folder in TOGETHER:
            for path in sorted(Path(directory, folder).glob("*")):
                if path.is_file() and not path.name.startswith("."):
                    yield f"{folder}/{path.name}"

    return Mirror(directory, names)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
