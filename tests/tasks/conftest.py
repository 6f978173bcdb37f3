"""A small vocabulary, named in Gin, for tasks that tokenise."""

import random

import gin
import pytest
import seqio

from xl_flax import cache as cache_command
from xl_flax.data.filtering import Filter
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache
from xl_flax.data.prepare import DatasetSpec, prepare
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


@pytest.fixture
def registry():
    """Removes the tasks and mixtures that a test registers."""
    registries = seqio.TaskRegistry, seqio.MixtureRegistry
    before = [set(registry.names()) for registry in registries]
    yield
    for registry, names in zip(registries, before, strict=True):
        for name in set(registry.names()) - names:
            registry.remove(name)


@pytest.fixture
def run_cache(data_dir, vocabulary, vocabulary_path):
    """run_cache(modules, dataset, ...) -> caches of the datasets, made by the command."""

    def run(modules, *datasets, exclude=()):
        rules = Filter(exclude=list(exclude))
        cache = Cache(str(data_dir / "cache"), modules, on_missing="stop", filter=rules)
        (data_dir / "run.gin").write_text(
            f"Cache.directory = {cache.directory!r}\nCache.task_modules = {modules}\n"
            f"run_vocabulary.path = {vocabulary_path!r}\nFilter.exclude = {list(exclude)}\n"
        )
        flags = [f"--dataset={name}" for name in datasets]
        cache_command.main([f"--gin_file={data_dir / 'run.gin'}", "--show=2", *flags])
        specs = [
            DatasetSpec(*name.split(":")[:2], Layout.parse(name.split(":")[2])) for name in datasets
        ]
        return prepare(specs, cache, vocabulary)

    return run
