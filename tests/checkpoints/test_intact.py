"""What lies in a checkpoint is what was written; what is not is found, named and put aside."""

import asyncio
import contextlib
import gc
import json
import os
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xl_flax.checkpoints import intact, load, manager
from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.manager import CheckpointManager, Progress
from xl_flax.checkpoints.threads import raise_only
from xl_flax.errors import UserError
from xl_flax.files import disk
from xl_flax.models.config import EncoderConfig

DESCRIPTION = Description(
    encoder=EncoderConfig(
        vocab_size=40, num_layers=2, width=16, num_heads=2, mlp_width=32, max_positions=16
    ),
    heads={},
    vocabulary="0" * 64,
    languages={},
    objectives={},
)
PARAMS = {"x": jnp.arange(300.0)}


def save(manager, step, params=PARAMS, **progress):
    files = {"model.json": DESCRIPTION.to_json(), "vocabulary.model": b"pieces"}
    manager.save(params, {"y": jnp.ones(3)}, Progress(step, {}, 0, {}, **progress), files)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run's folder with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("run")
    manager = CheckpointManager(str(folder))
    for step in (2, 4):
        save(manager, step)
    manager.close()
    return folder


@pytest.fixture
def run(saved, tmp_path):
    """A copy of it, to be damaged."""
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def files(checkpoint):
    return sorted(
        path for item in intact.ITEMS for path in (checkpoint / item).rglob("*") if path.is_file()
    )


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def fifo(path):
    path.unlink()
    os.mkfifo(path)


DAMAGE = [flip, truncate, Path.unlink, fifo]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_of_any_file_is_found_and_named(saved, tmp_path, damage):
    assert intact.problems(str(saved / "checkpoints/4")) == []
    names = [path.relative_to(saved / "checkpoints/4") for path in files(saved / "checkpoints/4")]
    assert len(names) > 10
    for name in names:
        checkpoint = tmp_path / "4"
        shutil.copytree(saved / "checkpoints/4", checkpoint)
        damage(checkpoint / name)
        (line,) = intact.problems(str(checkpoint))
        assert str(checkpoint / name) in line
        item = name.parts[0]
        assert intact.problems(str(checkpoint), [i for i in intact.ITEMS if i != item]) == []
        shutil.rmtree(checkpoint)


@pytest.mark.parametrize(
    "text", [None, b"", b"{", b"{}", b"[]", b"\xff", b'{"model/model.json": 5}']
)
def test_damaged_checksums_are_damage(run, text):
    path = run / "checkpoints/4/checksums.json"
    path.unlink()
    if text is not None:
        path.write_bytes(text)
    (line,) = intact.problems(str(run / "checkpoints/4"))
    assert "checksums.json" in line or "model.json is not what was written" in line


def array(checkpoint):
    return checkpoint / "params/x/0"


def half(checkpoint):
    shutil.rmtree(checkpoint / "params")
    (checkpoint / "checksums.json").unlink()
    (checkpoint / "model/model.json").unlink()


def emptied(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def a_file(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.write_text("?")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: flip(array(c)), r"params/x/0 is not what was written"),
        (lambda c: truncate(array(c)), r"params/x/0 is not what was written"),
        (lambda c: (c / "model/progress.json").unlink(), r"progress\.json is missing"),
        (half, r"model\.json is missing"),
        (emptied, r"4 is empty"),
        (a_file, r"4 is no folder"),
    ],
)
def test_training_goes_back_to_the_newest_intact_one(run, capsys, damage, message):
    damage(run / "checkpoints/4")
    before = sorted((run / "checkpoints/4").rglob("*"))
    assert intact.newest(str(run), move=False) == str(run / "checkpoints/2")
    assert sorted((run / "checkpoints/4").rglob("*")) == before
    capsys.readouterr()
    assert intact.newest(str(run)) == str(run / "checkpoints/2")
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 2 and "going on from" in said
    assert os.listdir(run / "checkpoints") == ["2"] and os.listdir(run / "set_aside") == ["4"]
    assert re.search(message, said)


