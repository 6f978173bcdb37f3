"""Packed rows of translations, made by hand."""

import jax
import numpy as np
import pytest

CLS, SEP, FIRST = 2, 3, 5


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    """What is compiled here runs a few times only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def parallel_rows():
    """parallel_rows(groups, sides, vocab=96, length=None, seed=0) -> a batch and its sentences.

    `groups` says how many each row holds. The batch is what `Stream.rows` gives; sentences[r][s]
    is segment s + 1 of row r, without the special tokens.
    """

    def make(groups, sides=2, vocab=96, length=None, seed=0, words=(1, 5)):
        rng = np.random.default_rng(seed)
        sentences = [
            [rng.integers(FIRST, vocab, rng.integers(*words)) for _ in range(count * sides)]
            for count in groups
        ]
        return pack(sentences, sides, length), sentences

    return make


@pytest.fixture
def pack_rows():
    return pack


def pack(sentences, sides=2, length=None):
    longest = max(sum(len(s) + 2 for s in row) for row in sentences)
    batch = {
        name: np.zeros((len(sentences), length or longest), np.int32)
        for name in ("tokens", "segment_ids", "positions")
    }
    for r, row in enumerate(sentences):
        at = 0
        for s, words in enumerate(row):
            text = [CLS, *words, SEP]
            part = slice(at, at + len(text))
            batch["tokens"][r, part] = text
            batch["segment_ids"][r, part] = s + 1
            batch["positions"][r, part] = np.arange(len(text))
            at += len(text)
    rows = np.arange(len(sentences), dtype=np.int32)
    batch["languages"] = (rows[:, None] + np.arange(sides)) % (sides + 1)
    batch["languages"] = batch["languages"].astype(np.int32)
    batch["row_id"] = 100 + rows
    return batch
