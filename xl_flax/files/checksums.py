"""Checksums of what is stored: `checksums.json` in a folder, one line per file."""

import concurrent.futures
import hashlib
import os
import zlib
from collections.abc import Iterable

BLOCK = 1 << 20


def checksum(path: str | os.PathLike) -> str:
    """The CRC-32 of a file, in eight hexadecimal digits: it finds damage, not forgery."""
    value, block = 0, memoryview(bytearray(BLOCK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            value = zlib.crc32(block[:count], value)
    return f"{value:08x}"


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hex: it names content, as of a module or a vocabulary."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: str | os.PathLike, names: Iterable[str] | None = None) -> dict[str, str]:
    """The checksums of files in a folder and the folders in it, on all cores.

    Args:
      folder: where they are.
      names: paths relative to it; all files by default.

    Returns:
      By relative path, sorted.
    """
    names = sorted(_files(folder) if names is None else names)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # zlib frees the GIL
        values = pool.map(lambda name: checksum(os.path.join(folder, name)), names)
        return dict(zip(names, values, strict=True))


def differences(
    folder: str | os.PathLike, expected: dict[str, str], under: Iterable[str] = ("",)
) -> list[str]:
    """What is wrong with the files of a folder, one line each; files beside them do no harm.

    Args:
      folder: where they are.
      expected: what `checksums` gave when they were written.
      under: folders in it that matter, as in "params/"; others are not read.
    """
    under = tuple(under)
    wanted = {name: value for name, value in expected.items() if name.startswith(under)}
    there = {n for n in wanted if os.path.isfile(os.path.join(folder, n))}
    lines = [f"{os.path.join(folder, n)} is missing" for n in sorted(set(wanted) - there)]
    try:
        now = checksums(folder, there)
    except OSError as error:
        return [*lines, f"{error.filename or folder} cannot be read ({error.strerror})"]
    damaged = [name for name, value in now.items() if value != wanted[name]]
    return lines + [f"{os.path.join(folder, name)} is not what was written" for name in damaged]


def _files(folder: str | os.PathLike) -> list[str]:
    return [
        os.path.relpath(os.path.join(where, name), folder)
        for where, _, names in os.walk(folder)
        for name in names
    ]
