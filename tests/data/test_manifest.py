import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest

from xl_flax.data import fingerprint
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache, read_manifest, read_unigrams
from xl_flax.data.mixtures import read_mixture
from xl_flax.data.prepare import locked
from xl_flax.data.stream import Rows
from xl_flax.errors import UserError


@pytest.fixture
def cached(make_cache, random_examples):
    cache = make_cache({"xx": random_examples(0, 100, 0, 40)})
    return cache, cache.folder("xx", "train", Layout(16))


def test_the_manifest_counts_everything(cached, random_examples):
    _, folder = cached
    examples = random_examples(0, 100, 0, 40)
    manifest = read_manifest(folder)
    sizes = np.array([len(e) for e in examples])
    assert manifest.empty == (sizes == 0).sum() and manifest.examples == (sizes > 0).sum()
    assert manifest.cut == (sizes > 14).sum()
    assert manifest.tokens == sizes.sum() + 2 * np.ceil(sizes / 14).sum()
    assert manifest.rows == sum(s.rows for s in manifest.shards)
    assert 0.9 < manifest.fill <= 1


def edit(folder, change):
    path = folder / "manifest.json"
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"rows": ', '"rows": 1'),
        lambda text: "[]",
        lambda text: "",
    ],
)
def test_a_damaged_manifest_is_an_error_that_names_it(cached, tiny_vocabulary, change, opened):
    cache, folder = cached
    edit(folder, change)
    with pytest.raises(UserError, match=r"xx/train/16/manifest.json is damaged .*: run `python -m"):
        opened(Rows("xx", 16), cache, 0, tiny_vocabulary)


def test_a_missing_shard_is_an_error(cached, tiny_vocabulary, opened):
    cache, folder = cached
    next(folder.glob("rows-*")).unlink()
    with pytest.raises(UserError, match=r"rows-00000-of-00001.arrayrecord is missing"):
        opened(Rows("xx", 16), cache, 0, tiny_vocabulary)


def test_no_manifest_means_not_cached(cached, tiny_vocabulary, opened):
    cache, folder = cached
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"xx \(train, length 16\): not cached"):
        opened(Rows("xx", 16), cache, 0, tiny_vocabulary)


def flipped(content):
    return content[:60] + bytes([content[60] ^ 1]) + content[61:]


@pytest.mark.parametrize("change", [lambda content: b"PK nonsense", lambda c: c + b"x", flipped])
def test_damaged_unigrams_are_an_error(cached, change):
    _, folder = cached
    path = folder / "unigrams.npz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match="unigrams.npz is damaged"):
        read_unigrams(folder, read_manifest(folder), 0)


def test_files_of_another_task_are_an_error(
    make_cache, random_examples, tiny_vocabulary, opened, tmp_path
):
    tasks = {"xx": random_examples(0, 60), "yy": random_examples(1, 60)}
    cache = make_cache(tasks, {"mix": {"xx": 1.0}})
    mine, other = (cache.folder(task, "train", Layout(16)) for task in tasks)
    good = {path: path.read_bytes() for path in mine.iterdir()}

    (mine / "unigrams.npz").write_bytes((other / "unigrams.npz").read_bytes())
    with pytest.raises(UserError, match="xx/train/16/unigrams.npz is damaged"):
        read_unigrams(mine, read_manifest(mine), 0)
    (mine / "manifest.json").write_bytes((other / "manifest.json").read_bytes())
    with pytest.raises(UserError, match=r"xx/train/16/manifest.json is that of yy/train/16: run"):
        opened(Rows("xx", 16), cache, 0, tiny_vocabulary)
    (mine / "manifest.json").write_bytes((tmp_path / "cache/mixtures/xx.json").read_bytes())
    with pytest.raises(UserError, match=r"xx/train/16/manifest.json is damaged \(it is no"):
        opened(Rows("xx", 16), cache, 0, tiny_vocabulary)
    for path, content in good.items():
        path.write_bytes(content)
    opened(Rows("xx", 16), cache, 0, tiny_vocabulary).rows(range(20))
    for name in (mine / "manifest.json", tmp_path / "cache/mixtures/yy.json"):
        (tmp_path / "cache/mixtures/mix.json").write_bytes(name.read_bytes())
        with pytest.raises(UserError, match=r"mix.json is not that of the mixture 'mix': run"):
            opened(Rows("mix", 16), cache, 0, tiny_vocabulary)


