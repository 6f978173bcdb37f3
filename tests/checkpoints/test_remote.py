"""Checkpoints of remote runs: whole in the store or not taken, and nothing is lost on the way."""

import dataclasses
import json
import os
import re
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stores

from xl_flax.checkpoints import intact, uploads
from xl_flax.checkpoints import remote as checkpoints
from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.load import best_checkpoint, find_checkpoints, one_checkpoint
from xl_flax.checkpoints.manager import CheckpointManager, Progress
from xl_flax.checkpoints.remote_run import following
from xl_flax.errors import UserError
from xl_flax.files import remote
from xl_flax.files.write import write_atomically
from xl_flax.models.config import EncoderConfig

ENCODER = EncoderConfig(
    vocab_size=40, num_layers=2, width=16, num_heads=2, mlp_width=32, max_positions=16
)
DESCRIPTION = Description(ENCODER, heads={}, vocabulary="0" * 64, languages={}, objectives={})
PARAMS, STATE = {"x": jnp.arange(300.0)}, {"y": jnp.ones(3)}
CHECKSUMS = intact.CHECKSUMS_FILE


@pytest.fixture
def store(monkeypatch, tmp_path):
    monkeypatch.setattr(uploads, "POLL", 0.01)
    return stores.memory(monkeypatch, tmp_path / "stage")


@pytest.fixture
def run(store):
    """The stage of a remote run."""
    return remote.staged(stores.MEMORY)


def save(manager, *steps, **progress):
    for step in steps:
        described = dataclasses.replace(DESCRIPTION, step=step).to_json()
        files = {"model.json": described, "vocabulary.model": b"pieces"}
        manager.save(PARAMS, STATE, Progress(step, {}, 0, {}, **progress), files)


def saved(run, *steps, **keep):
    """Saves steps; the stage is gone afterwards, as on another machine."""
    manager = CheckpointManager(run, **keep)
    save(manager, *steps)
    manager.close()
    shutil.rmtree(run)


def steps(run):
    """Steps in the store that are whole, and those of which something is there."""
    found = checkpoints.steps(run)
    return checkpoints.whole(found), list(found)


def in_stage(run):
    return [os.path.basename(path) for path in intact.step_folders(run, intact.FOLDER)]


def test_only_the_newest_comes_down_and_goes_on(run, store, tmp_path):
    saved(run, 2, 4)
    assert steps(run) == ([2, 4], [2, 4])
    with following(run):
        assert in_stage(run) == ["4"] and intact.newest(run).endswith("/4")
        manager = CheckpointManager(run)
        layout = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (PARAMS, STATE))
        params, state = manager.restore(4, *layout)
        np.testing.assert_array_equal(params["x"], PARAMS["x"])
        np.testing.assert_array_equal(state["y"], STATE["y"])
        save(manager, 6)
        manager.close()
        for name in ("metrics.jsonl", "metrics/events", "profile/trace", "cache/a.json"):
            write_atomically(f"{run}/{name}", "{}\n")
    assert steps(run) == ([2, 4, 6], [2, 4, 6])
    assert store.cat(f"{stores.MEMORY}/metrics.jsonl") == b"{}\n"
    names = {name for name in remote.files(stores.MEMORY) if not name.startswith("checkpoints/")}
    assert names == {"metrics.jsonl", "metrics/events", "profile/trace"}
    shutil.rmtree(run)
    with following(run):
        assert os.path.exists(f"{run}/metrics/events") and not os.path.exists(f"{run}/profile")
    assert not [name for name in store.store if ".trial" in name or "remote" in name]


def test_checksums_go_up_last_and_are_deleted_first(run, store, monkeypatch):
    calls = []

    def noting(name, call):
        def noted(*args, **kwargs):
            calls.append((name, args[-1] if name == "put_file" else args[0]))
            return call(*args, **kwargs)

        return noted

    for name in ("put_file", "pipe_file", "rm_file"):
        monkeypatch.setattr(store, name, noting(name, getattr(store, name)))
    saved(run, 2, 4, keep_last=1)
    of = {step: [(n, p) for n, p in calls if f"/checkpoints/{step}/" in p] for step in (2, 4)}
    assert of[4][-1] == ("pipe_file", f"{stores.MEMORY}/checkpoints/4/{CHECKSUMS}")
    deleted = [path for name, path in of[2] if name == "rm_file"]
    assert deleted[-1] != deleted[1] == f"{stores.MEMORY}/checkpoints/2/{CHECKSUMS}"
    assert steps(run) == ([4], [4])


