"""Stand-ins for a vocabulary and a stream, with which a step is compiled where no data is there."""

from typing import Any

import jax
import numpy as np

from xl_flax.data.batch_packing import MOST
from xl_flax.data.features import Features, batched
from xl_flax.data.mixtures import mixture_names
from xl_flax.data.stream import Rows, Unigrams
from xl_flax.data.vocabulary import SpecialIds

TEXT_TOKENS = 32  # of a text among several in a row; a sentence of XLM-R's pieces has about as many

EXAMPLES = 2  # in a row, where batches count examples


class AssumedVocabulary:
    """So many pieces, the first five of them special."""

    special = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)

    def __init__(self, size: int):
        self.size = size

    def special_mask(self) -> np.ndarray:
        """bool[size], see `Vocabulary.special_mask`."""
        return np.arange(self.size) < 5

    def word_starts(self) -> np.ndarray:
        """bool[size], see `Vocabulary.word_starts`."""
        return ~self.special_mask()


class AssumedStream:
    """What objectives ask of a `Stream`, but for its rows, of which only shapes are known."""

    def __init__(
        self, rows: Rows, num_texts: int, features: Features, languages: int, vocab_size: int
    ):
        """The stream of an objective that reads examples of so many texts with these features.

        Args:
          rows: of the objective.
          num_texts: texts of an example.
          features: of an example, by name.
          languages: how many there are.
          vocab_size: pieces of the vocabulary.
        """
        self.tasks, self.length = tuple(mixture_names(rows.phases)), rows.length
        self.languages = tuple(f"language {i}" for i in range(languages))
        self.num_texts, self.features = num_texts, features
        self.by_example = rows.packing == "batch"
        if self.by_example:
            self.examples_per_row = MOST
        elif rows.packing == "single":
            self.examples_per_row = 1
        else:
            several = num_texts > 1 or features
            most = max(1, rows.length // (TEXT_TOKENS * num_texts))
            self.examples_per_row = most if several else 0
        self._vocab_size = vocab_size

    def unigrams(self) -> Unigrams:
        """Every piece once, see `Stream.unigrams`."""
        ids = np.arange(self._vocab_size)
        return {language: (ids, np.ones_like(ids)) for language in self.languages}

    def shapes(self, count: int, multiple: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch, see `Stream.rows`.

        Args:
          count: rows, or examples where batches count these.
          multiple: of which the number of rows is one.
        """
        if self.by_example:
            count = -(-count // (EXAMPLES * multiple)) * multiple
        whole, places = (count, self.length), (count, self.examples_per_row)
        shapes: dict[str, Any] = dict.fromkeys(("tokens", "segment_ids", "positions"), whole)
        shapes |= {"languages": (count, self.num_texts), "row_id": (count,)}
        if self.features:
            shapes |= {"example": places, "piece": places}
        by_kind = {"example": places, "token": whole, "span": (*places, 2)}
        dtypes = {name: np.dtype(np.int32) for name in shapes}
        for name, spec in batched(self.features):
            shapes[name], dtypes[name] = by_kind[spec.kind], spec.numpy
        return {name: jax.ShapeDtypeStruct(shapes[name], dtypes[name]) for name in shapes}

    def description(self) -> str:
        """What is assumed of an example, in words."""
        several = f"{self.num_texts} texts" if self.num_texts > 1 else "one text"
        parts = [f"examples of {several}"]
        if self.by_example:
            parts.append(f"{EXAMPLES} in a row")
        elif self.examples_per_row > 1:
            parts.append(f"up to {self.examples_per_row} in a row")
        for name, spec in self.features.items():
            parts.append(f"{name} ({len(spec.labels)} labels)" if spec.labels else name)
        return ", ".join(parts)
