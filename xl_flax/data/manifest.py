"""Where cached splits lie, what their manifests say, and whether they can be used."""

import dataclasses
import hashlib
import io
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import gin
import numpy as np
from annotated_types import doc

from xl_flax.data.features import FeatureSpec, from_json
from xl_flax.data.filtering import Filter, are_translations
from xl_flax.data.fingerprint import Fingerprint, changes, observe
from xl_flax.data.layout import Layout
from xl_flax.data.records import OVERWRITE, REBUILD, UNIGRAMS, Shard, check_shards
from xl_flax.data.remote import fetch_manifests
from xl_flax.errors import UserError
from xl_flax.files import read
from xl_flax.files.checksums import checksum
from xl_flax.files.write import write_atomically
from xl_flax.settings import Folder, Name, Settings

FORMAT = 4

TaskModules = Annotated[Sequence[Name], doc("a list of module names, as in ['tasks.text']")]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Cache(Settings):
    """The folder of packed rows, and what they are made from."""

    directory: Folder = gin.REQUIRED
    task_modules: TaskModules = gin.REQUIRED
    """Modules that define the tasks; imported by the cache command only."""
    on_missing: Literal["build", "stop"] = "build"
    """What training does if rows are missing or stale: "build" them first, or "stop"."""
    filter: Filter = dataclasses.field(default_factory=Filter)
    """What is left out of train splits."""

    def __post_init__(self):
        super().__post_init__()
        self.stage("directory")

    def folder(self, task: str, split: str, layout: Layout) -> Path:
        """Where the rows of one task, split and layout lie."""
        return Path(self.directory) / task / split / str(layout)

    def of_vocabulary(self, fingerprint: str) -> "Cache":
        """This folder, or one in it where it holds rows of another vocabulary.

        So that the rows of one are not replaced by those of the other, as often as they take turns.
        """
        paths = fetch_manifests(self.directory).glob("*/*/*/manifest.json")
        there = (value["fingerprint"]["vocabulary"] for value in map(read_json, paths) if value)
        first = next(there, fingerprint)
        if fingerprint == first or fingerprint in there:
            return self
        own = os.path.join(self.directory, f"vocabulary-{fingerprint[:12]}")
        return dataclasses.replace(self, directory=own)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a cached split holds. Written last: without it a split is not complete."""

    task: str
    split: str
    layout: Layout
    languages: tuple[str, ...]
    """Of each text of an example."""
    examples_per_row: int
    """Examples, or pieces of one, that a row holds at most; 0 for packed text of one language
    without features, where the number is not bounded."""
    examples: int
    """Examples in the rows."""
    empty: int
    """Examples of one text without tokens: dropped from the train split, kept as [CLS] [SEP]
    elsewhere."""
    dropped: dict[str, int]
    """Examples left out, by the reason: "empty text" (of several texts), "length ratio",
    "excluded", "duplicate" or "too long" (for a row)."""
    cut: int
    """Examples longer than a row, stored in pieces or windows."""
    truncated: int
    """Examples longer than a row that lost the ends of their texts."""
    longest: int
    """Tokens of the longest example, special tokens included."""
    tokens: int
    """Tokens in the rows, special tokens included, padding excluded."""
    unknown: tuple[int, ...]
    """How many of them are unknown pieces, in each text of an example."""
    known: tuple[int, ...]
    """How many are other pieces of the vocabulary, none of them special."""
    rows: int
    vocab_size: int
    repacked_from: str | None
    """The layout of the rows that these were made from, None if made from the source."""
    features: dict[str, FeatureSpec]
    """Declared by the task, besides tokens and language, by name."""
    shards: tuple[Shard, ...]
    unigrams: str
    """The checksum of the file that `write_unigrams` wrote."""
    fingerprint: Fingerprint

    @property
    def mark(self) -> int:
        """What the checksums of its rows begin with, see `records`."""
        return make_mark(self.task, self.split, self.layout, self.fingerprint)

    @property
    def num_texts(self) -> int:
        """Texts in an example."""
        return len(self.languages)

    @property
    def translations(self) -> bool:
        """Whether the texts of an example say the same in different languages."""
        return are_translations(self.languages, self.features)

    @property
    def lossless(self) -> bool:
        """Whether every example can be made whole again from the rows."""
        spans = any(spec.kind == "span" for spec in self.features.values())
        return not (self.dropped.get("too long") or self.truncated or (self.cut and spans))

    @property
    def offered(self) -> int:
        """Examples, with those too long for a row: a number that is the same in every layout."""
        return self.examples + self.dropped.get("too long", 0)

    @property
    def fill(self) -> float:
        """Share of the rows that is not padding."""
        return self.tokens / (self.rows * self.layout.length)


def make_mark(task: str, split: str, layout: Layout, fingerprint: Fingerprint) -> int:
    """A number below 2^32 that follows from what the rows of a split are and are made from."""
    text = json.dumps([task, split, str(layout), fingerprint], sort_keys=True)
    return zlib.crc32(text.encode())


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes an object with its own checksum, atomically."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    value = value | {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    write_atomically(path, json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1))


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads what `write_json` wrote; None if it is another version's.

    Raises:
      UserError: the file is damaged.
    """
    value = read.read_json(path, REBUILD)
    written = value.pop("sha256", None)
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    if hashlib.sha256(text.encode()).hexdigest() != written:
        raise UserError(f"{path} is damaged (its checksum does not fit): {REBUILD}")
    return value if value.pop("format", None) == FORMAT else None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Completes a cached split."""
    write_json(folder / "manifest.json", {"format": FORMAT} | dataclasses.asdict(manifest))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a complete split, None if there is none or its format is another one.

    Raises:
      UserError: the split is damaged: a file is missing, truncated, inconsistent or another
        split's.
    """
    path = folder / "manifest.json"
    value = read_json(path) if os.path.lexists(path) else None
    if value is None:
        return None
    try:
        manifest = _from_json(value)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged (it is no manifest): {REBUILD}") from error
    if folder.parts[-3:] != (manifest.task, manifest.split, str(manifest.layout)):
        whose = f"{manifest.task}/{manifest.split}/{manifest.layout}"
        raise UserError(f"{path} is that of {whose}: {REBUILD}")
    if sum(s.rows for s in manifest.shards) != manifest.rows:
        raise UserError(f"cache file {path}: its shards do not add up to its rows: {REBUILD}")
    check_shards(folder, manifest.shards)
    return manifest


