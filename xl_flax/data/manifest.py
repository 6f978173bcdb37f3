"""Where cached splits lie, what their manifests say, and whether they can be used."""

import dataclasses
import hashlib
import json
import zipfile
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
from xl_flax.data.records import OVERWRITE, REBUILD, Shard, check_shards
from xl_flax.errors import UserError
from xl_flax.files.write import write_atomically
from xl_flax.settings import LocalPath, Name, Settings

FORMAT = 3

TaskModules = Annotated[Sequence[Name], doc("a list of module names, as in ['tasks.text']")]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Cache(Settings):
    """The folder of packed rows, and what they are made from."""

    directory: LocalPath = gin.REQUIRED
    task_modules: TaskModules = gin.REQUIRED
    """Modules that define the tasks; imported by the cache command only."""
    on_missing: Literal["build", "stop"] = "build"
    """What training does if rows are missing or stale: "build" them first, or "stop"."""
    filter: Filter = dataclasses.field(default_factory=Filter)
    """What is left out of train splits."""

    def folder(self, task: str, split: str, layout: Layout) -> Path:
        """Where the rows of one task, split and layout lie."""
        return Path(self.directory) / task / split / str(layout)


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
    tokens: int
    """Tokens in the rows, special tokens included, padding excluded."""
    rows: int
    vocab_size: int
    repacked_from: str | None
    """The layout of the rows that these were made from, None if made from the source."""
    features: dict[str, FeatureSpec]
    """Declared by the task, besides tokens and language, by name."""
    shards: tuple[Shard, ...]
    fingerprint: Fingerprint

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


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes an object with its own checksum, atomically."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    value = value | {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    write_atomically(path, json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1))


def read_json(path: Path) -> dict[str, Any]:
    """Reads what `write_json` wrote.

    Raises:
      UserError: the file is damaged, or was written by another version of the format.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        value = dict(value)
        written = value.pop("sha256")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"cache file {path} is damaged: {REBUILD}") from error
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    if hashlib.sha256(text.encode()).hexdigest() != written:
        raise UserError(f"cache file {path} is damaged: {REBUILD}")
    return value


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Completes a cached split."""
    write_json(folder / "manifest.json", {"format": FORMAT} | dataclasses.asdict(manifest))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a complete split, None if there is none or its format is another one.

    Raises:
      UserError: the split is damaged: a file is missing, truncated or inconsistent.
    """
    path = folder / "manifest.json"
    if not path.exists():
        return None
    value = read_json(path)
    if value.pop("format") != FORMAT:
        return None
    value["languages"] = tuple(value["languages"])
    value["layout"] = Layout(**value["layout"])
    value["features"] = from_json(value["features"])
    value["shards"] = tuple(Shard(**shard) for shard in value["shards"])
    manifest = Manifest(**value)
    if sum(s.rows for s in manifest.shards) != manifest.rows:
        raise UserError(f"cache file {path}: its shards do not add up to its rows: {REBUILD}")
    check_shards(folder, manifest.shards)
    return manifest


def stale(manifest: Manifest, vocabulary_sha256: str, rules: Filter) -> list[str]:
    """What has changed since a split was cached, seen without importing its task."""
    settings = rules.settings(manifest.split, manifest.translations)
    now = observe(manifest.fingerprint, vocabulary_sha256, settings)
    return changes(manifest.fingerprint, now)


def read_unigrams(folder: Path, text: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32[k], ascending, and how often each stands in a text of the rows, int64[k]."""
    try:
        with np.load(folder / "unigrams.npz") as file:
            ids, counts = file["ids"], file["counts"][text]
            return ids[counts > 0], counts[counts > 0]
    except (OSError, IndexError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"cache file {folder / 'unigrams.npz'} is damaged: {OVERWRITE}") from error
