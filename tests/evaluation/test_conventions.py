"""What a Gin file claims about others' conventions: computed here as their code does."""

import gin
import numpy as np
import pytest

from xl_flax import cli
from xl_flax.evaluation.config import EvaluateConfig
from xl_flax.evaluation.scores import found_at_1

faiss = pytest.importorskip("faiss")


def evaluation(name):
    cli.load_gin([f"gin/eval/{name}.gin"], ["MODEL_DIR = '/run'", "CACHE_DIR = '/cache'"])
    (found,) = EvaluateConfig().evaluations
    gin.clear_config()
    return found


def noisy_pairs(noise):
    rng = np.random.default_rng(0)
    x = 0.5 + rng.normal(size=(300, 16)).astype(np.float32)
    return x, x + noise * rng.normal(size=x.shape).astype(np.float32)


def test_tatoeba_is_pooled_and_searched_as_xtreme_does():
    tatoeba = evaluation("tatoeba")
    assert tatoeba.pooling == "mean_all" and tatoeba.length == 512
    assert tatoeba.similarity[0] == "cosine" and not tatoeba.center and tatoeba.head is None
    own, english = noisy_pairs(0.9)
    _, english_searches = found_at_1(own, english)  # as ("eng", language)
    for vectors in (own, english):
        faiss.normalize_L2(vectors)
    index = faiss.IndexFlatL2(16)
    index.add(own)
    nearest = index.search(english, 1)[1][:, 0]
    assert english_searches.tolist() == (nearest == np.arange(300)).tolist()
    assert 0.3 < english_searches.mean() < 0.9


def test_xsim_is_lasers():
    assert "margin" in evaluation("ntrex").similarity
    x, y = noisy_pairs(0.9)
    forward, backward = found_at_1(x, y, "margin")
    for vectors in (x, y):
        faiss.normalize_L2(vectors)
    assert forward.tolist() == laser_finds(x, y)
    assert backward.tolist() == laser_finds(y, x)
    assert 0.3 < forward.mean() < 0.9


def laser_finds(x, y, k=4):
    """LASER's xsim.py: among the k nearest by cosine the one of the largest ratio margin."""
    indexes = [faiss.IndexFlatIP(x.shape[1]) for _ in range(2)]
    for index, vectors in zip(indexes, (x, y), strict=True):
        index.add(vectors)
    cos, near = indexes[1].search(x, k)
    back = indexes[0].search(y, k)[0].mean(axis=1)
    scores = cos / ((cos.mean(axis=1, keepdims=True) + back[near]) / 2)
    best = near[np.arange(len(x)), scores.argmax(axis=1)]
    return (best == np.arange(len(x))).tolist()
