"""Sees to it that rows are cached and fresh before anything reads them."""

import contextlib
import dataclasses
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from xl_flax.data.build import TRAIN, repack
from xl_flax.data.manifest import Cache, Manifest, read_manifest, stale
from xl_flax.data.mixtures import Mixture, mixture_changes, read_mixture
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError


class DatasetSpec(NamedTuple):
    """Rows that something is going to read."""

    mixture: str
    """Name of a mixture or of a task."""
    split: str
    length: int


class CachedMixture(NamedTuple):
    """A mixture whose rows are all cached and fresh."""

    mixture: Mixture
    manifests: dict[str, Manifest]


def prepare(
    needs: Sequence[DatasetSpec],
    cache: Cache,
    vocabulary: Vocabulary,
    gin_flags: Sequence[str] = (),
) -> list[CachedMixture]:
    """Checks caches, and builds what is missing or stale in a process of its own.

    Rows of another length are repacked here, without TensorFlow; everything else is left to
    `python -m xl_flax.cache`, which is started with the Gin flags of this run.

    Args:
      needs: everything that will be read; it is cheapest to name all of it at once.
      cache: where the rows lie, and whether they may be built.
      vocabulary: of the run.
      gin_flags: the `--gin_file` and `--gin.X` flags that this process was started with.

    Returns:
      One entry per need.

    Raises:
      UserError: a cache is damaged, or it is missing or stale and must not or cannot be built.
    """
    ready, lacking = _look(needs, cache, vocabulary)
    if lacking and cache.on_missing == "stop":
        raise UserError(
            f"{_reasons(lacking)}. Run `python -m xl_flax.cache` with the Gin flags of this run, or"
            " set Cache.on_missing = 'build'"
        )
    if lacking:
        with locked(cache):
            for need in needs:
                _repack(need, cache, vocabulary)
        ready, lacking = _look(needs, cache, vocabulary)
    if lacking:
        print(f"Building the cache: {_reasons(lacking)}", file=sys.stderr, flush=True)
        _run_command(needs, cache, vocabulary, gin_flags)
        ready, lacking = _look(needs, cache, vocabulary)
    if lacking:
        raise UserError(f"{_reasons(lacking)}, although it has just been cached: try again")
    return ready


@contextlib.contextmanager
def locked(cache: Cache) -> Iterator[None]:
    """Keeps other processes from building in the same folder at the same time."""
    try:
        os.makedirs(cache.directory, exist_ok=True)
        file = open(Path(cache.directory) / ".lock", "w")
    except OSError as error:
        raise UserError(
            f"cannot write to Cache.directory {cache.directory!r} ({error.strerror}): choose"
            " another one, or build the cache where it can be written"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another process to build {cache.directory}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _look(
    needs: Sequence[DatasetSpec], cache: Cache, vocabulary: Vocabulary
) -> tuple[list[CachedMixture], dict[str, list[str]]]:
    """What is ready, and why the rest is not: reasons by culprit."""
    ready, lacking = [], {}
    for need in needs:
        mixture = read_mixture(cache, need.mixture, need.split)
        if mixture is None:
            lacking[f"{need.mixture} ({need.split})"] = ["not cached"]
            continue
        manifests, found = {}, {}
        for task in mixture.rates:
            manifests[task] = read_manifest(cache.folder(task, need.split, need.length))
            found[task] = _problems(manifests[task], cache, vocabulary)
        if not any(found.values()):
            offered = {task: manifest.offered for task, manifest in manifests.items()}
            left_out = cache.filter.exclude_languages if need.split == TRAIN else ()
            found[need.mixture] = mixture_changes(mixture, offered, left_out)
        where = f"({need.split}, length {need.length})"
        lacking |= {f"{name} {where}": reasons for name, reasons in found.items() if reasons}
        ready.append(CachedMixture(mixture, manifests))
    return ready, lacking


def _problems(manifest: Manifest | None, cache: Cache, vocabulary: Vocabulary) -> list[str]:
    if manifest is None:
        return ["not cached"]
    return stale(manifest, vocabulary.fingerprint, cache.filter)


def _reasons(lacking: dict[str, list[str]]) -> str:
    lines = [f"{culprit}: {', '.join(reasons)}" for culprit, reasons in lacking.items()]
    more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
    return "the cache is missing or stale: " + "; ".join(lines[:5]) + more


def _repack(need: DatasetSpec, cache: Cache, vocabulary: Vocabulary) -> None:
    """Makes what is missing from fresh rows of another length, where there are any."""
    mixture = read_mixture(cache, need.mixture, need.split)
    for task in mixture.rates if mixture else ():
        if not _problems(read_manifest(cache.folder(task, *need[1:])), cache, vocabulary):
            continue
        folder = cache.folder(task, *need[1:]).parent
        lengths = sorted(int(f.name) for f in folder.glob("[0-9]*")) if folder.exists() else []
        for length in reversed(lengths):
            other = read_manifest(cache.folder(task, need.split, length))
            # What was too long for shorter rows is not there any more.
            whole = other and (length > need.length or "too long" not in other.dropped)
            if length != need.length and whole and not _problems(other, cache, vocabulary):
                print(f"Repacking {task} ({need.split}) from {length} to {need.length} tokens")
                repack(task, need.split, cache, length, need.length, vocabulary)
                break


def _run_command(
    needs: Sequence[DatasetSpec], cache: Cache, vocabulary: Vocabulary, gin_flags: Sequence[str]
) -> None:
    """Runs the cache command for these needs and shows what it prints.

    Raises:
      UserError: with the command's own message if it fails.
    """
    command = [
        *(sys.executable, "-m", "xl_flax.cache", *gin_flags),
        f"--gin.Cache.directory={str(cache.directory)!r}",
        f"--gin.Cache.task_modules={list(cache.task_modules)!r}",
        f"--gin.run_vocabulary.path={os.path.abspath(vocabulary.path)!r}",
        *(f"--gin.Filter.{k}={v!r}" for k, v in dataclasses.asdict(cache.filter).items()),
        *(f"--need={need.mixture}:{need.split}:{need.length}" for need in needs),
    ]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",  # it must not take the accelerator from this process
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    tail = b""
    while chunk := process.stderr.read1():
        sys.stderr.write(chunk.decode(errors="replace"))
        sys.stderr.flush()
        tail = (tail + chunk)[-2000:]
    if process.wait():
        lines = tail.decode(errors="replace").replace("\r", "\n").split("\n")
        said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        raise UserError(f"building the cache failed: {(said or ['see above'])[-1]}")
