"""What the cache command says of modules, files and disks that it cannot use."""

import os
import shutil
import subprocess
import sys

import pytest

from xl_flax.data import records
from xl_flax.data.stream import Rows
from xl_flax.errors import UserError

MODULES = {
    "raises": ("\n\nboom = 1 / 0\n", r" at \S+\.py, line 3: ZeroDivisionError: division by zero"),
    "exits": ("import sys\nsys.exit(3)\n", r" at \S+\.py, line 2: it ends the process, .* 3"),
    "syntax": ("x = 1\ndef f(:\n", r" at \S+\.py, line 2: SyntaxError: "),
    "import": ("import nowhere\n", r" at \S+\.py, line 1: ModuleNotFoundError: .*'nowhere'"),
    "nowhere": (None, r" \(No module named 'bad_\w+'\): is it on PYTHONPATH"),
}


@pytest.mark.parametrize("case", MODULES)
def test_a_task_module_that_cannot_be_imported(tmp_path, monkeypatch, case):
    from xl_flax.data.seqio_tasks import import_tasks  # late: it brings TensorFlow

    body, message = MODULES[case]
    name = f"bad_module_that_{case}"
    if body:
        (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=f"^cannot import task module '{name}'{message}"):
        import_tasks([name])


def test_a_fifo_or_a_folder_is_no_text(project, tmp_path):
    paths = {"fifo": str(tmp_path / "fifo.txt"), "folder": str(tmp_path / "folder.txt")}
    os.mkfifo(paths["fifo"])
    os.mkdir(paths["folder"])
    project.define(*(project.add(name, "xx", train=path) for name, path in paths.items()))
    with pytest.raises(UserError, match=r"fifo.txt is no regular file: task 'fifo', split 'train'"):
        project.run("fifo:train:32")
    with pytest.raises(UserError, match=r"folder.txt is a folder, where a file is expected: task"):
        project.run("folder:train:32")


def test_what_the_command_says_reaches_the_user_once(project, tmp_path, capfd, monkeypatch, opened):
    command = tmp_path / "command"
    command.write_text("#!/bin/sh\necho one line >&2\necho 'error: it rains' >&2\nexit 1\n")
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(command))
    cache = type(project.cache)(project.cache.directory, ["m"])
    with pytest.raises(UserError, match="^building the cache failed: it rains$"):
        opened(Rows("xx", 32), cache, 0, project.vocabulary, [])
    printed = capfd.readouterr().err
    assert "one line" in printed and "it rains" not in printed


def test_no_message_names_a_flag_that_other_commands_lack(project):
    project.define()
    with pytest.raises(UserError, match="name the module that defines it in Cache.task_mod") as e:
        project.run("xx:train:32")
    assert "--" not in str(e.value)


def test_a_full_disk_is_one_line_and_what_was_there_stays(project, pairs, monkeypatch):
    texts = project.file(*pairs(50, sides=1))
    project.define(*(project.add(name, name, train=texts) for name in ("xx", "yy")))
    project.run("xx:train:32")
    there = project.manifest("xx")
    with monkeypatch.context() as patch:
        usage = type(shutil.disk_usage("/"))(10**9, 10**9 - 1000, 1000)
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(UserError, match=r"^no room in \S+cache: the cache of yy .* needs "):
            project.run("yy:train:32")

    class Full(records.ArrayRecordWriter):
        def close(self):
            raise RuntimeError("write() failed: No space left on device; at byte 307200")

    monkeypatch.setattr(records, "ArrayRecordWriter", Full)
    message = r"^the disk of \S+cache is full: the cache of yy \(train\), which needs .* kB"
    with pytest.raises(UserError, match=message):
        project.run("yy:train:32")
    assert project.manifest("xx") == there
    assert not list(project.folder("yy").parent.iterdir())


def test_help_imports_nothing_that_takes_seconds():
    code = "import sys, xl_flax.cache, xl_flax.vocab; "
    code += "sys.exit(bool({'jax', 'tensorflow', 'numpy', 'grain'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