def test_a_folder_that_was_renamed_is_put_aside(run, capsys):
    shutil.copytree(run / "checkpoints/2", run / "checkpoints/6")
    (run / "checkpoints/0040").mkdir()
    assert intact.newest(str(run)).endswith("/4")
    assert "the checkpoint of step 2, not 6" in capsys.readouterr().err
    assert sorted(os.listdir(run / "checkpoints")) == ["2", "4"]


def test_older_folders_that_are_incomplete_are_put_aside(run):
    (run / "checkpoints/3").mkdir()
    assert intact.newest(str(run)).endswith("/4")
    assert sorted(os.listdir(run / "checkpoints")) == ["2", "4"]


def test_where_none_is_intact_nothing_is_touched(run):
    for step in (2, 4):
        flip(array(run / f"checkpoints/{step}"))
    before = sorted(run.rglob("*"))
    with pytest.raises(UserError, match=r"(?s)no checkpoint .*4/params.*2/params.*Nothing was"):
        intact.newest(str(run))
    assert sorted(run.rglob("*")) == before


def test_where_only_empty_folders_are_a_run_begins(tmp_path, capsys):
    assert intact.newest(str(tmp_path)) is None
    (tmp_path / "checkpoints/40/params").mkdir(parents=True)
    assert intact.newest(str(tmp_path)) is None
    assert "the run begins at step 0" in capsys.readouterr().err
    assert os.listdir(tmp_path / "checkpoints") == []


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("model/vocabulary.model", load.read_description),
        ("params/x/0", lambda path: load.load_params(path, PARAMS)),
    ],
)
def test_reading_names_the_damaged_file_and_the_newest_intact_checkpoint(run, name, read):
    newest = str(run / "checkpoints/4")
    flip(run / "checkpoints/4" / name)
    with pytest.raises(UserError, match=rf"4/{name} is not .* intact checkpoint is .*/2$"):
        read(newest)
    flip(run / "checkpoints/2" / name)
    with pytest.raises(UserError, match="none beside it is intact"):
        read(newest)


def test_an_older_version_s_checkpoint_is_read_with_a_word(run, capsys):
    checkpoint = run / "checkpoints/4"
    (checkpoint / "checksums.json").unlink()
    path = checkpoint / "model/model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    for _ in range(2):
        assert intact.newest(str(run)) == str(checkpoint)
    assert load.read_description(str(checkpoint)) == DESCRIPTION
    said = capsys.readouterr().err
    assert said.count("cannot be checked") == 1 and len(said.splitlines()) == 1
    shutil.rmtree(checkpoint / "optimizer")
    assert intact.newest(str(run)).endswith("/2")


def test_an_incomplete_checkpoint_is_left_out_with_a_word(run, capsys):
    half(run / "checkpoints/4")
    assert load.one_checkpoint(str(run)).endswith("/2")
    assert "4 is no complete checkpoint" in capsys.readouterr().err


def test_a_save_that_does_not_happen_is_an_error(run):
    (run / "checkpoints/1000").mkdir()
    manager = CheckpointManager(str(run))
    with pytest.raises(UserError, match=r"step 6 is older than that of step 1,000"):
        save(manager, 6)
    manager.close()


def test_every_save_is_confirmed(run):
    manager = CheckpointManager(str(run))
    save(manager, 6)
    manager._manager.wait_until_finished()
    shutil.rmtree(run / "checkpoints/6")
    with pytest.raises(UserError, match="checkpoints/6 was written, but is not there"):
        manager.wait()
    manager.close()


def test_what_was_deleted_is_known(tmp_path):
    manager = CheckpointManager(str(tmp_path), keep_last=1)
    for step in (1, 2, 3):
        save(manager, step, saved=list(range(1, step + 1)))
    manager.close()
    assert load.gone(str(tmp_path)) == load.gone(str(tmp_path / "checkpoints")) == [1, 2]
    assert load.gone(str(tmp_path / "checkpoints/3")) == []


def test_room_is_estimated_before_a_save(run, monkeypatch):
    manager = CheckpointManager(str(run))
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1000))
    with pytest.raises(
        UserError, match=r"no room in .*/checkpoints: the checkpoint of step 6 needs"
    ):
        save(manager, 6)
    manager.close()
    assert sorted(os.listdir(run / "checkpoints")) == ["2", "4"]