def test_steps_go_on_while_a_checkpoint_goes_up_and_the_next_save_waits(run, store, monkeypatch):
    goes, put = threading.Event(), store.put_file
    monkeypatch.setattr(store, "put_file", lambda *args: goes.wait(30) and put(*args))
    manager = CheckpointManager(run)
    save(manager, 2)  # returns all the same
    assert steps(run) == ([], [])
    goes.set()
    save(manager, 4)
    assert 2 in steps(run)[0]
    manager.close()


def test_what_is_kept_counts_in_the_store(run):
    saved(run, 1, 2, 3, keep_last=None)
    with following(run):
        manager = CheckpointManager(run, keep_last=2, keep_every=2)
        mark = {"step": 4, "metric": "m", "mode": "max", "value": 1.0}
        save(manager, 4, best=mark)
        manager.wait()
        assert steps(run)[1] == [2, 3, 4]
        save(manager, 5, 6, 7, 9, best=mark)
        manager.close()
    assert steps(run)[1] == [2, 4, 6, 7, 9] and in_stage(run) == ["4", "6", "7", "9"]
    shutil.rmtree(run)
    checkpoints.bring(run, "best")
    assert best_checkpoint(run) == f"{run}/checkpoints/4"


def test_half_an_upload_is_not_taken(run, store):
    saved(run, 2, 4)
    store.rm_file(f"{stores.MEMORY}/checkpoints/4/{CHECKSUMS}")
    with following(run):
        assert in_stage(run) == ["2"]
        manager = CheckpointManager(run, keep_last=1)
        save(manager, 5)
        manager.close()
    assert steps(run) == ([5], [5])  # what was left of the other one is gone


@pytest.mark.parametrize("how", ["changed", "gone", "no checksums"])
def test_what_is_damaged_in_the_store_is_not_taken(run, store, how, capsys):
    saved(run, 2, 4)
    path = f"{stores.MEMORY}/checkpoints/4/params/x/0"
    if how == "gone":
        store.rm_file(path)
    elif how == "changed":
        store.pipe_file(path, bytes(len(store.cat(path))))
    else:
        store.pipe_file(f"{stores.MEMORY}/checkpoints/4/{CHECKSUMS}", b"[]")
    with pytest.raises(UserError, match="checkpoints/4/(params/x/0|checksums.json) is "):
        checkpoints.bring(run)
    with following(run):
        assert in_stage(run) == ["2"]
    assert "WARNING: memory://bucket/run/checkpoints/4/" in capsys.readouterr().err
    for name in list(store.store):
        if name.endswith("params/x/0"):
            store.rm_file(name)
    shutil.rmtree(run)
    with (
        pytest.raises(UserError, match="no checkpoint of memory://bucket/run is intact"),
        following(run),
    ):
        pass


def test_evaluation_fetches_no_optimizer_and_training_the_rest(run):
    saved(run, 2, 4)
    assert one_checkpoint(run) == f"{run}/checkpoints/4"
    assert sorted(os.listdir(f"{run}/checkpoints/4")) == [CHECKSUMS, "model", "params"]
    checkpoints.bring(f"{run}/checkpoints", "all")
    assert [os.path.basename(c) for c in find_checkpoints(run)] == ["2", "4"]
    with following(run):
        assert intact.problems(f"{run}/checkpoints/4") == []
        assert intact.newest(run) == f"{run}/checkpoints/4"
    shutil.rmtree(run)
    checkpoints.bring(run, "2,7")
    assert in_stage(run) == ["2"]
    checkpoints.bring(f"{run}/checkpoints/4")
    assert in_stage(run) == ["2", "4"]


def test_what_came_before_a_kill_does_not_come_again(run, monkeypatch):
    saved(run, 2)
    get, names = remote.download, []

    def some(where, folder, entries):
        names.append(sorted(entries))
        get(where, folder, dict(sorted(entries.items())[:3]))
        raise KeyboardInterrupt

    monkeypatch.setattr(remote, "download", some)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.bring(run)
    assert in_stage(run) == []
    monkeypatch.setattr(remote, "download", lambda w, f, e: names.append(sorted(e)) or get(w, f, e))
    checkpoints.bring(run)
    assert names[1] == names[0][3:] and in_stage(run) == ["2"]


