"""Small caches, written without seqio."""

import types

import numpy as np
import pytest

from xl_flax.data.build import write_split
from xl_flax.data.manifest import Cache
from xl_flax.data.mixtures import Mixture, write_mixture

VOCAB_SIZE = 100


@pytest.fixture(scope="session")
def tiny_vocabulary():
    special = types.SimpleNamespace(cls=0, pad=1, sep=2, unk=3, mask=VOCAB_SIZE - 1)
    return types.SimpleNamespace(
        size=VOCAB_SIZE, special=special, fingerprint="f" * 64, path="tiny.model"
    )


@pytest.fixture
def make_cache(tmp_path, tiny_vocabulary):
    """make_cache({task: examples}, mixtures={name: {task: rate}}, split=, length=) -> Cache."""

    def make(tasks, mixtures=None, split="train", length=16, languages=None, **cache_options):
        cache = Cache(str(tmp_path / "cache"), ["nothing"], on_missing="stop", **cache_options)
        counts = {}
        for task, examples in tasks.items():
            manifest = write_split(
                *(cache, task, split, length, examples),
                language=(languages or {}).get(task, task),
                vocabulary=tiny_vocabulary,
                fingerprint={
                    "modules": {},
                    "vocabulary": tiny_vocabulary.fingerprint,
                    "source": "",
                    "preprocessors": [],
                    "files": {},
                },
            )
            counts[task] = manifest.examples
        alone = {task: {task: 1.0} for task in tasks}
        for name, rates in (alone | (mixtures or {})).items():
            examples = {task: counts[task] for task in rates}
            write_mixture(cache, split, Mixture(name, {}, rates, examples))
        return cache

    return make


@pytest.fixture
def random_examples():
    """random_examples(seed, count, low, high): lists of tokens between 4 and 98."""

    def make(seed, count, low=1, high=12):
        rng = np.random.default_rng(seed)
        return [rng.integers(4, 99, rng.integers(low, high)).astype(np.int32) for _ in range(count)]

    return make
