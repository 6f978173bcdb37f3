"""The cache command on tasks of its own, written to a folder and named from Gin."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import sentencepiece

from xl_flax.data.build import read_examples
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache, read_manifest
from xl_flax.data.mixtures import read_mixture
from xl_flax.data.stream import Rows
from xl_flax.data.vocabulary import load_vocabulary
from xl_flax.errors import UserError

TASKS = """
import functools
import numpy as np
import seqio
import tensorflow as tf
from sentencepiece import SentencePieceProcessor

SPM = SentencePieceProcessor(model_file={model!r})
FEATURES = {{"tokens": seqio.Feature(seqio.PassThroughVocabulary(SPM.vocab_size()), add_eos=False)}}

def tokens(dataset, language):
    def encoded(example):
        encode = lambda text: np.array(SPM.encode(text.decode()), int)
        ids = tf.numpy_function(encode, [example["text"]], tf.int64)
        ids = tf.cast(tf.ensure_shape(ids, [None]), tf.int32)
        return {{"tokens": ids, "language": tf.constant(language)}}
    return dataset.map(encoded)

def late_noise(dataset):
    return dataset

def add(name, language, files, after=()):
    seqio.TaskRegistry.add(
        name,
        source=seqio.TextLineDataSource(files),
        preprocessors=[
            lambda d: d.map(lambda t: {{"text": t}}),
            functools.partial(tokens, language=language),
            seqio.CacheDatasetPlaceholder(),
            *after,
        ],
        output_features=FEATURES,
    )
{body}
"""

GIN = """
Cache.directory = {cache!r}
Cache.task_modules = [{module!r}]
run_vocabulary.path = {model!r}
Rows.mixture = {mixture!r}
Rows.length = 32
MaskedLM.rows = @Rows()
MaskedLM.batch_size = 8
TrainConfig.objectives = [@MaskedLM()]
"""


@pytest.fixture(scope="session")
def vocabulary_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    words = ["".join(w) for w in np.random.default_rng(0).choice(list("abcdefgh"), (400, 4))]
    (folder / "text").write_text("\n".join(" ".join(words[i : i + 8]) for i in range(390)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tiny"),
        vocab_size=60,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        user_defined_symbols="<mask>",
        minloglevel=2,
    )
    return str(folder / "tiny.model")


@pytest.fixture
def project(tmp_path, vocabulary_file, monkeypatch, request):
    """A task module of its own, two languages, and a Gin file."""
    module = "tasks_of_" + re.sub(r"\W", "_", request.node.name)

    class Project:
        folder, model = tmp_path, vocabulary_file
        gin = tmp_path / "run.gin"
        cache = Cache(str(tmp_path / "cache"), [module])

        def text(self, name, lines):
            path = tmp_path / name
            path.write_bytes("".join(f"{line}\n" for line in lines).encode())
            return str(path)

        def define(self, body, mixture="both"):
            text = TASKS.format(model=vocabulary_file, body=body)
            (tmp_path / f"{module}.py").write_text(text)
            values = {"cache": self.cache.directory, "module": module, "model": vocabulary_file}
            self.gin.write_text(GIN.format(**values, mixture=mixture))

        def two_languages(self):
            words = ["abc", "de", "fgh", "hag", "bed"]
            lines = [" ".join(words[: 1 + i % 5]) + f" {words[i % 3]}" for i in range(300)]
            files = [self.text(f"{n}.txt", lines[:k]) for n, k in (("one", 300), ("two", 100))]
            held_out = self.text("held_out.txt", ["abc " * 40, "", "de", "fgh bed"])
            self.define(f"""
add("one", "xx", {{"train": {files[0]!r}, "validation": {held_out!r}}})
add("two", "yy", {{"train": {files[1]!r}, "validation": {held_out!r}}})
seqio.MixtureRegistry.add("both", ["one", "two"], default_rate=seqio.mixing_rate_num_examples)
seqio.MixtureRegistry.add("tempered", ["one", "two"],
    default_rate=functools.partial(seqio.mixing_rate_num_examples, temperature=2.0))