def _from_json(value: dict[str, Any]) -> Manifest:
    tuples = {key: tuple(value[key]) for key in ("languages", "unknown", "known")}
    return Manifest(
        **value
        | tuples
        | {
            "layout": Layout(**value["layout"]),
            "features": from_json(value["features"]),
            "shards": tuple(Shard(**shard) for shard in value["shards"]),
        }
    )


def stale(manifest: Manifest, vocabulary_sha256: str, rules: Filter) -> list[str]:
    """What has changed since a split was cached, seen without importing its task."""
    settings = rules.settings(manifest.split, manifest.translations)
    now = observe(manifest.fingerprint, vocabulary_sha256, settings)
    return changes(manifest.fingerprint, now)


def write_unigrams(folder: Path, counts: np.ndarray) -> str:
    """Stores how often each token id stands in each text, int64[texts, size].

    Returns:
      The file's checksum.
    """
    ids = np.flatnonzero(counts.any(axis=0))
    content = io.BytesIO()
    np.savez(content, ids=ids.astype(np.int32), counts=counts[:, ids])
    write_atomically(folder / UNIGRAMS, content.getvalue())
    return checksum(folder / UNIGRAMS)


def read_unigrams(folder: Path, manifest: Manifest, text: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32[k], ascending, and how often each stands in a text of the rows, int64[k].

    Raises:
      UserError: the file is missing or is not what was written.
    """
    path = folder / UNIGRAMS
    read.check_regular(path, OVERWRITE)
    if checksum(path) != manifest.unigrams:
        raise UserError(f"cache file {path} is damaged: {OVERWRITE}")
    with np.load(path) as file:
        ids, counts = file["ids"], file["counts"][text]
        return ids[counts > 0], counts[counts > 0]
