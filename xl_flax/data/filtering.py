"""What of the training text is left out: bad translations, repetitions, and text of evaluations."""

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import gin
import numpy as np
from annotated_types import Ge

from xl_flax.data.features import Example, Features, Texts
from xl_flax.settings import Name, Settings

# Added to both lengths before they are compared: 2 and 7 tokens are no bad translation.
RATIO_SLACK = 5
_CHUNK = 2**14  # examples whose hashes are looked up together


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Filter(Settings):
    """What is dropped from train splits. Other splits stay as they are.

    Translations are texts in different languages, without features. Of other examples (text of one
    language, labelled pairs) only `exclude` drops any. Examples of several texts of which one is
    empty are dropped in any split, whatever is set here.
    """

    max_ratio: Annotated[float, Ge(1)] = 3.0
    """Of the longest text to the shortest, in tokens; translations beyond it are dropped."""
    deduplicate: bool = True
    """Drop translations of which an equal one, in all texts, came before."""
    exclude: Sequence[Name] = ()
    """Tasks or mixtures: an example with a text of any of their splits other than
    "train" is dropped, so that no text of an evaluation is trained on."""
    exclude_languages: Sequence[Name] = ()
    """Tasks with one of these languages leave every mixture."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("exclude", "exclude_languages"):
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))

    def settings(self, split: str, translations: bool) -> dict[str, Any]:
        """What of this changes the examples of a split, for its fingerprint."""
        if split != "train":
            return {}
        settings = {"exclude": list(self.exclude)}
        if translations:
            settings |= {"max_ratio": float(self.max_ratio), "deduplicate": self.deduplicate}
        return settings


def are_translations(languages: Sequence[str], features: Features) -> bool:
    """Whether examples of several texts say the same in each: languages differ, no features."""
    return len(set(languages)) == len(languages) > 1 and not features


class Hashes:
    """A set of 64-bit hashes that takes 8 bytes for each.

    Sorted arrays, each at least twice as long as the next.
    """

    def __init__(self):
        self._arrays: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(map(len, self._arrays))

    def has(self, hashes: np.ndarray) -> np.ndarray:
        """bool[n]: which of uint64[n] are in the set."""
        known = np.zeros(len(hashes), bool)
        for array in self._arrays:
            places = np.searchsorted(array, hashes).clip(max=len(array) - 1)
            known |= array[places] == hashes
        return known

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Adds uint64[n]; bool[n]: which of them were not in the set and did not come before."""
        new = np.zeros(len(hashes), bool)
        new[np.unique(hashes, return_index=True)[1]] = True
        new &= ~self.has(hashes)
        array = np.sort(hashes[new])
        while self._arrays and len(self._arrays[-1]) < 2 * len(array):
            array = np.sort(np.concatenate([self._arrays.pop(), array]))
        if len(array):
            self._arrays.append(array)
        return new


def hash_texts(examples: Iterable[Texts]) -> np.ndarray:
    """uint64[n]: one hash per example, of all its texts in this order."""
    return np.array([_hash(texts) for texts in examples], np.uint64)


def _hash(texts: Texts) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        digest.update(len(text).to_bytes(4, "little"))
        digest.update(text.astype("<i4").tobytes())
    return int.from_bytes(digest.digest(), "little")


def hash_each_text(examples: Iterable[Example], hashes: Hashes) -> None:
    """Adds the hashes of all texts, each by itself: what `filtered` leaves out."""
    texts = ((text,) for example in examples for text in example.texts if len(text))
    while chunk := list(itertools.islice(texts, _CHUNK)):
        hashes.add(hash_texts(chunk))


def filtered(
    examples: Iterable[Example],
    rules: Filter,
    excluded: Hashes,
    dropped: Counter[str],
    translations: bool,
) -> Iterator[Example]:
    """Yields the examples that are trained on, in their order.

    Args:
      examples: of a train split.
      rules: which of them to drop.
      excluded: hashes of the texts that `rules.exclude` names.
      dropped: counts the others by the reason; the first that holds counts.
      translations: whether the texts of an example say the same in different languages.
    """
    seen, examples = Hashes(), iter(examples)
    while chunk := list(itertools.islice(examples, _CHUNK)):
        if translations:
            fine = [_ratio(example.texts) <= rules.max_ratio for example in chunk]
            chunk = _keep(chunk, fine, dropped, "length ratio")
        if len(excluded) and chunk:
            hashes = hash_texts((text,) for example in chunk for text in example.texts)
            known = excluded.has(hashes).reshape(len(chunk), -1).any(axis=1)
            chunk = _keep(chunk, ~known, dropped, "excluded")
        if rules.deduplicate and translations:
            new = seen.add(hash_texts(example.texts for example in chunk))
            chunk = _keep(chunk, new, dropped, "duplicate")
        yield from chunk


def _ratio(texts: Texts) -> float:
    sizes = [len(text) for text in texts]
    return (max(sizes) + RATIO_SLACK) / (min(sizes) + RATIO_SLACK)


def _keep(
    chunk: list[Example], keep: Sequence[bool], dropped: Counter[str], reason: str
) -> list[Example]:
    kept = list(itertools.compress(chunk, keep))
    if len(kept) < len(chunk):
        dropped[reason] += len(chunk) - len(kept)
    return kept