from tasks import text
text.add_language_mixture("by_tokens", ["one", "two"], exponent=0.3, by="tokens")
seqio.MixtureRegistry.add("of_mixtures", ["by_tokens", "both"], default_rate=1.0)
seqio.MixtureRegistry.add("deeper", ["one", "of_mixtures"], default_rate=1.0)
""")
            return files

        def run(self, *flags):
            from xl_flax import cache

            cache.main([f"--gin_file={self.gin}", *flags])

        def cached(self, task, split, length=32):
            """The texts of each cached example one after the other, as lists."""
            folder = self.cache.folder(task, split, Layout(length))
            examples = read_examples(folder, read_manifest(folder))
            return [text.tolist() for example in examples for text in example.texts]

        def vocabulary(self):
            return load_vocabulary(self.model)

    monkeypatch.syspath_prepend(str(tmp_path))
    return Project()


def test_a_mixture_is_cached_and_read_back(project, capsys, opened):
    files = project.two_languages()
    project.run("--show=2")
    out = capsys.readouterr().out
    assert re.search(r"one \(xx\) +300 ", out) and re.search(r"two \(yy\) +100 ", out)
    assert max(map(len, out.split("\n\n")[0].split("\n"))) <= 80
    for task in ("one, row 0 [xx]", "one, row 1 [xx]", "two, row 0 [yy]", "two, row 1 [yy]"):
        assert f"{task}\n  1: " in out
    vocabulary = project.vocabulary()
    examples = project.cached("one", "train")
    lines = open(files[0]).read().splitlines()
    assert sorted(examples) == sorted(vocabulary.encode(x) for x in lines)
    # Rates are per example: three times as many of "one".
    assert read_mixture(project.cache, "both", "train").rates == {"one": 300.0, "two": 100.0}
    stream = opened(Rows("both", 32), project.cache, 0, vocabulary)
    epochs = stream.epochs(3000)
    assert epochs["one"] == pytest.approx(epochs["two"], rel=0.02)
    stamp = read_manifest(project.cache.folder("one", "train", Layout(32)))
    project.run()
    again = capsys.readouterr().out
    assert again.count("\n") <= 2 and "there already, see" in again
    assert "one (xx)" in open(re.search(r"see\s+(\S+)", again)[1]).read()
    assert read_manifest(project.cache.folder("one", "train", Layout(32))) == stamp
    project.run("--overwrite")
    assert read_manifest(project.cache.folder("one", "train", Layout(32))) == stamp


def test_the_command_caches_what_the_configuration_names(project):
    import gin

    from xl_flax import cli
    from xl_flax.data.required import planned_rows, required

    project.define("")
    more = """
