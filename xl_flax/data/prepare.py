"""Sees to it that rows are cached and fresh before anything reads them."""

import contextlib
import dataclasses
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from xl_flax import stopping
from xl_flax.data.build import TRAIN, can_repack, repack
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache, Manifest, read_manifest, stale
from xl_flax.data.mixtures import Mixture, mixture_changes, read_mixture
from xl_flax.data.remote import fetch_mixtures, fetch_splits, send
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.files import lock
from xl_flax.files.disk import check_room, naming_full_disk
from xl_flax.files.folders import subfolders
from xl_flax.text_table import wrapped


class DatasetSpec(NamedTuple):
    """Rows that something is going to read."""

    mixture: str
    """Name of a mixture or of a task."""
    split: str
    layout: Layout

    def __str__(self) -> str:
        return f"{self.mixture}:{self.split}:{self.layout}"


class CachedMixture(NamedTuple):
    """A mixture whose rows are all cached and fresh."""

    mixture: Mixture
    manifests: dict[str, Manifest]
    """By task."""
    folders: dict[str, Path]
    """Where the rows of each task lie."""


class Caches(Mapping[DatasetSpec, CachedMixture]):
    """The datasets that `prepare` has found or built."""

    def __init__(self, datasets: Mapping[DatasetSpec, CachedMixture]):
        self._datasets = dict(datasets)

    def __getitem__(self, spec: DatasetSpec) -> CachedMixture:
        if spec not in self._datasets:
            raise KeyError(
                f"{spec} was not prepared (there are {', '.join(map(str, self._datasets))}): what "
                "reads it must name it among its `datasets`"
            )
        return self._datasets[spec]

    def __iter__(self) -> Iterator[DatasetSpec]:
        return iter(self._datasets)

    def __len__(self) -> int:
        return len(self._datasets)

    def fingerprints(self) -> dict[str, str]:
        """What names the content of each cache, by its folder's place in the cache."""
        manifests = {
            f"{task}/{spec.split}/{spec.layout}": manifest
            for spec, mixture in self.items()
            for task, manifest in mixture.manifests.items()
        }
        return {
            f"the cache of {place}": hashlib.sha256(repr(manifest).encode()).hexdigest()[:12]
            for place, manifest in manifests.items()
        }


def prepare(
    specs: Iterable[DatasetSpec],
    cache: Cache,
    vocabulary: Vocabulary,
    gin_flags: Sequence[str] = (),
) -> Caches:
    """Checks caches, and builds what is missing or stale in a process of its own.

    Called once, with everything that a process is going to read. Rows of another layout are
    repacked here, without TensorFlow; everything else is left to `python -m xl_flax.cache`, which
    is started with the Gin flags of this run.

    Args:
      specs: what will be read.
      cache: where the rows lie, and whether they may be built.
      vocabulary: of the run.
      gin_flags: the `--gin_file` and `--gin.X` flags that this process was started with.

    Raises:
      UserError: a cache is damaged, or it is missing or stale and must not or cannot be built.
    """
    specs = list(dict.fromkeys(specs))
    caches, missing = _look_or_repack(specs, cache, vocabulary)
    if missing:
        print(wrapped(f"Building the cache: {_reasons(missing)}"), file=sys.stderr, flush=True)
        _run_command(specs, cache, vocabulary, gin_flags)
        _fetch(specs, cache)
        caches, missing = _look(specs, cache, vocabulary)
    if missing:
        raise UserError(f"{_reasons(missing)}, although it has just been cached: try again")
    return caches


def to_build(specs: Iterable[DatasetSpec], cache: Cache, vocabulary: Vocabulary) -> bool:
    """Whether `prepare` would start `python -m xl_flax.cache`; what it would repack is repacked.

    Raises:
      UserError: as `prepare`.
    """
    return bool(_look_or_repack(list(dict.fromkeys(specs)), cache, vocabulary)[1])


def build_share(
    specs: Iterable[DatasetSpec],
    cache: Cache,
    vocabulary: Vocabulary,
    gin_flags: Sequence[str],
    share: tuple[int, int],
) -> None:
    """Builds one of n shares of what is missing, for `prepare` to find; see there.

    Args:
      specs: what will be read, as of the other arguments the same for all shares.
      cache: where the rows lie; `locked` by whoever starts the shares.
      vocabulary: of the run.
      gin_flags: of this run.
      share: its number, from 0, and n.
    """
    number, count = share
    flags = [*gin_flags, f"--share={number}/{count}"]
    _run_command(list(dict.fromkeys(specs)), cache, vocabulary, flags)


def lacking(specs: Iterable[DatasetSpec], cache: Cache, vocabulary: Vocabulary) -> str:
    """Which caches `prepare` would build, as a sentence; "" if none.

    Raises:
      UserError: a cache is damaged.
    """
    specs = list(dict.fromkeys(specs))
    _fetch(specs, cache)
    missing = _look(specs, cache, vocabulary)[1]
    return _reasons(missing) if missing else ""


@contextlib.contextmanager
def locked(cache: Cache) -> Iterator[None]:
    """Keeps other processes from building in the same folder.

    Raises:
      UserError: the folder cannot be written.
    """
    folder = cache.directory
    with lock.locked(folder, f"Waiting for another process to build {folder}", wait=True):
        yield


@contextlib.contextmanager
def room_for(cache: Cache, what: str, needed: int) -> Iterator[None]:
    """Says in one line that a cache does not fit on its disk, before or while it is written.

    Args:
      cache: where to.
      what: is written.
      needed: about so many bytes.
    """
    check_room(cache.directory, needed, what)
    with naming_full_disk(cache.directory, what, needed):
        yield


