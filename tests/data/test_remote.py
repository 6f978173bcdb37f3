"""Remote caches and vocabularies: only what is read comes, only what is whole is seen."""

import os
import shutil

import house
import pytest
import stores

from xl_flax.data import remote as caches
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache, read_manifest
from xl_flax.data.prepare import DatasetSpec, prepare
from xl_flax.data.remote_vocabulary import fetch_vocabulary, vocabulary_there
from xl_flax.data.vocabulary import load_vocabulary, run_vocabulary
from xl_flax.errors import MissingError, UserError
from xl_flax.evaluation.caches import prepare_together
from xl_flax.files import remote
from xl_flax.parallel import distributed

WHERE = "memory://bucket/cache"
TRAIN = DatasetSpec("all", "train", Layout(16))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return house.made_in(tmp_path_factory.mktemp("remote"))


@pytest.fixture
def store(data, monkeypatch, tmp_path):
    """A store that has a cache; the stage is empty."""
    monkeypatch.chdir(data)
    store = stores.memory(monkeypatch, tmp_path / "stage")
    shutil.copytree("cache", remote.staged(WHERE))
    caches.send(remote.staged(WHERE))
    shutil.rmtree(tmp_path / "stage")
    return store


def ready(*specs):
    """The splits that come to the stage when some are prepared."""
    vocabulary = load_vocabulary("vocabulary.model")
    cache = Cache(WHERE, ["none"], on_missing="stop")
    prepare(specs or [TRAIN], cache, vocabulary)
    folders = sorted(os.path.relpath(f, cache.directory) for f in folders_of(cache.directory))
    return cache, folders


def folders_of(directory):
    return [where for where, _, names in os.walk(directory) if "manifest.json" in names]


def test_only_what_is_read_comes_and_once(store, monkeypatch):
    _, folders = ready()
    assert folders == ["t_one/train/16", "t_two/train/16"]
    monkeypatch.setattr(store, "get_file", lambda *_: pytest.fail("fetched again"))
    assert ready()[1] == folders
    monkeypatch.undo()


def test_what_is_missing_or_changed_in_the_stage_comes_again(store):
    cache, _ = ready()
    folder = cache.folder("t_one", "train", Layout(16))
    (shard,) = folder.glob("*.arrayrecord")
    shard.unlink()
    ready()
    assert shard.exists()
    manifest = f"{WHERE}/t_one/train/16/manifest.json"
    store.pipe_file(manifest, store.cat(manifest) + b"\n")  # another machine has built it anew
    ready()
    assert (folder / "manifest.json").read_bytes().endswith(b"\n")


def test_what_a_kill_leaves_is_used_and_not_seen(store, monkeypatch):
    cache = Cache(WHERE, ["none"], on_missing="stop")
    folder, get = cache.folder("t_one", "train", Layout(16)), store.get_file

    def killed(name, path):
        if name.endswith("unigrams.npz"):
            raise KeyboardInterrupt
        get(name, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "get_file", killed)
        with pytest.raises(KeyboardInterrupt):
            ready()
    assert not folder.exists()
    names = []
    monkeypatch.setattr(store, "get_file", lambda name, path: (names.append(name), get(name, path)))
    ready()
    of_one = [name for name in names if "/t_one/" in name]
    assert of_one == [f"{WHERE}/t_one/train/16/unigrams.npz"]


def test_a_split_that_is_half_in_the_store_is_not_there(store):
    store.rm_file(f"{WHERE}/t_one/train/16/manifest.json")
    with pytest.raises(UserError, match="t_one .train, length 16.: not cached"):
        ready()
    (name,) = (n for n in store.store if "/t_two/train/16/rows" in n)
    store.rm_file(name)
    with pytest.raises(UserError, match="memory://bucket/cache/t_two/train/16/rows.* is missing"):
        ready()


def test_a_manifest_goes_up_last_and_what_was_built_here_is_not_replaced(store, monkeypatch):
    cache, _ = ready()
    folder = cache.folder("t_one", "train", Layout(16))
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes() + b" ")
    (folder / ".sent").unlink()  # as of a split that has just been built
    store.pipe_file(f"{WHERE}/t_one/train/16/rows-of-an-older-one", b"x")
    calls = []
    put, rm = store.put_file, store.rm_file
    monkeypatch.setattr(store, "put_file", lambda a, b: (calls.append(b), put(a, b)))
    monkeypatch.setattr(store, "rm_file", lambda a: (calls.append(f"-{a}"), rm(a)))
    ready()
    assert path.read_bytes().endswith(b" ")
    caches.send(cache.directory)
    manifest = f"{WHERE}/t_one/train/16/manifest.json"
    assert calls[0] == f"-{manifest}" and calls[-2] == manifest and len(calls) == 5
    assert calls[-1].endswith("rows-of-an-older-one")
    calls.clear()
    caches.send(cache.directory)
    assert calls == []


def test_several_processes_build_nothing_in_a_store(store, monkeypatch):
    """Each would build in a stage of its own."""
    monkeypatch.setattr(distributed, "place", lambda: (1, 2))
    monkeypatch.setattr(distributed, "on_first", lambda _: 1)  # process 0 has found that it lacks
    cache, vocabulary = Cache(WHERE, ["none"]), load_vocabulary("vocabulary.model")
    with pytest.raises(UserError, match=f"{WHERE} lacks rows that are read: run .*xl_flax.cache"):
        prepare_together([TRAIN], cache, vocabulary, [])


def test_other_layouts_come_where_the_one_that_is_read_can_be_made_of_them(store):
    caches.fetch_splits(remote.staged(WHERE), [("t_one", "train", Layout(8))])
    assert read_manifest(Cache(WHERE, ["none"]).folder("t_one", "train", Layout(16))) is not None


def test_rows_of_other_vocabularies_are_found_without_the_rows(store):
    cache = Cache(WHERE, ["none"])
    own = load_vocabulary("vocabulary.model").fingerprint
    assert cache.of_vocabulary(own) == cache
    other = cache.of_vocabulary("f" * 64)
    assert remote.address(other.directory) == f"{WHERE}/vocabulary-ffffffffffff"
    assert not os.path.exists(cache.folder("t_one", "train", Layout(16)))


def test_a_vocabulary_comes_and_goes(store):
    where = "memory://bucket/v/vocabulary.model"
    with pytest.raises(MissingError, match=f"the vocabulary {where} does not exist"):
        run_vocabulary(where)
    stage = remote.staged(where)
    with vocabulary_there(stage):  # as `xl_flax.vocab` writes it
        shutil.copy("vocabulary.model", stage)
    shutil.rmtree(os.path.dirname(stage))
    assert run_vocabulary(where).fingerprint == load_vocabulary("vocabulary.model").fingerprint
    store.pipe_file(where, b"another")
    fetch_vocabulary(stage)
    with open(stage, "rb") as file:
        assert file.read() == b"another"
