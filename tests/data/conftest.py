"""Small caches, written without seqio, and a project of parallel tasks for the cache command."""

import re
import types

import gin
import numpy as np
import pytest
import sentencepiece

from xl_flax.data.build import read_examples, write_split
from xl_flax.data.features import Example
from xl_flax.data.filtering import are_translations
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache, read_manifest
from xl_flax.data.mixtures import Mixture, write_mixture
from xl_flax.data.prepare import DatasetSpec, prepare
from xl_flax.data.vocabulary import load_vocabulary

VOCAB_SIZE = 100

PARALLEL_TASKS = """
import functools
import seqio
import tensorflow as tf
from tasks.text import RunVocabulary

def texts(dataset, languages):
    def split(line):
        if len(languages) == 1:
            return {{"tokens": line, "language": tf.constant(languages[0])}}
        parts = tf.ensure_shape(tf.strings.split(line, "|"), [len(languages)])
        return {{"tokens": parts, "language": tf.constant(languages)}}
    return dataset.map(split)

def add(name, languages, files):
    languages = languages.split("-")
    seqio.TaskRegistry.add(
        name,
        source=seqio.TextLineDataSource(files),
        preprocessors=[
            functools.partial(texts, languages=languages),
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
            seqio.CacheDatasetPlaceholder(),
        ],
        output_features={{
            "tokens": seqio.Feature(RunVocabulary(), add_eos=False, rank=min(2, len(languages)))
        }},
    )

{body}
"""


@pytest.fixture(scope="session")
def tiny_vocabulary():
    special = types.SimpleNamespace(cls=0, pad=1, sep=2, unk=3, mask=VOCAB_SIZE - 1)
    return types.SimpleNamespace(
        size=VOCAB_SIZE, special=special, fingerprint="f" * 64, path="tiny.model"
    )


@pytest.fixture
def make_cache(tmp_path, tiny_vocabulary):
    """make_cache({task: examples}, mixtures={name: {task: rate}}, split=, length=) -> Cache.

    An example is an array of tokens, a tuple of them, or (texts, features) as an Example. `length`
    may name a layout. `features` are the specs of all tasks, or of each task by its name.
    """

    def make(
        tasks,
        mixtures=None,
        split="train",
        length=16,
        languages=None,
        features=None,
        **cache_options,
    ):
        cache = Cache(str(tmp_path / "cache"), ["nothing"], on_missing="stop", **cache_options)
        counts = {}
        for task, examples in tasks.items():
            specs = (features or {}).get(task, features) or {}
            numbered = [
                e if isinstance(e, Example) else Example(i, e if isinstance(e, tuple) else (e,))
                for i, e in enumerate(examples)
            ]
            own = (languages or {}).get(task, task.split("-"))
            own = [own] if isinstance(own, str) else own
            manifest = write_split(
                *(cache, task, split, Layout.parse(str(length)), numbered),
                languages=own,
                features=specs,
                vocabulary=tiny_vocabulary,
                fingerprint={
                    "modules": {},
                    "vocabulary": tiny_vocabulary.fingerprint,
                    "source": "",
                    "preprocessors": [],
                    "files": {},
                    "filter": cache.filter.settings(split, are_translations(own, specs)),
                },
            )
            counts[task] = manifest.offered
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


@pytest.fixture
def read_back(tiny_vocabulary):
    """read_back(cache, task, split, length) -> the texts of each cached example, as lists."""

    def read(cache, task, split, length):
        spec = DatasetSpec(task, split, Layout.parse(str(length)))
        _, manifests, folders = prepare([spec], cache, tiny_vocabulary)[spec]
        examples = read_examples(folders[task], manifests[task])
        return [[text.tolist() for text in example.texts] for example in examples]

    return read


@pytest.fixture(scope="session")
def letters_model(tmp_path_factory):
    """A vocabulary of single letters: a text has as many tokens as letters, words and spaces."""
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "text").write_text("\n".join([*"abcdefghijklmnop"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tiny"),
        model_type="char",
        vocab_size=22,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        user_defined_symbols="<mask>",
        add_dummy_prefix=False,
        minloglevel=2,
    )
    return str(folder / "tiny.model")


@pytest.fixture
def project(tmp_path, letters_model, monkeypatch, request):
    """define(tasks), run(flags), file(lines): a task module of its own and the command on it."""
    import seqio  # late: it brings TensorFlow

    module = "parallel_tasks_of_" + re.sub(r"\W", "_", request.node.name)

    class Project:
        cache = Cache(str(tmp_path / "cache"), [module], on_missing="stop")
        vocabulary = load_vocabulary(letters_model)
        number = 0

        def file(self, *lines):
            self.number += 1
            path = tmp_path / f"text{self.number}"
            path.write_text("".join(f"{line}\n" for line in lines))
            return str(path)

        def define(self, *body):
            (tmp_path / f"{module}.py").write_text(PARALLEL_TASKS.format(body="\n".join(body)))

        def add(self, name, languages, **files):
            return f"add({name!r}, {languages!r}, {files!r})"

        def run(self, dataset, *flags):
            from xl_flax import cache

            (tmp_path / "run.gin").write_text(
                f"Cache.directory = {self.cache.directory!r}\nCache.task_modules = [{module!r}]\n"
                f"run_vocabulary.path = {letters_model!r}\n"
            )
            gin.clear_config()
            cache.main([f"--gin_file={tmp_path / 'run.gin'}", f"--dataset={dataset}", *flags])

        def manifest(self, task, split="train", length=32):
            return read_manifest(self.folder(task, split, length))

        def folder(self, task, split="train", length=32):
            return self.cache.folder(task, split, Layout.parse(str(length)))

        def texts(self, task, split="train", length=32):
            """The texts of each cached example."""
            folder = self.folder(task, split, length)
            examples = read_examples(folder, read_manifest(folder))
            decode = self.vocabulary.decode
            return ["|".join(decode(text.tolist()) for text in e.texts) for e in examples]

    monkeypatch.syspath_prepend(str(tmp_path))
    registries = seqio.TaskRegistry, seqio.MixtureRegistry
    before = [set(registry.names()) for registry in registries]
    yield Project()
    gin.clear_config()
    # Modules of tasks that other tests import register them once, when they are first imported.
    for registry, names in zip(registries, before, strict=True):
        for name in set(registry.names()) - names:
            registry.remove(name)


@pytest.fixture(scope="session")
def pairs():
    """pairs(count, seed, sides): as many different groups of 3 to 7 letters a side."""

    def make(count, seed=0, sides=2):
        rng = np.random.default_rng(seed)
        letters = list("abcdefghijklmnop")
        found = {}
        while len(found) < count:
            size = rng.integers(3, 8, sides)
            found["|".join("".join(rng.choice(letters, n)) for n in size)] = None
        return list(found)

    return make
