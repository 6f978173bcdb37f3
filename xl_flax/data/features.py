"""Examples: texts and the declared features that travel with them from a task to a batch."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xl_flax.errors import UserError

KINDS = ("example", "token", "span", "text")
Texts = tuple[np.ndarray, ...]  # token ids int[n] of each text, without special tokens


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """What a feature of a task is.

    In the cache, numbers take four bytes each, little-endian. Names and labels stand in the
    manifest.
    """

    kind: str
    """"example": a number per example, as a label or a weight. "token": a number per token.
    "span": the first and the last token of a span in the example's last text, -1 and -1 for none.
    "text": a string, for the host only, as an identifier."""
    dtype: str = "int32"
    """"int32" or "float32"; "string" for text."""
    labels: tuple[str, ...] = ()
    """Names of the values 0, 1, ...; none if the numbers are no labels. -1 stands for no label.
    For int32 of kind "example" or "token" only."""

    def __post_init__(self):
        allowed = {"text": ("string",), "span": ("int32",)}.get(self.kind, ("int32", "float32"))
        if self.kind not in KINDS or self.dtype not in allowed:
            raise UserError(
                f"a feature of kind {self.kind!r} and dtype {self.dtype!r}: kinds are "
                f"{', '.join(KINDS)}; text is of strings, a span of int32, others of int32 or "
                "float32"
            )
        if self.labels and (self.kind not in ("example", "token") or self.dtype != "int32"):
            raise UserError(
                f"a feature of kind {self.kind!r} and dtype {self.dtype!r} has labels "
                f"({', '.join(map(str, self.labels[:8]))}): only int32 of kind 'example' or "
                "'token' are labels"
            )
        object.__setattr__(self, "labels", tuple(self.labels))

    @property
    def numpy(self) -> np.dtype:
        """The dtype of its numbers in the cache."""
        return np.dtype("<f4" if self.dtype == "float32" else "<i4")

    @property
    def nothing(self) -> int:
        """The value where there is no example or no token of a text: -1, or 0 for floats."""
        return 0 if self.dtype == "float32" else -1


Features = Mapping[str, FeatureSpec]
NO_FEATURES: Mapping[str, Any] = {}


class Example(NamedTuple):
    """An example of a task."""

    number: int
    """Its number in the split."""
    texts: Texts
    features: Mapping[str, Any] = NO_FEATURES
    """By kind: a number; for "token" a tuple with an array [n] for each text; for "span" a pair of
    offsets into the last text, first and last token; for "text" a string."""


def check_example(name: str, example: Example, specs: Features) -> Example:
    """An example with its features in the dtypes of the cache.

    Args:
      name: of task and split.
      example: as a task gives it.
      specs: what the task declares.

    Raises:
      UserError: a feature is missing, a label is out of range, or a feature does not fit the
        tokens.
    """
    where = f"{name}, example {example.number}"
    features = {}
    for key, spec in specs.items():
        if key not in example.features:
            raise UserError(f"{where} has no feature {key!r}, which its task declares")
        value = example.features[key]
        if spec.kind == "text":
            features[key] = str(value)
            continue
        sizes = [len(text) for text in example.texts]
        if spec.kind != "token":
            parts = (value,)
        elif isinstance(value, (tuple, list)) and len(value) == len(sizes):
            parts = value
        else:
            raise UserError(
                f"{where}: feature {key!r} is {_shown(value)}: a token feature is a tuple with one "
                f"array per text, here {len(sizes)}"
            )
        numbers = tuple(_numbers(f"{where}: feature {key!r}", part, spec) for part in parts)
        if spec.kind == "token" and [part.size for part in numbers] != sizes:
            raise UserError(
                f"{where}: feature {key!r} has {sum(p.size for p in numbers)} numbers for "
                f"{sum(sizes)} tokens: a token feature needs one for each token of each text"
            )
        if spec.kind == "example" and numbers[0].size != 1:
            raise UserError(
                f"{where}: feature {key!r} has {numbers[0].size} numbers instead of one"
            )
        if spec.kind == "span":
            _check_span(f"{where}: span {key!r}", numbers[0], sizes[-1])
        if spec.labels:
            _check_labels(f"{where}: feature {key!r}", numbers, spec.labels)
        features[key] = numbers if spec.kind == "token" else numbers[0]
    return example._replace(features=features)


def _numbers(what: str, value: Any, spec: FeatureSpec) -> np.ndarray:
    try:
        given = np.asarray(value)
    except ValueError:  # lists of different lengths
        given = np.asarray(None)
    if given.dtype.kind not in "biuf" and given.size:
        raise UserError(f"{what} is {_shown(value)}: it needs numbers of {spec.dtype}")
    if spec.dtype == "int32":
        limits = np.iinfo(np.int32)
        fits = (given >= limits.min) & (given <= limits.max) & (given == np.floor(given))
        if not fits.all():
            wrong = given[~fits].flat[0]
            raise UserError(f"{what} holds a number that is no int32: {wrong}")
    return given.astype(spec.numpy)


def _shown(value: Any) -> str:
    """The beginning of a value, on one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."


