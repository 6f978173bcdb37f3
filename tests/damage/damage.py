"""What can happen to a file or folder: one kind of damage at a time."""

import os
import random
import shutil

FILE_KINDS = ("flip", "truncate", "delete", "duplicate", "swap", "empty", "append", "folder")
FOLDER_KINDS = ("delete", "duplicate", "swap", "empty")


def damage(kind: str, path: str, rng: random.Random) -> str | None:
    """Damages one file or folder.

    Args:
      kind: of FILE_KINDS or FOLDER_KINDS.
      path: of the file or folder.
      rng: chooses the details.

    Returns:
      What was done, for people, or None if nothing changed.
    """
    if os.path.isdir(path):
        return _damage_folder(kind, path, rng)
    with open(path, "rb") as file:
        content = file.read()
    changed, said = content, kind
    if kind == "flip" and content:
        at, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
        changed = content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
        said = f"flip bit {bit} of byte {at}"
    elif kind == "truncate":
        said = f"truncate to {(size := rng.randrange(len(content) or 1))}"
        changed = content[:size]
    elif kind == "empty":
        changed = b""
    elif kind == "append":
        more = rng.choice([b"\n", b"{}\n", b"\0" * 16, rng.randbytes(100), content[:200], b"[1]\n"])
        changed, said = content + more, f"append {more[:20]!r}"
    elif kind == "delete":
        os.remove(path)
        return said
    elif kind == "duplicate":
        shutil.copy2(path, other := _another_name(path, rng))
        return f"duplicate as {os.path.basename(other)}"
    elif kind == "folder":
        os.remove(path)
        os.mkdir(path)
        return "replace by a folder"
    elif kind == "swap":
        return _swap(path, rng)
    if changed == content:
        return None
    status = os.stat(path)
    with open(path, "wb") as file:
        file.write(changed)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # damage leaves no date
    return said


def _damage_folder(kind: str, path: str, rng: random.Random) -> str | None:
    if kind == "delete":
        shutil.rmtree(path)
        return kind
    if kind == "empty":
        shutil.rmtree(path)
        os.mkdir(path)
        return kind
    if kind == "duplicate":
        shutil.copytree(path, other := _another_name(path, rng))
        return f"duplicate as {os.path.basename(other)}"
    return _swap(path, rng)


def _swap(path: str, rng: random.Random) -> str | None:
    """Exchanges two files, or two folders, that lie beside each other."""
    parent = os.path.dirname(path)
    others = [
        other
        for name in sorted(os.listdir(parent))
        if (other := os.path.join(parent, name)) != path
        and os.path.isdir(other) == os.path.isdir(path)
    ]
    if not others:
        return None
    other = rng.choice(others)
    if os.path.isfile(path) and _content(path) == _content(other):
        return None
    os.rename(path, f"{path}.swapped")
    os.rename(other, path)
    os.rename(f"{path}.swapped", other)
    return f"swap with {os.path.basename(other)}"


def _another_name(path: str, rng: random.Random) -> str:
    parent, name = os.path.split(path)
    if name.isdigit():  # a checkpoint under the number of another step
        return os.path.join(parent, rng.choice(["3", "7", "1000", f"{name} (copy)", f"{name}.bak"]))
    stem, suffix = os.path.splitext(name)
    return os.path.join(parent, rng.choice([f"{stem} (copy){suffix}", f"{name}.bak", f"{name}~"]))


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