def test_a_full_disk_is_one_line_and_older_checkpoints_stay(small_disk, monkeypatch, capfd):
    monkeypatch.setattr(manager, "check_room", lambda *_: None)  # others fill the disk meanwhile
    checkpoints = CheckpointManager(str(small_disk))
    params = {"x": jnp.asarray(np.random.default_rng(0).standard_normal(250_000, np.float32))}
    save(checkpoints, 1, params)
    save(checkpoints, 2, params)
    save(checkpoints, 3, params)
    message = (
        r"disk of .*/checkpoints is full: the checkpoint of step 3, which needs 1\.0 MB, could"
    )
    with pytest.raises(UserError, match=message):
        checkpoints.wait()
    checkpoints.close()
    assert capfd.readouterr().err == ""
    assert intact.newest(str(small_disk)).endswith("/2")
    shutil.rmtree(small_disk / "checkpoints/1")
    checkpoints = CheckpointManager(str(small_disk))
    save(checkpoints, 3, params)
    checkpoints.close()
    assert sorted(os.listdir(small_disk / "checkpoints")) == ["2", "3"]


def test_a_save_that_cannot_even_begin_is_one_line(small_disk, monkeypatch, capfd):
    monkeypatch.setattr(manager, "check_room", lambda *_: None)
    checkpoints = CheckpointManager(str(small_disk))
    params = {f"x{number}": jnp.ones(5000) for number in range(50)}
    save(checkpoints, 1, params)
    checkpoints.wait()
    with open(small_disk / "others", "wb", buffering=0) as file:
        while shutil.disk_usage(small_disk).free:
            file.write(bytes(4096))
    with pytest.raises(UserError, match=r"checkpoints is full: the checkpoint of step 2, which"):
        save(checkpoints, 2, params)
        checkpoints.wait()
    with contextlib.suppress(UserError):
        checkpoints.close()
    assert capfd.readouterr().err == ""
    assert intact.newest(str(small_disk)).endswith("/1")


def test_what_fails_in_threads_is_not_logged_as_well(caplog):
    raise_only()
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    future.set_exception(OSError("No space left on device"))
    del future  # as Orbax does where another write failed first
    gc.collect()
    loop.close()
    assert not caplog.records


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "commit_success.txt"])
def test_what_orbax_keeps_beside_the_items_is_of_no_use(run, name, damage):
    damage(run / "checkpoints/4" / name)
    if damage is fifo:
        assert intact.newest(str(run)).endswith("/2")
        return
    assert intact.newest(str(run)).endswith("/4")
    manager = CheckpointManager(str(run))
    layout = (
        {"x": jax.ShapeDtypeStruct((300,), "float32")},
        {"y": jax.ShapeDtypeStruct((3,), "float32")},
    )
    np.testing.assert_array_equal(manager.restore(4, *layout)[0]["x"], PARAMS["x"])
    save(manager, 6)
    manager.close()
    assert intact.newest(str(run)).endswith("/6")
    (run / "checkpoints/6/_CHECKPOINT_METADATA").write_text("[]")
    with pytest.raises(UserError, match=r"_CHECKPOINT_METADATA is damaged .*delete it"):
        CheckpointManager(str(run))


def test_what_cannot_be_checked_may_be_damaged(run):
    checkpoint = run / "checkpoints/4"
    (checkpoint / "checksums.json").unlink()
    truncate(array(checkpoint))
    manager = CheckpointManager(str(run))
    layout = {"x": jax.ShapeDtypeStruct((300,), "float32")}
    with pytest.raises(
        UserError, match=r"4/params cannot be .* saved without checksums .* damaged"
    ):
        manager.restore(4, layout, {})
    with pytest.raises(UserError, match=r"2/params cannot be restored .* not those of this run"):
        manager.restore(2, {"z": layout["x"]}, {})
    manager.close()


def test_a_checkpoint_under_another_name_is_left_out_with_a_word(run, capsys):
    shutil.copytree(run / "checkpoints/2", run / "checkpoints/7")
    assert load.one_checkpoint(str(run)).endswith("/4")
    assert "7 is the checkpoint of step 2, under another name" in capsys.readouterr().err