def _check_labels(what: str, numbers: Sequence[np.ndarray], labels: Sequence[str]) -> None:
    for part in numbers:
        wrong = part[(part < -1) | (part >= len(labels))]
        if wrong.size:
            raise UserError(
                f"{what} has the label {int(wrong.flat[0])}, but there are {len(labels)} "
                f"({', '.join(labels[:8])}{', ...' if len(labels) > 8 else ''}), from 0, and -1 "
                "for none: check the task's labels"
            )


def _check_span(what: str, span: np.ndarray, size: int) -> None:
    if span.shape != (2,):
        raise UserError(f"{what} has {span.size} numbers: it needs the first and the last token")
    first, last = span.tolist()
    if (first, last) != (-1, -1) and not 0 <= first <= last < size:
        raise UserError(
            f"{what} goes from token {first} to {last} of a text of {size}: give the first and the "
            "last token of a span in the example's last text, or -1 and -1"
        )


def size(example: Example, specs: Features) -> int:
    """How many numbers of four bytes the texts and features of a checked example take."""
    tokens = sum(map(len, example.texts))
    total = tokens
    for key, spec in specs.items():
        if spec.kind == "text":
            total += 1 - (-len(example.features[key].encode()) // 4)
        else:
            total += {"example": 1, "span": 2, "token": tokens}[spec.kind]
    return total


def spill(example: Example, specs: Features) -> bytes:
    """The features of a checked example as bytes, a multiple of four; `unspill` undoes it."""
    parts = []
    for key, spec in specs.items():
        value = example.features[key]
        if spec.kind == "text":
            text = value.encode()
            parts += [len(text).to_bytes(4, "little"), text, bytes(-len(text) % 4)]
        elif spec.kind == "token":
            parts += [part.tobytes() for part in value]
        else:
            parts.append(value.tobytes())
    return b"".join(parts)


def unspill(data: np.ndarray, sizes: Sequence[int], specs: Features) -> tuple[dict[str, Any], int]:
    """Reads features back.

    Args:
      data: int32[n], beginning with what `spill` wrote.
      sizes: tokens of each text of the example.
      specs: the same as for `spill`.

    Returns:
      The features, and how many elements of `data` they take.
    """
    features, at = {}, 0
    for key, spec in specs.items():
        if spec.kind == "text":
            count = int(data[at])
            features[key] = data[at + 1 : at + 1 - (-count // 4)].tobytes()[:count].decode()
            at += 1 - (-count // 4)
            continue
        count = {"example": 1, "span": 2, "token": sum(sizes)}[spec.kind]
        numbers = np.array(data[at : at + count]).view(spec.numpy)
        at += count
        if spec.kind == "token":
            features[key] = tuple(np.split(numbers, np.cumsum(sizes)[:-1]))
        else:
            features[key] = numbers if spec.kind == "span" else numbers[0]
    return features, at


def to_json(specs: Features) -> dict[str, dict[str, Any]]:
    """Specs as a manifest holds them."""
    return {key: dataclasses.asdict(spec) for key, spec in specs.items()}


def from_json(value: Mapping[str, Mapping[str, Any]]) -> dict[str, FeatureSpec]:
    """Undoes `to_json`; features are sorted by name."""
    return {key: FeatureSpec(**value[key]) for key in sorted(value)}


def batched(specs: Features) -> Iterator[tuple[str, FeatureSpec]]:
    """The features that stand in a batch: those of numbers."""
    return ((key, spec) for key, spec in specs.items() if spec.kind != "text")
