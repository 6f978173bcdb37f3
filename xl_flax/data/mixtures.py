"""Mixtures as the cache command resolved them: tasks and rates, no seqio."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xl_flax.data.features import FeatureSpec
from xl_flax.data.fingerprint import modules_sha256
from xl_flax.data.manifest import FORMAT, Cache, Manifest, read_json, write_json
from xl_flax.data.records import REBUILD
from xl_flax.errors import UserError

# Attributes of a seqio mixture:
TOKENS_EXPONENT = "tokens_exponent"  # is `Mixture.exponent`
PRESENT_ONLY = "present_only"  # whether tasks without files are left out


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The tasks of one split of a mixture; a task alone is a mixture of itself."""

    name: str
    modules: dict[str, str]
    """Task modules and their sha256 when the rates were resolved."""
    rates: dict[str, float]
    """Task -> rate, not normalised: per example, as seqio means it, or as `exponent` says."""
    examples: dict[str, int]
    """Task -> `Manifest.offered`, from which rates may have been computed."""
    excluded_languages: Sequence[str] = ()
    """Languages whose tasks were left out (`Filter.exclude_languages`)."""
    exponent: float | None = None
    """A task's share of the tokens is its rate times its own number of tokens to this power; None
    if rates are per example."""
    missing: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Tasks that were left out because these files of theirs are missing."""

    def __post_init__(self):
        for task, rate in self.rates.items():
            if not 0 <= rate < math.inf:
                raise UserError(
                    f"mixture {self.name!r}: the rate of {task!r} is {rate}: rates must be finite "
                    "numbers, at least 0"
                )
        if not any(self.rates.values()):
            raise UserError(f"mixture {self.name!r}: the rates of all its tasks are 0")


def _path(cache: Cache, name: str) -> Path:
    return Path(cache.directory) / "mixtures" / f"{name}.json"


def write_mixture(cache: Cache, split: str, mixture: Mixture) -> None:
    """Stores one split of a mixture beside its other splits; replaces a file that is damaged."""
    path = _path(cache, mixture.name)
    splits: dict[str, Any] = {}
    with contextlib.suppress(UserError):
        splits = _read_splits(path, mixture.name)
    splits[split] = dataclasses.asdict(mixture)
    write_json(path, {"format": FORMAT, "splits": splits})


def read_mixture(cache: Cache, name: str, split: str) -> Mixture | None:
    """One split of a mixture, None if it has not been cached.

    Raises:
      UserError: its file is damaged, or another mixture's.
    """
    value = _read_splits(_path(cache, name), name).get(split)
    return Mixture(**value) if value else None


def _read_splits(path: Path, name: str) -> dict[str, dict[str, Any]]:
    value = read_json(path) if os.path.lexists(path) else None
    if value is None:
        return {}
    splits = value.get("splits")
    if splits is None or {each["name"] for each in splits.values()} - {name}:
        raise UserError(f"{path} is not that of the mixture {name!r}: {REBUILD}")
    return splits


def mixture_changes(
    mixture: Mixture, examples: Mapping[str, int], excluded_languages: Sequence[str]
) -> list[str]:
    """What has changed since the rates were resolved."""
    now = modules_sha256(mixture.modules)
    phrases = [
        f"task module {name} changed"
        for name, sha256 in mixture.modules.items()
        if now.get(name, sha256) != sha256
    ]
    before, now = list(mixture.excluded_languages), list(excluded_languages)
    if before != now:
        phrases.append(f"Filter.exclude_languages changed from {before} to {now}")
    phrases += [
        f"the files of task {task} are there now"
        for task, files in mixture.missing.items()
        if all(map(os.path.lexists, files))
    ]
    return phrases + [
        f"the number of examples of task {task} changed"
        for task, count in mixture.examples.items()
        if examples[task] != count
    ]


def row_rates(mixture: Mixture, manifests: Mapping[str, Manifest]) -> dict[str, float]:
    """Share of the rows that each task gives, f64, summing to 1.

    A task whose rows are fuller, or hold fewer examples because these are longer, fills more or
    fewer rows with as many examples or tokens; so a rate is multiplied by rows per unit.
    """

    def rows(task: str) -> float:
        manifest = manifests[task]
        if mixture.exponent is None:
            return manifest.rows / manifest.examples
        return manifest.tokens**mixture.exponent * manifest.rows / manifest.tokens

    rates = {task: rate * rows(task) for task, rate in mixture.rates.items()}
    total = np.sum(list(rates.values()))
    return {task: rate / total for task, rate in rates.items()}


def mixture_names(mixture: str | Sequence[str | tuple[int, str]]) -> list[str]:
    """The mixtures that a setting names, each once, in order.

    Args:
      mixture: a name, a list of names, or phases [(first row, name), ...].
    """
    if isinstance(mixture, str):
        return [mixture]
    return list(dict.fromkeys(each if isinstance(each, str) else each[1] for each in mixture))


def check_alike(manifests: Collection[Manifest]) -> Manifest:
    """One of some tasks that are mixed, after a check that their examples look alike.

    Raises:
      UserError: the tasks differ in the number of texts of an example, or in their features.
    """
    by_count = {manifest.num_texts: manifest.task for manifest in manifests}
    if len(by_count) > 1:
        said = [f"{task!r} has {count}" for count, task in sorted(by_count.items())]
        raise UserError(
            f"tasks of one mixture need equally many texts in an example, but {', '.join(said)}: "
            "give text of one language, pairs, and rows of more languages a mixture each"
        )
    first, *others = manifests
    for other in others:
        for name in sorted(first.features.keys() | other.features.keys()):
            a, b = first.features.get(name), other.features.get(name)
            if a != b:
                raise UserError(
                    f"tasks of one mixture need the same features and labels, but feature {name!r} "
                    f"is {_describe(a)} in {first.task!r} and {_describe(b)} in {other.task!r}"
                )
    return first


def _describe(spec: FeatureSpec | None) -> str:
    if spec is None:
        return "missing"
    labels = f", labels {', '.join(spec.labels)}" if spec.labels else ""
    return f"of kind {spec.kind!r} ({spec.dtype}{labels})"
