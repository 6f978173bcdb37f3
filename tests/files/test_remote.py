"""Addresses, their stages, and what is said where a store fails; stores are fsspec's memory."""

import importlib
import os
import sys

import pytest
import stores

from xl_flax.errors import UserError
from xl_flax.files import remote
from xl_flax.files.mirror import Mirror
from xl_flax.files.write import write_atomically

WHERE = stores.MEMORY


@pytest.fixture
def store(monkeypatch, tmp_path):
    return stores.memory(monkeypatch, tmp_path / "stage")


@pytest.fixture
def failing(store, monkeypatch):
    """failing(error): each call of the store raises it; returns the list of calls."""

    def fail(error):
        calls = []

        def call(self, name):
            def raises(*args, **kwargs):
                calls.append(name)
                raise error

            return raises

        monkeypatch.setattr(
            remote, "_file_system", lambda _: type("F", (), {"__getattr__": call})()
        )
        return calls

    return fail


def test_an_address_and_its_stage_follow_from_each_other(store, tmp_path):
    stage = remote.staged("gs://bucket/a/run")
    assert stage == str(tmp_path / "stage" / "gs" / "bucket" / "a" / "run")
    assert remote.address(stage) == remote.shown(stage) == "gs://bucket/a/run"
    assert remote.staged(stage) == remote.staged("gs://bucket/a/run/") == stage
    assert remote.shown(f"{stage}/checkpoints/5") == "gs://bucket/a/run/checkpoints/5"
    assert remote.staged("runs/a") == "runs/a" and remote.address("runs/a") is None
    assert remote.address(tmp_path / "stage") is None


def test_processes_have_stages_of_their_own(store, tmp_path):
    try:
        remote.own_stages(1, 2)
        stage = remote.staged("s3://b/run")
        assert stage == str(tmp_path / "stage" / "process-1" / "s3" / "b" / "run")
        assert remote.address(stage) == "s3://b/run"
    finally:
        remote.own_stages(0, 1)
    assert "process-1" not in remote.staged("s3://b/run")


@pytest.mark.parametrize(
    "address",
    ["hdfs://b/run", "gs://", "gs:/b", "gs:///run", "gs://b/../c", "gs://b//c", "s3://b/./c"],
)
def test_other_addresses_are_refused(address):
    assert not remote.is_folder(address)
    with pytest.raises(UserError, match="must be a local path, or an address gs://BUCKET/FOLDER"):
        remote.staged(address)


def test_files_go_and_come(store, tmp_path):
    for name, text in {"a": "1", "sub/b": "", "sub/c": "333"}.items():
        write_atomically(tmp_path / "here" / name, text)
    remote.upload(str(tmp_path / "here"), WHERE, ["a", "sub/b", "sub/c"])
    found = remote.files(WHERE)
    assert {name: entry.size for name, entry in found.items()} == {"a": 1, "sub/b": 0, "sub/c": 3}
    assert list(remote.beside(WHERE)) == ["a"]
    assert remote.files(f"{WHERE}/none") == remote.beside(f"{WHERE}/none") == {}
    assert remote.read(f"{WHERE}/none") is None and remote.entry(f"{WHERE}/none") is None
    remote.download(WHERE, str(tmp_path / "there"), found)
    assert (tmp_path / "there" / "sub" / "c").read_text() == "333"
    remote.move(f"{WHERE}/sub", f"{WHERE}/aside", ["b", "c"])
    remote.delete(WHERE, ["a", "gone"])
    assert sorted(remote.files(WHERE)) == ["aside/b", "aside/c"]
    assert remote.folders("memory://bucket/*") == [WHERE]
    with pytest.raises(UserError, match="the bucket's name must be written out"):
        remote.folders("memory://*/run")


def test_what_came_is_what_the_store_says_it_has(store, tmp_path):
    remote.write(f"{WHERE}/a", b"whole")
    entry = remote.entry(f"{WHERE}/a")
    for other in (entry._replace(size=4), entry._replace(md5="0" * 32)):
        with pytest.raises(remote.DamagedError, match="run/a is not what the store says"):
            remote.download(WHERE, str(tmp_path), {"a": other})
    with pytest.raises(remote.DamagedError, match="run/gone is gone"):
        remote.download(WHERE, str(tmp_path), {"gone": entry})
    assert [name for name in os.listdir(tmp_path) if name != "stage"] == []


