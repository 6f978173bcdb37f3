"""Means of languages, which are taken away from the vectors of their sentences.

What is common to a language falls away with its mean (Libovický, Rosa and Fraser, 2020,
arXiv:2004.05160). The mean of the test sentences is transductive: it needs all of them at once, in
each language, which nobody has who looks for the translation of one sentence. The mean of training
text needs none of them.
"""

import itertools
from typing import Annotated

import numpy as np
from annotated_types import doc

from xl_flax.data.build import TRAIN, read_examples
from xl_flax.data.layout import Layout
from xl_flax.data.prepare import DatasetSpec
from xl_flax.evaluation.context import Context
from xl_flax.settings import Name
from xl_flax.text_table import wrapped

TEXTS = 1000  # of each language, at most, for its mean
READ = 100_000  # from so many they are taken evenly: rows of long texts come first in caches
Center = Annotated[
    bool | Name,
    doc("True (means of the test sentences), the name of a mixture with training text, or False"),
]


def centred(x_NxD: np.ndarray) -> np.ndarray:
    """Without their own mean."""
    return x_NxD - x_NxD.mean(axis=0)


def training_text(center: Center, length: int) -> list[DatasetSpec]:
    """What means of training text are made from; [] for others."""
    return [DatasetSpec(center, TRAIN, Layout(length))] if isinstance(center, str) else []


def sample(spec: DatasetSpec, context: Context) -> dict[str, list[np.ndarray]]:
    """By language up to `TEXTS` texts of a mixture, int[n] tokens of each."""

    def read() -> dict[str, list[np.ndarray]]:
        _, manifests, folders = context.caches[spec]
        texts: dict[str, list[np.ndarray]] = {}
        for task, manifest in manifests.items():
            count = min(manifest.examples, READ)
            chosen = set(np.linspace(0, count - 1, min(count, TEXTS)).astype(int).tolist())
            examples = itertools.islice(read_examples(folders[task], manifest), count)
            for example in (e for i, e in enumerate(examples) if i in chosen):
                for language, text in zip(manifest.languages, example.texts, strict=True):
                    texts.setdefault(language, []).append(text)
        return {language: own[:TEXTS] for language, own in texts.items()}

    return context.once(("sample", spec), read)


def signed(center: Center) -> dict[str, str | int]:
    """What a signature says of it."""
    if isinstance(center, str):
        return {"center": f"{center}/{TRAIN}", "center_n": TEXTS}
    return {"center": "test_mean" if center else "none"}


def noted(center: Center, table: str) -> str:
    """A table with a line above that says which means were taken away."""
    if not center or not table:
        return table
    note = "Centred by the mean of each language's own test sentences (transductive)"
    if isinstance(center, str):
        note = f"Centred by the mean of {TEXTS:,} training texts of each language from {center}"
    return f"{wrapped(note)}\n{table}"