def _look_or_repack(
    specs: Sequence[DatasetSpec], cache: Cache, vocabulary: Vocabulary
) -> tuple[Caches, dict[str, list[str]]]:
    """As `_look`, after rows of other layouts were repacked."""
    _fetch(specs, cache)
    caches, missing = _look(specs, cache, vocabulary)
    if missing and cache.on_missing == "stop":
        raise UserError(
            f"{_reasons(missing)}. Run `python -m xl_flax.cache` with the Gin flags of this run, or"
            " set Cache.on_missing = 'build'"
        )
    if missing:
        with locked(cache):
            for spec in specs:
                _repack(spec, cache, vocabulary)
        send(cache.directory)
        caches, missing = _look(specs, cache, vocabulary)
    return caches, missing


def _fetch(specs: Sequence[DatasetSpec], cache: Cache) -> None:
    """Brings what is remote of the rows that will be read to its stage."""
    fetch_mixtures(cache.directory, [spec.mixture for spec in specs])
    for spec in specs:
        if mixture := read_mixture(cache, spec.mixture, spec.split):
            splits = [(task, spec.split, spec.layout) for task in mixture.rates]
            fetch_splits(cache.directory, splits)


def _look(
    specs: Sequence[DatasetSpec], cache: Cache, vocabulary: Vocabulary
) -> tuple[Caches, dict[str, list[str]]]:
    """What is ready, and why the rest is not: reasons by culprit."""
    datasets, lacking = {}, {}
    for spec in specs:
        mixture = read_mixture(cache, spec.mixture, spec.split)
        if mixture is None:
            lacking[f"{spec.mixture} ({spec.split})"] = ["not cached"]
            continue
        folders = {t: cache.folder(t, spec.split, spec.layout) for t in mixture.rates}
        manifests = {task: read_manifest(folder) for task, folder in folders.items()}
        reasons = {t: _problems(manifest, cache, vocabulary) for t, manifest in manifests.items()}
        if not any(reasons.values()):
            offered = {task: manifest.offered for task, manifest in manifests.items()}
            left_out = cache.filter.exclude_languages if spec.split == TRAIN else ()
            reasons[spec.mixture] = mixture_changes(mixture, offered, left_out)
        where = f"({spec.split}, length {spec.layout})"
        lacking |= {f"{name} {where}": why for name, why in reasons.items() if why}
        datasets[spec] = CachedMixture(mixture, manifests, folders)
    return Caches(datasets), lacking


def _problems(manifest: Manifest | None, cache: Cache, vocabulary: Vocabulary) -> list[str]:
    if manifest is None:
        return ["not cached"]
    return stale(manifest, vocabulary.fingerprint, cache.filter)


def _reasons(lacking: dict[str, list[str]]) -> str:
    lines = [f"{culprit}: {', '.join(reasons)}" for culprit, reasons in lacking.items()]
    more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
    return "the cache is missing or stale: " + "; ".join(lines[:5]) + more


def _repack(spec: DatasetSpec, cache: Cache, vocabulary: Vocabulary) -> None:
    """Makes what is missing from fresh rows of another layout, where there are any."""
    mixture = read_mixture(cache, spec.mixture, spec.split)
    for task in mixture.rates if mixture else ():
        folder = cache.folder(task, spec.split, spec.layout)
        if not _problems(read_manifest(folder), cache, vocabulary):
            continue
        names = [name for name in subfolders(folder.parent) if name[0].isdecimal()]
        others = [folder.parent / name for name in names if name != folder.name]
        manifests = filter(None, map(read_manifest, others))
        for other in sorted(manifests, key=lambda m: m.layout.length, reverse=True):
            if can_repack(other, spec.layout) and not _problems(other, cache, vocabulary):
                print(
                    f"Repacking {task} ({spec.split}) from {other.layout} to {spec.layout} tokens"
                )
                needed = sum(shard.bytes for shard in other.shards)
                with room_for(cache, f"the cache of {task} ({spec.split})", needed):
                    repack(task, spec.split, cache, other.layout, spec.layout, vocabulary)
                break


def _run_command(
    specs: Sequence[DatasetSpec], cache: Cache, vocabulary: Vocabulary, gin_flags: Sequence[str]
) -> None:
    """Runs the cache command for these datasets and shows what it prints.

    Raises:
      UserError: with the command's own message if it fails.
    """
    command = [
        *(sys.executable, "-m", "xl_flax.cache", *gin_flags),
        f"--gin.Cache.directory={str(cache.directory)!r}",
        f"--gin.Cache.task_modules={list(cache.task_modules)!r}",
        f"--gin.run_vocabulary.path={os.path.abspath(vocabulary.path)!r}",
        *(f"--gin.Filter.{k}={v!r}" for k, v in dataclasses.asdict(cache.filter).items()),
        *(f"--dataset={spec}" for spec in specs),
    ]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",  # it must not take the accelerator from this process
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, encoding="utf-8", errors="replace"
    )
    said = "see above"
    with stopping.child(process):
        for line in process.stderr:
            if line.startswith("error: "):  # becomes this process's own
                said = line.removeprefix("error: ").strip()
            elif line.strip() != stopping.LINE:
                print(line, end="", file=sys.stderr, flush=True)
        code = process.wait()
    if code == stopping.CODE:  # the whole job was asked
        raise stopping.Stopped
    if code:
        raise UserError(f"building the cache failed: {said}")
