"""Before the first step processes compare settings, code and data; what differs is named on all."""

import shutil
from pathlib import Path

import house
import processes

from xl_flax import cli
from xl_flax.parallel.agreement import _settings, differences


def test_differences_are_named_with_values_and_processes():
    facts = [{"a": "1", "b": "x"}, {"a": "2", "b": "x"}, {"a": "1", "b": "x", "c": "3"}]
    assert differences(facts) == [
        "a is 1 on processes 0 and 2, 2 on process 1",
        "c is missing on processes 0 and 1, 3 on process 2",
    ]
    assert differences([facts[0]] * 40) == []
    many = [{str(i): str(i + n) for i in range(9)} for n in range(40)]
    assert len(differences(many)) == 6 and differences(many)[-1] == "and 4 more differ"
    (line,) = differences([{"a": "0"}, *[{"a": "1"}] * 30])
    assert line.endswith("on processes 1, 2, 3, 4, 5, 6, 7 and 8, 22 more")


def test_long_values_are_shown_where_they_part():
    start = "x" * 500
    (line,) = differences([{"a": start + "one"}, {"a": start + "two"}])
    assert "one on process 0" in line and "two on process 1" in line and len(line) < 200


def test_gin_settings_are_read_one_by_one():
    text = "import a\n\n# Macros:\n# ====\nSTEPS = 6\n\n# A:\nA.list = \\\n    [1,\n     2]\n" + (
        "b/A.name = 'x = 1'\n"
    )
    assert _settings(text) == {"STEPS": "6", "A.list": "\\ [1, 2]", "b/A.name": "'x = 1'"}


def test_other_settings_and_other_code_are_named_on_all(data, tmp_path):
    shutil.copytree(Path(cli.ROOT, "xl_flax"), tmp_path / "xl_flax")
    (tmp_path / "gin").symlink_to(Path(cli.ROOT, "gin"))
    with open(tmp_path / "xl_flax" / "training" / "step.py", "a") as file:
        file.write("# another version\n")
    changed = ("env", f"PYTHONPATH={tmp_path}", *processes.python("train", *house.RUN))
    usual = (*processes.python("train", *house.RUN), "--gin.STEPS=8", "--gin.SEED=3")
    command = 'if [ "${@: -1}" = --process_id=1 ]; then exec CHANGED "$@"; else exec USUAL "$@"; fi'
    command = command.replace("CHANGED", " ".join(changed)).replace("USUAL", " ".join(usual))
    code, said = processes.finish(
        processes.start(data, 2, "bash", "-c", command, "bash", "--gin.SEED=4")
    )
    assert code == 1
    (first,), (second,) = (processes.errors(said[i]) for i in range(2))
    assert first == second
    assert "STEPS is 8 on process 0, 6 on process 1" in first
    assert "xl_flax/training/step.py is" in first and "SEED" not in first
