"""A small vocabulary, named in Gin, for tasks that tokenise."""

import random

import gin
import pytest

from xl_flax.data.vocabulary import Vocabulary, VocabularyConfig, load_vocabulary
from xl_flax.data.vocabulary_training import Corpus, train_model

ALPHABET = "abcdefghijklmnoprstuvyzAäöüß.,"


@pytest.fixture(scope="session")
def vocabulary_path(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("vocabulary") / "test.model"
    draw = random.Random(0)
    words = ["".join(draw.choices(ALPHABET, k=draw.randint(2, 7))) for _ in range(600)]
    lines = [" ".join(draw.choices(words, k=9)) for _ in range(600)]
    lines += ["0123456789 起初神创造天地"] * 20
    settings = VocabularyConfig(mixture="m", path=str(path), size=400, character_coverage=1.0)
    path.write_bytes(train_model([Corpus("und", len(lines), lines, 1)], settings))
    return str(path)


@pytest.fixture
def vocabulary(vocabulary_path) -> Vocabulary:
    gin.clear_config()
    gin.bind_parameter("run_vocabulary.path", vocabulary_path)
    yield load_vocabulary(vocabulary_path)
    gin.clear_config()


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("XL_FLAX_DATA_DIR", str(tmp_path))
    return tmp_path
