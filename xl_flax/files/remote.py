"""Folders in object stores: addresses gs://BUCKET/PATH and s3://BUCKET/PATH, through fsspec.

Nothing else of the house knows of stores. A remote folder has a *stage*, a local folder below
XL_FLAX_STAGE_DIR whose place follows from the address; everything is read and written there, and
comes from the store and goes to it at a few places (`checkpoints/remote.py` and `remote_run.py`,
`data/remote.py`). A store has no atomic renames and no locks: what is whole is known by an
object that is written last.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import logging
import os
import re
import secrets
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from xl_flax.errors import UserError
from xl_flax.files.disk import check_room, naming_full_disk
from xl_flax.files.read import is_local

T = TypeVar("T")
STAGE_DIR = "XL_FLAX_STAGE_DIR"
DEFAULT_STAGE = os.path.join("~", ".cache", "xl_flax", "stage")
# By scheme the package that reads it, the extra that installs it, and how rights are given.
SCHEMES = {
    "gs": ("gcsfs", "gcs", "the account of `gcloud auth application-default login`, or the host's"),
    "s3": ("s3fs", "s3", "AWS_PROFILE or AWS_ACCESS_KEY_ID, or the role of the host"),
}
FOLDER = "a local path, or an address gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"
WAITS = (1.0, 5.0, 20.0)  # seconds before each further try; the libraries try several times, too
AT_ONCE = 16  # files that are on their way
_of_process: list[str] = []  # the folder of this process's stages, where there are several


class DamagedError(UserError):
    """What a store holds is not what was written to it, or is gone."""


class Entry(NamedTuple):
    """What a store says of an object."""

    size: int
    tag: str  # changes with the content
    md5: str | None  # in hex, where the store says


# ---- Addresses and stages


def is_folder(path: str) -> bool:
    """Whether this is a local path or an address that can be read."""
    return is_local(path) or _parts(path) is not None


def _parts(address: str) -> list[str] | None:
    """Scheme, bucket and folders of an address; None if it is none, or could leave its stage."""
    match = re.fullmatch(r"([a-z0-9]+)://([^/]+(?:/[^/]+)*)/?", address)
    if not match or match[1] not in SCHEMES:
        return None
    parts = match[2].split("/")
    unsafe = any(part in (".", "..") or "\\" in part or "\0" in part for part in parts)
    return None if unsafe else [match[1], *parts]


def own_stages(index: int, count: int) -> None:
    """Gives each of several processes stages of its own: some may be on one machine."""
    _of_process[:] = [f"process-{index}"] if count > 1 else []


def _root() -> str:
    root = os.path.expanduser(os.environ.get(STAGE_DIR) or DEFAULT_STAGE)
    return os.path.join(os.path.abspath(root), *_of_process)


def staged(path: str) -> str:
    """The stage of an address; a local path as it is.

    Raises:
      UserError: an address that cannot be read.
    """
    if is_local(path):
        return path
    parts = _parts(path)
    if parts is None:
        raise UserError(f"{path!r}: must be {FOLDER}")
    return os.path.join(_root(), *parts)


def address(path: str | os.PathLike) -> str | None:
    """The address whose stage holds a path; None of one that is only local."""
    inside = os.path.relpath(os.path.abspath(path), _root())
    scheme, _, rest = inside.partition(os.sep)
    return f"{scheme}://{rest.replace(os.sep, '/')}" if scheme in SCHEMES and rest else None


def shown(path: str | os.PathLike) -> str:
    """A path as its user gave it: the address of a stage."""
    return address(path) or os.fspath(path)


# ---- Objects


def files(where: str) -> dict[str, Entry]:
    """What lies in a remote folder and the folders in it, by names relative to it.

    Raises:
      UserError: the store cannot be read, or a name would leave the stage.
    """
    return _relative(where, _call(where, "read", lambda fs: fs.find(where, detail=True)))


def beside(where: str) -> dict[str, Entry]:
    """As `files`, without the folders in it.

    Raises:
      UserError: the store cannot be read.
    """
    found = _call(where, "read", lambda fs: fs.ls(where, detail=True), missing=[])
    return _relative(where, {info["name"]: info for info in found})


def entry(where: str) -> Entry | None:
    """What the store says of one object; None if there is none.

    Raises:
      UserError: the store cannot be read.
    """
    return _call(where, "read", lambda fs: _entry(fs.info(where)), missing=None)


def folders(pattern: str) -> list[str]:
    """The addresses of remote folders that a pattern matches, as in gs://bucket/runs/*.

    Raises:
      UserError: the store cannot be read, or the pattern is no address.
    """
    staged(pattern)  # refuses other schemes
    if "*" in "/".join(pattern.split("/")[:3]):
        raise UserError(f"{pattern}: the bucket's name must be written out")
    scheme = pattern.partition("://")[0]
    found = _call(pattern, "read", lambda fs: fs.glob(pattern, detail=True), missing={})
    names = [name for name, info in found.items() if info["type"] == "directory"]
    addresses = [f"{scheme}://{name.strip('/')}" for name in names]
    return sorted(each for each in addresses if _parts(each))


def read(where: str) -> bytes | None:
    """The content of an object; None if there is none.

    Raises:
      UserError: the store cannot be read.
    """
    return _call(where, "read", lambda fs: fs.cat_file(where), missing=None)


def write(where: str, content: bytes, again: bool = True) -> None:
    """Writes a small object.

    Args:
      where: its address.
      content: all of it.
      again: whether to try more than once; the libraries do so by themselves, for half a minute.

    Raises:
      UserError: the store cannot be written.
    """
    _call(where, "write", lambda fs: fs.pipe_file(where, content), again=again)


def delete(where: str, names: Iterable[str]) -> None:
    """Deletes objects of a remote folder; those that are gone already are no error.

    Raises:
      UserError: the store cannot be written.
    """
    _each(
        lambda name: _call(where, "write", lambda fs: fs.rm_file(f"{where}/{name}"), missing=None),
        names,
    )


def move(where: str, target: str, names: Iterable[str]) -> None:
    """Moves objects of a remote folder to another one, in the store.

    Raises:
      UserError: the store cannot be written.
    """
    names = list(names)
    _each(
        lambda name: _call(
            where, "write", lambda fs: fs.cp_file(f"{where}/{name}", f"{target}/{name}")
        ),
        names,
    )
    delete(where, names)


def upload(folder: str, where: str, names: Iterable[str]) -> None:
    """Copies files of a local folder to a remote one; what is there is replaced.

    Raises:
      UserError: the store cannot be written.
    """

    def put(name: str) -> None:
        path = os.path.join(folder, name)
        _call(where, "write", lambda fs: fs.put_file(path, f"{where}/{name}"))

    _each(put, names)


def download(where: str, folder: str, entries: Mapping[str, Entry]) -> None:
    """Copies files of a remote folder to a local one; each gets its name when all of it is there.

    Raises:
      DamagedError: what came is not what the store says it has, or it is gone.
      UserError: the store cannot be read, or the disk is full.
    """
    what = f"what comes from {where}"
    check_room(folder, sum(each.size for each in entries.values()), what)

    def get(name: str) -> None:
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        partial = f"{path}.{os.getpid()}.partial"
        try:
            found = _call(
                where, "read", lambda fs: fs.get_file(f"{where}/{name}", partial) or True, False
            )
            if not found or not _is(partial, entries[name]):
                what = "is not what the store says it has" if found else "is gone"
                raise DamagedError(f"{where}/{name} {what}")
            os.replace(partial, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(partial)

    with naming_full_disk(folder, what):
        _each(get, entries)


def try_rights(where: str) -> None:
    """Writes, reads and deletes a small object: what a run would find out hours later.

    Raises:
      UserError: one of these fails.
    """
    name = f".trial-{secrets.token_hex(8)}"
    write(f"{where}/{name}", name.encode(), again=False)
    if read(f"{where}/{name}") != name.encode():
        raise UserError(f"{where}: what was written there cannot be read")
    delete(where, [name])


def _relative(where: str, found: Mapping[str, Any]) -> dict[str, Entry]:
    start = where.partition("://")[2].rstrip("/") + "/"
    entries = {}
    for path, info in found.items():
        name = path.lstrip("/").removeprefix(start)
        if info["type"] != "file" or name.endswith("/") or f"{start}{name}" != path.lstrip("/"):
            continue  # markers of folders, and an object that is called as the folder
        if _parts(f"{where}/{name}") is None:
            raise UserError(f"{where} has an object with the name {name!r}, which is no path")
        entries[name] = _entry(info)
    return entries


def _entry(info: Mapping[str, Any]) -> Entry:
    """From what gcsfs (md5Hash, generation) and s3fs (ETag) say."""
    md5 = b64decode(info["md5Hash"]).hex() if info.get("md5Hash") else None
    tag = str(info.get("generation") or info.get("ETag", "")).strip('"')
    return Entry(int(info["size"]), f"{tag}:{info['size']}", md5)


def _is(path: str, entry: Entry) -> bool:
    if os.path.getsize(path) != entry.size:
        return False
    if entry.md5 is None:
        return True
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == entry.md5


def _each(function: Callable[[str], None], names: Iterable[str]) -> None:
    """Several at once; the first error ends it, and what has not begun."""
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(function, name) for name in names]
        try:
            for each in concurrent.futures.as_completed(running):
                each.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# ---- Calls that fail


_RAISE: Any = object()


def _call(
    where: str, what: str, function: Callable[[Any], T], missing: Any = _RAISE, again: bool = True
) -> T:
    """Calls a function of the file system of an address, again where that may help.

    Args:
      where: the address.
      what: "read" or "write".
      function: of the file system.
      missing: what to return where there is no such object; by default that is an error.
      again: whether to try more than once.

    Raises:
      UserError: it cannot be done.
    """
    fs = _file_system(where.partition("://")[0])
    waits = WAITS if again else ()
    for wait in (*waits, None):
        try:
            return function(fs)
        except Exception as error:
            if getattr(error, "filename", None) is not None:  # of this machine's disk
                raise
            if isinstance(error, FileNotFoundError):
                if missing is not _RAISE:
                    return missing
                bucket = "/".join(where.split("/")[:3])
                raise UserError(f"{where}: there is no bucket {bucket}, or it is gone") from error
            if _denied(error):
                raise UserError(
                    f"{where}: no rights to {what} there ({_line(error)}). Rights are those of "
                    f"{SCHEMES[where.partition('://')[0]][2]}"
                ) from error
            done = "read" if what == "read" else "written"
            if wait is None:
                times = f", tried {len(waits) + 1} times" if waits else ""
                raise UserError(
                    f"{where} cannot be {done}{times} ({_line(error)}): is the network there?"
                ) from error
            print(
                f"{where} is not {done} ({_line(error)}); again in {wait:g} s",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(wait)
    raise AssertionError


def _denied(error: Exception) -> bool:
    code = str(getattr(error, "code", ""))
    names = ("NoCredentialsError", "DefaultCredentialsError", "RefreshError")
    return (
        isinstance(error, PermissionError)
        or code in ("401", "403")
        or type(error).__name__ in names
        or str(error).startswith("Forbidden")
    )


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


@functools.cache
def _file_system(scheme: str) -> Any:
    package, extra, _ = SCHEMES[scheme]
    # The JSON interface of buckets of all kinds; the other one needs gRPC, and seconds to import.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import fsspec

        logging.getLogger(package).setLevel(logging.CRITICAL)  # errors are told by `_call`
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        raise UserError(
            f"{scheme}:// needs {package}, which is not installed: pip install "
            f"'xl-flax[{extra}]', or XL_FLAX_EXTRAS={extra} before a launch script ({error})"
        ) from error