def test_a_listing_does_not_lead_out_of_the_stage(store):
    info = {"type": "file", "size": 1, "created": "now"}
    for name in ("/bucket/run/../x", "/bucket/run//x", "/bucket/run/a\\b"):
        with pytest.raises(UserError, match="which is no path"):
            remote._relative(WHERE, {name: info})


class HttpError(Exception):
    code = 403


@pytest.mark.parametrize(
    ("error", "said", "tries"),
    [
        (PermissionError("Access Denied"), "no rights to write there .Access Denied.", 1),
        (HttpError("no"), "no rights to write there", 1),
        (OSError("Forbidden: b/run"), "no rights to write", 1),
        (FileNotFoundError("b"), "there is no bucket memory://bucket, or it is gone", 1),
        (ConnectionError("reset"), "cannot be written .reset.: is the network there", 1),
    ],
)
def test_an_error_says_what_is_the_matter(failing, error, said, tries):
    calls = failing(error)
    with pytest.raises(UserError, match=f"^{WHERE}/.trial-[0-9a-f]+: {said}|{said}"):
        remote.try_rights(WHERE)
    assert len(calls) == tries


def test_what_a_run_has_made_is_uploaded_with_patience(failing, capsys):
    calls = failing(ConnectionError("reset"))
    with pytest.raises(UserError, match="cannot be written, tried 3 times .reset."):
        remote.write(f"{WHERE}/a", b"")
    assert len(calls) == 3 and capsys.readouterr().err.count("not written (reset); again in") == 2


def test_a_moment_without_network_is_no_error(store, monkeypatch):
    store.pipe_file("/bucket/run/a", b"x")
    fails, cat = [TimeoutError()], store.cat_file

    def read(path):
        if fails:
            raise fails.pop()
        return cat(path)

    monkeypatch.setattr(store, "cat_file", read)
    assert remote.read(f"{WHERE}/a") == b"x" and not fails


def test_a_missing_package_is_one_line(monkeypatch):
    remote._file_system.cache_clear()
    registry = importlib.import_module("fsspec.registry")
    monkeypatch.delitem(registry._registry, "gs", raising=False)  # where it was imported before
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"needs gcsfs, .*pip install 'xl-flax\[gcs\]'"):
        remote.read("gs://b/run")


# ---- Small files that both sides have


@pytest.fixture
def mirror(store):
    """mirror() -> that of the files *.jsonl of the stage, as a new process makes it."""
    folder = remote.staged(WHERE)
    os.makedirs(folder, exist_ok=True)

    def make():
        return Mirror(folder, lambda: [n for n in os.listdir(folder) if n.endswith(".jsonl")])

    return make


def pull(mirror, ours=False):
    mirror.pull(remote.beside(WHERE), ours)


def test_what_changed_on_one_side_goes_to_the_other(mirror, store):
    first = mirror()
    write_atomically(f"{first.folder}/m.jsonl", "1\n")
    first.push()
    assert store.cat(f"{WHERE}/m.jsonl") == b"1\n"
    write_atomically(f"{first.folder}/m.jsonl", "1\n2\n")  # and is not uploaded before it ends
    again = mirror()
    pull(again)
    with open(f"{first.folder}/m.jsonl") as file:
        assert file.read() == "1\n2\n"
    again.push()
    assert store.cat(f"{WHERE}/m.jsonl") == b"1\n2\n"
    remote.write(f"{WHERE}/m.jsonl", b"other\n")  # another machine
    pull(mirror())
    with open(f"{first.folder}/m.jsonl") as file:
        assert file.read() == "other\n"
    puts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "upload", lambda *args: puts.extend(args[2]))
        mirror().push()
    assert puts == []


@pytest.mark.parametrize("ours", [True, False])
def test_of_what_changed_on_both_sides_nothing_is_lost(mirror, store, ours):
    first = mirror()
    for name in ("m.jsonl", "results.jsonl"):
        write_atomically(f"{first.folder}/{name}", "1\n")
    first.push()
    for name in ("m.jsonl", "results.jsonl"):
        write_atomically(f"{first.folder}/{name}", "1\nhere\n")
        remote.write(f"{WHERE}/{name}", b"1\nthere\n")
    again = mirror()
    pull(again, ours)
    again.push()
    mine, theirs = "1\nhere\n", "1\nthere\n"
    assert store.cat(f"{WHERE}/results.jsonl") == b"1\nhere\nthere\n"
    assert store.cat(f"{WHERE}/m.jsonl").decode() == (mine if ours else theirs)
    with open(f"{first.folder}/set_aside/m.jsonl") as file:
        assert file.read() == (theirs if ours else mine)
