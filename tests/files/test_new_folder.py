"""Folders that are there whole or not at all, whoever was killed; locks; full disks."""

import errno
import os
import subprocess
import sys

import pytest

from xl_flax.errors import UserError
from xl_flax.files.disk import naming_full_disk
from xl_flax.files.folders import new_folder
from xl_flax.files.lock import locked


@pytest.fixture(scope="module")
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_the_killed_left_is_removed_or_put_back(tmp_path, dead):
    (tmp_path / f".a.partial-{dead}").mkdir()
    (tmp_path / f".a.old-{dead}").mkdir()
    (tmp_path / f".a.old-{dead}" / "whole").touch()
    alive = tmp_path / f".a.partial-{os.getppid()}"
    alive.mkdir()
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a"):
        raise ZeroDivisionError
    assert sorted(os.listdir(tmp_path)) == [alive.name, "a"]
    assert os.listdir(tmp_path / "a") == ["whole"]


def test_a_file_in_the_place_of_a_folder_is_replaced(tmp_path):
    (tmp_path / "a").write_text("")
    with new_folder(tmp_path / "a") as folder:
        open(os.path.join(folder, "b"), "w").close()
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == ["b"]


def test_a_fifo_in_the_place_of_a_lock_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with (
        locked(tmp_path, "busy"),
        pytest.raises(UserError, match="^busy$"),
        locked(tmp_path, "busy"),
    ):
        pass


def test_full_disks_are_named_once():
    with (
        pytest.raises(UserError, match=r"^the disk of /x is full: the model, which needs 5.0 kB, "),
        naming_full_disk("/y", "the run"),
        naming_full_disk("/x", "the model", 5000),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(UserError, match=r"^the disk of /x is full: the model could not be"),
        naming_full_disk("/x", "the model"),
    ):
        raise RuntimeError("write() failed: No space left on device")