Rows.mixture = [(0, 'a'), (100, 'b')]
late/Rows.mixture = 'c'
late/Rows.length = 64
TrainConfig.objectives = [@MaskedLM(), @late/MaskedLM()]
TrainConfig.held_out = [@Periodic()]
Periodic.evaluation = @held_out/MaskedAccuracy()
held_out/MaskedAccuracy.mixture = 'd'
held_out/MaskedAccuracy.length = 32
EvaluateConfig.evaluations = [@MaskedAccuracy(), @SentenceRetrieval()]
SentenceRetrieval.mixture = ['e', 'f']
MaskedAccuracy.mixture = 'a'
MaskedAccuracy.length = 16
not_named/SentenceRetrieval.mixture = 'z'
VocabularyConfig.mixture = 'y'
STEPS = 5
TrainConfig.steps = %STEPS
"""
    project.gin.write_text(project.gin.read_text() + more)
    cli.load_gin([str(project.gin)])
    assert {(n.mixture, n.split, n.layout.length) for n in required()} == {
        *((name, "train", 32) for name in "ab"),
        ("c", "train", 64),
        ("d", "validation", 32),
        *((name, "test", 128) for name in "ef"),
        ("a", "validation", 16),
        ("a", "train", 16),
    }
    planned = {(s.mixture, s.split, s.layout.length): n for s, n in planned_rows().items()}
    # Not the rows of "a" that are evaluated.
    assert planned == {("a", "train", 32): 40, ("b", "train", 32): 0, ("c", "train", 64): 40}
    gin.clear_config()


def test_all_mixtures_of_phases_are_cached(project):
    project.two_languages()
    project.gin.write_text(
        project.gin.read_text() + "Rows.mixture = [(0, 'both'), (9, 'one'), (12, 'both')]\n"
    )
    project.run()
    assert read_mixture(project.cache, "both", "train").rates.keys() == {"one", "two"}
    assert read_mixture(project.cache, "one", "train").rates == {"one": 1.0}


def test_temperature_sees_the_cached_counts(project):
    project.two_languages()
    project.run("--dataset=tempered:train:32")
    rates = read_mixture(project.cache, "tempered", "train").rates
    assert rates["one"] / rates["two"] == pytest.approx(3**0.5)


def test_rates_over_tokens_are_left_to_the_layout(project):
    project.two_languages()
    project.run("--dataset=by_tokens:train:32")
    mixture = read_mixture(project.cache, "by_tokens", "train")
    assert (mixture.rates, mixture.exponent) == ({"one": 1.0, "two": 1.0}, 0.3)
    assert read_mixture(project.cache, "one", "train").exponent is None


def test_rates_over_tokens_are_not_lost_in_a_mixture_of_mixtures(project):
    project.two_languages()
    for outer in ("of_mixtures", "deeper"):
        with pytest.raises(UserError, match="'of_mixtures' holds 'by_tokens', whose rates"):
            project.run(f"--dataset={outer}:train:32")


def test_held_out_examples_keep_their_order_and_their_empty_lines(project, held_out):
    project.two_languages()
    project.run("--tasks", "o.e", "--split", "validation")
    vocabulary = project.vocabulary()
    texts = ["abc " * 40, "", "de", "fgh bed"]
    project.run("--dataset=one:validation:32")
    assert project.cached("one", "validation") == [vocabulary.encode(t) for t in texts]
    manifest = read_manifest(project.cache.folder("one", "validation", Layout(32)))
    assert (manifest.examples, manifest.empty, manifest.cut) == (4, 1, 1)
    assert not project.cache.folder("two", "validation", Layout(32)).exists()
    rows = held_out("one", "validation", 32, project.cache, vocabulary)
    batch = rows.rows(range(len(rows) + 2))
    assert batch["row_id"].tolist() == [*range(len(rows)), -1, -1]
    assert not batch["segment_ids"][-2:].any()


@pytest.mark.slow
def test_training_builds_what_is_missing_or_stale_in_a_subprocess(project, capfd, opened):
    files = project.two_languages()
    vocabulary = project.vocabulary()
    rows, flags = Rows("both", 32), [f"--gin_file={project.gin}"]
    stop = Cache(project.cache.directory, project.cache.task_modules, on_missing="stop")
    with pytest.raises(UserError, match=r"both \(train\): not cached.*python -m xl_flax.cache"):
        opened(rows, stop, 0, vocabulary)
    first = opened(rows, project.cache, 0, vocabulary, flags).rows(range(8))
    printed = capfd.readouterr()
    assert "one (xx)" in printed.out and "\r" not in printed.err  # no bars in logs
    project.text("two.txt", ["abc de"] * 50)
    with pytest.raises(
        UserError, match=rf"two \(train, length 32\): source file {files[1]} changed"
    ):
        opened(rows, stop, 0, vocabulary)
    second = opened(rows, project.cache, 0, vocabulary, flags)
    assert read_manifest(project.cache.folder("two", "train", Layout(32))).examples == 50
    assert not np.array_equal(first["tokens"], second.rows(range(8))["tokens"])
    # Another length needs no TensorFlow.
    opened(Rows("both", 16), project.cache, 0, vocabulary, ["--would=fail"])
    assert read_manifest(project.cache.folder("one", "train", Layout(16))).repacked_from == "32"


BAD = {
    "unknown": (
        'add("one", "xx", {"train": GOOD}); seqio.MixtureRegistry.add("bath", ["one"], 1.0)',
        r"no task or mixture is called 'both'; did you mean 'bath'",
    ),
    "missing": ('add("both", "xx", {"train": "/nowhere/x.txt"})', r"'both'.*missing.*/nowhere/x"),
    "no_examples": (
        'add("both", "xx", {"train": EMPTY})',
        r"'both', split 'train' has no examples",
    ),
    "empty_language": (
        'add("both", "xx", {"train": BLANK})',
        r"'both', split 'train', language 'xx': all 3 examples are empty",
    ),
    "utf8": ('add("both", "xx", {"train": LATIN})', r"'both'.*UTF-8, file \S*latin.txt, line 2"),
    "late": (
        'add("both", "xx", {"train": GOOD}, [late_noise])',
        r"'both'.*late_noise comes after CacheDatasetPlaceholder.*belongs in an objective",
    ),
    "split": (
        'add("both", "xx", {"test": GOOD})',
        r"'both' has no split 'train'; it has \['test'\]: add text for this split",
    ),
    "languages": (
        'add("one", "xx", {"train": GOOD}); t = seqio.TaskRegistry.get("one")\n'
        'seqio.TaskRegistry.add_provider("both", t.replace(name="both", preprocessors=['
        "*t.preprocessors[:2], lambda d: d.enumerate().map(lambda i, e: dict(e, language="
        'tf.where(i > 0, "yy", "xx"))), t.preprocessors[2]]))',
        r"'both', split 'train' has examples in 'xx' and in 'yy'",
    ),
    "feature": (
        'add("one", "xx", {"train": GOOD}); t = seqio.TaskRegistry.get("one")\n'
        'seqio.TaskRegistry.add_provider("both", t.replace(name="both", preprocessors=['
        "t.preprocessors[0], t.preprocessors[2]]))",
        r"'both' yields no feature 'language'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_culprit_and_remedy(project, case):
    body, message = BAD[case]
    good = project.text("good.txt", ["abc", "de"])
    blank, empty = project.text("blank.txt", ["", "", ""]), project.text("empty.txt", [])
    latin = project.folder / "latin.txt"
    latin.write_bytes("abc\nbété\nde\n".encode("latin-1"))
    names = {"GOOD": good, "BLANK": blank, "EMPTY": empty, "LATIN": str(latin)}
    project.define("".join(f"{k} = {v!r}\n" for k, v in names.items()) + body)
    import seqio

    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        registry.reset()
    with pytest.raises(UserError, match=message) as caught:
        project.run()
    for path in re.findall(r"\bxl_flax/[\w/.]+", str(caught.value)):
        assert os.path.exists(path)
    assert not list((project.folder / "cache").glob("*/*/*/manifest.json"))
    assert not list((project.folder / "cache").glob("*/*/.*"))


@pytest.fixture(autouse=True)
def own_registry():
    """The tests here register tasks of the same names; those of others come back afterwards."""
    import seqio

    registries = (seqio.TaskRegistry, seqio.MixtureRegistry)
    before = [{name: registry.get(name) for name in registry.names()} for registry in registries]
    yield
    for registry, providers in zip(registries, before, strict=True):
        registry.reset()
        for name, provider in providers.items():
            registry.add_provider(name, provider)


def test_a_truncated_cache_is_an_error_and_the_command_mends_it(project, opened):
    project.two_languages()
    project.run()
    folder = project.cache.folder("one", "train", Layout(32))
    shard = next(folder.glob("rows-*"))
    shard.write_bytes(shard.read_bytes()[:1000])
    vocabulary = project.vocabulary()
    with pytest.raises(UserError, match=rf"{shard} has 1,000 bytes instead of"):
        opened(Rows("both", 32), project.cache, 0, vocabulary)
    project.run()
    opened(Rows("both", 32), project.cache, 0, vocabulary).rows(range(4))


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_looks_complete_and_resumes(project, opened):
    project.two_languages()
    slow = project.folder / f"{project.cache.task_modules[0]}.py"
    text = slow.read_text()
    marker = project.folder / "slow"
    marker.touch()
    # The second task takes its time as long as the marker is there, also after its first batch.
    slow.write_text(
        text.replace(
            "def late_noise",
            f"import os, time\nWAIT = {str(marker)!r}\n"
            "def crawl(dataset):\n"
            "    def wait(x):\n"
            "        time.sleep(0.02 if os.path.exists(WAIT) else 0)\n"
            "        return x\n"
            "    return dataset.repeat(8).map(lambda e: dict(e, tokens=tf.ensure_shape("
            "tf.numpy_function(wait, [e['tokens']], tf.int32), [None])))\n"
            "def late_noise",
        ).replace(
            'seqio.MixtureRegistry.add("both"',
            't = seqio.TaskRegistry.get("two")\nseqio.TaskRegistry.remove("two")\n'
            'seqio.TaskRegistry.add_provider("two", t.replace(preprocessors='
            "[*t.preprocessors[:2], crawl, t.preprocessors[2]]))\n"
            'seqio.MixtureRegistry.add("both"',
        )
    )
    command = [sys.executable, "-m", "xl_flax.cache", f"--gin_file={project.gin}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    one, two = (project.cache.folder(task, "train", Layout(32)) for task in ("one", "two"))
    partial = two.with_name(f".32.partial-{process.pid}")
    deadline = time.time() + 60
    while not partial.exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (one / "manifest.json").exists() and not two.exists() and partial.exists()
    stop = Cache(project.cache.directory, project.cache.task_modules, on_missing="stop")
    with pytest.raises(UserError, match="not cached"):
        opened(Rows("both", 32), stop, 0, project.vocabulary())
    stamp = (one / "manifest.json").stat().st_mtime_ns
    marker.unlink()
    project.run()
    assert (one / "manifest.json").stat().st_mtime_ns == stamp
    assert (two / "manifest.json").exists() and not partial.exists()
    assert json.loads((two / "manifest.json").read_text())["examples"] == 800