def test_a_damaged_mixture_is_written_anew(make_cache, random_examples):
    make_cache({"xx": random_examples(0, 10)})
    cache = make_cache({"xx": random_examples(0, 10)})
    path = Path(cache.directory, "mixtures", "xx.json")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="xx.json is damaged"):
        read_mixture(cache, "xx", "train")
    make_cache({"xx": random_examples(0, 10)})
    assert read_mixture(cache, "xx", "train").rates == {"xx": 1.0}


def test_another_format_is_stale_and_not_an_error(cached):
    _, folder = cached
    value = json.loads((folder / "manifest.json").read_text())
    del value["sha256"]
    from xl_flax.data.manifest import write_json

    write_json(folder / "manifest.json", value | {"format": 0})
    assert read_manifest(folder) is None


def test_another_vocabulary_makes_a_cache_stale(cached, tiny_vocabulary, opened):
    cache, _ = cached
    tiny_vocabulary.fingerprint, old = "0" * 64, tiny_vocabulary.fingerprint
    try:
        with pytest.raises(UserError, match="the vocabulary changed"):
            opened(Rows("xx", 16), cache, 0, tiny_vocabulary)
    finally:
        tiny_vocabulary.fingerprint = old


def test_a_token_outside_the_vocabulary_is_an_error(make_cache):
    with pytest.raises(UserError, match=r"'xx'.*token id 1000 is outside the vocabulary of 100"):
        make_cache({"xx": [np.array([5, 1000])]})


def test_a_mixture_whose_counts_changed_is_stale(
    make_cache, tiny_vocabulary, random_examples, opened
):
    make_cache({"xx": random_examples(0, 100)}, {"mix": {"xx": 1.0}})
    cache = make_cache({"xx": random_examples(0, 90)})
    assert read_mixture(cache, "mix", "train").examples == {"xx": 100}
    with pytest.raises(UserError, match="the number of examples of task xx changed"):
        opened(Rows("mix", 16), cache, 0, tiny_vocabulary)


def test_fingerprints_tell_what_changed(tmp_path, monkeypatch):
    module, source = tmp_path / "some_tasks_module.py", tmp_path / "text.txt"
    module.write_text("x = 1")
    source.write_text("one")
    monkeypatch.syspath_prepend(str(tmp_path))
    old = {
        "modules": fingerprint.modules_sha256(["some_tasks_module"]),
        "vocabulary": "a" * 64,
        "source": "S(1)",
        "preprocessors": ["p(k=1)"],
        "files": fingerprint.files_state([str(source)]),
        "filter": {"exclude": []},
    }
    same = {"exclude": []}
    assert not fingerprint.changes(old, fingerprint.observe(old, "a" * 64, same))
    module.write_text("x = 22")
    source.write_text("other")
    now = fingerprint.observe(old, "b" * 64, {"exclude": ["ntrex"]})
    found = fingerprint.changes(old, now | {"preprocessors": []})
    assert [f.split(" (")[0] for f in found] == [
        "task module some_tasks_module changed",
        f"source file {source} changed",
        "the vocabulary changed",
        "Filter.exclude changed from [] to ['ntrex']",
        "preprocessors changed from ['p(k=1)'] to []",
    ]
    # A cache that was moved to a machine without the sources is as good as it was.
    module.unlink()
    source.unlink()
    assert not fingerprint.changes(old, fingerprint.observe(old, "a" * 64, same))


def test_functions_are_described_with_what_is_bound_to_them():
    @dataclasses.dataclass
    class Options:
        depth: int

    def outer(options):
        def inner(dataset):
            return dataset, options

        return inner

    describe = fingerprint.describe
    assert describe(outer(Options(1))) != describe(outer(Options(2)))
    assert describe(outer(Options(1))) == describe(outer(Options(1)))
    assert describe(functools.partial(sorted, key=outer)) != describe(functools.partial(sorted))
    assert "0x" not in describe([object(), outer(object())])


def test_an_unwritable_folder_and_bad_options_are_errors(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot write to \S*file \(File exists"),
        locked(Cache(str(tmp_path / "file"), ["m"])),
    ):
        pass
    with pytest.raises(UserError, match="on_missing"):
        Cache("x", ["m"], on_missing="ask")
    with pytest.raises(UserError, match=r"'tasks.x': must be a list of module names, as in \["):
        Cache("x", "tasks.x")


def test_base_classes_belong_to_what_a_task_is_made_from():
    class Source:
        pass

    class Files(Source):
        pass

    assert Source in fingerprint.reachable([Files])