def test_a_failed_upload_is_made_up_for_by_the_next_start(run, store, monkeypatch):
    saved(run, 2)
    with following(run):
        manager = CheckpointManager(run)
        save(manager, 4)
        manager.wait()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store, "put_file", lambda *_, **__: 1 / 0)
            save(manager, 6)
            said = "step 6 could not be uploaded: .* tried 3 times .division.* the same command"
            with pytest.raises(UserError, match=said):
                manager.wait()
        manager.close()
    assert steps(run)[0] == [2, 4] and in_stage(run) == ["2", "4", "6"]
    write_atomically(f"{run}/metrics.jsonl", "later\n")  # nor did this go up
    remote.write(f"{stores.MEMORY}/results.jsonl", b"")
    with following(run):
        assert steps(run)[0] == [2, 4, 6]
        assert intact.newest(run).endswith("/6")
    assert store.cat(f"{stores.MEMORY}/metrics.jsonl") == b"later\n"


def test_a_store_that_vanishes_is_an_error_and_rights_are_tried_first(run, store, monkeypatch):
    with following(run):
        manager = CheckpointManager(run)

        def gone(*_, **__):
            raise FileNotFoundError("bucket")

        with pytest.MonkeyPatch.context() as patch:
            for name in ("put_file", "pipe_file", "find", "cat_file"):
                patch.setattr(store, name, gone)
            save(manager, 2)
            with pytest.raises(UserError, match="could not be uploaded: .* no bucket memory://b"):
                manager.close()
    denied = lambda *_, **__: (_ for _ in ()).throw(PermissionError("no"))  # noqa: E731
    monkeypatch.setattr(store, "pipe_file", denied)
    with pytest.raises(UserError, match="run/.trial-.*: no rights to write there"), following(run):
        pytest.fail("it begins all the same")


def test_two_machines_that_train_one_run_are_found_out(run, store):
    with following(run):
        manager = CheckpointManager(run)
        save(manager, 2)
        manager.wait()
        store.cp_file(f"{stores.MEMORY}/checkpoints/2/{CHECKSUMS}",
                      f"{stores.MEMORY}/checkpoints/3/{CHECKSUMS}")  # fmt: skip
        save(manager, 4)
        with pytest.raises(UserError, match="another process trains memory://bucket/run, too"):
            manager.close()


def test_another_checkpoint_of_the_same_step_is_kept(run, capsys):
    saved(run, 2)
    other = CheckpointManager(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploads.Uploads, "start", lambda *_: None)
        params = {"x": PARAMS["x"] + 1}
        files = {"model.json": DESCRIPTION.to_json()}
        other.save(params, STATE, Progress(2, {}, 0, {}), files)
        other.close()
    checkpoints.bring(run)
    assert os.path.isdir(f"{run}/set_aside/2") and "WARNING" in capsys.readouterr().err
    content = remote.read(f"{stores.MEMORY}/checkpoints/2/{CHECKSUMS}")
    with open(f"{run}/checkpoints/2/{CHECKSUMS}", "rb") as file:
        assert file.read() == content


def test_processes_upload_their_parts_and_the_first_says_that_all_is_there(run, store, tmp_path):
    saved(run, 2)
    whole = remote.read(f"{stores.MEMORY}/checkpoints/2/{CHECKSUMS}")
    checkpoints.bring_newest(run)
    folder = f"{run}/checkpoints/2"
    store.rm(f"{stores.MEMORY}/checkpoints/2", recursive=True)
    sums = json.loads(whole)
    shard = "params/x/0"
    first, second = (checkpoints.Place(i, 2, 77) for i in (0, 1))
    with pytest.raises(UserError, match=re.escape("/2/.part-77-1.json has not come")):
        checkpoints.push(folder, first, stop=lambda: True)
    assert steps(run) == ([], [2])
    write_atomically(f"{folder}/{CHECKSUMS}", json.dumps({shard: sums[shard]}))
    with pytest.raises(UserError, match="has not come"):  # not from process 0, that is
        checkpoints.push(folder, second, stop=lambda: True)
    rest = {name: value for name, value in sums.items() if name != shard}
    write_atomically(f"{folder}/{CHECKSUMS}", json.dumps(rest))
    checkpoints.push(folder, first, stop=lambda: True)
    assert json.loads(remote.read(f"{stores.MEMORY}/checkpoints/2/{CHECKSUMS}")) == sums
    assert not [name for name in store.store if ".part" in name]
