"""What a run tells: `metrics.jsonl` across interruptions, the console line, phases."""

import contextlib
import json
import os
import threading
import types

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from xl_flax.data.stream import Rows
from xl_flax.errors import UserError
from xl_flax.objectives.base import Mean
from xl_flax.objectives.mlm import MaskedLM
from xl_flax.training.feeds import Feed
from xl_flax.training.logging import METRICS_FILE, Logger, console_line, earlier_lines

SPEED = {"tokens_per_second": 1e4, "input_wait": 0.0, "skipped": 0}


def test_lines_of_a_run_that_was_cut_off_are_dropped_and_others_stay(tmp_path):
    lines = [{"step": step, "time": 0.1, "loss": 1 / 3, "é": "ü"} for step in (1, 2, 3)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (tmp_path / METRICS_FILE).write_text(text + '{"step": 4, "lo')
    assert "".join(earlier_lines(str(tmp_path), 2)) == "".join(text.splitlines(True)[:2])
    assert earlier_lines(str(tmp_path), -1) == []


def test_a_file_that_is_gone_is_said(tmp_path, capsys):
    assert earlier_lines(str(tmp_path), -1) == [] and not capsys.readouterr().err
    assert earlier_lines(str(tmp_path), 5) == []
    assert "metrics.jsonl is gone: its curves begin after step 5" in capsys.readouterr().err


def test_evaluations_that_are_made_again_are_dropped(tmp_path):
    lines = [{"step": 1, "eval/m": 1.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval/m": 1.0}]
    (tmp_path / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(earlier_lines(str(tmp_path), 2)) == 3
    assert [json.loads(x) for x in earlier_lines(str(tmp_path), 2, evaluated=False)] == lines[:2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[]", "line 2: no JSON object; delete this line"),
        (b"{}", "line 2: no metrics of a step; delete this line"),
        (b'{"step": "3"}', "line 2: no metrics of a step"),
        (b'{"step": true}', "line 2: no metrics of a step"),
        (b'{"step": \xe9}', "line 2: "),
        (b"\0" * 8, "line 2: "),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path, line, message):
    path = tmp_path / METRICS_FILE
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    before = path.read_bytes()
    with pytest.raises(UserError, match=message):
        earlier_lines(str(tmp_path), 3)
    assert path.read_bytes() == before


def test_a_fifo_is_no_file_of_metrics(tmp_path):
    os.mkfifo(tmp_path / METRICS_FILE)
    with pytest.raises(UserError, match=r"metrics\.jsonl is no regular file"):
        earlier_lines(str(tmp_path), 3)


def test_phases_have_lines_of_their_own(tmp_path):
    logger = Logger(str(tmp_path), -1, [], True)
    logger.write_phases(6, {"mlm/mixture": "even", "mlm/phase": 0.3, "own/phase": ("a", 1)})
    logger.close()
    line = json.loads((tmp_path / METRICS_FILE).read_text())
    assert line.pop("time") and line == {
        "step": 6,
        "phases": {"mlm/mixture": "even", "mlm/phase": 0.3, "own/phase": "('a', 1)"},
    }


def test_tensorboard_hides_what_a_run_that_was_cut_off_wrote(tmp_path):
    logger = Logger(str(tmp_path), 4, [], True)
    logger.write(5, {"loss": 1.5, "eval/m": 2.0})
    logger.write_phases(6, {"mlm/phase": 0.3})
    logger.close()
    (file,) = (tmp_path / "metrics").iterdir()
    content, events = file.read_bytes(), []
    while content:  # length, checksum, event, checksum
        size = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    assert [event.step for event in events] == [0, 5, 5, 5, 5, 6]
    assert events[2].session_log.status == SessionLog.START
    tags = [value.tag for event in events for value in event.summary.value]
    assert tags == ["loss", "eval/m", "mlm/phase/text_summary"]
    assert events[3].summary.value[0].simple_value == 1.5
    assert events[5].summary.value[0].tensor.string_val == [b"0.3"]


def test_a_full_disk_is_an_error_and_no_thread_hangs_or_dies(small_disk, capfd):
    before = threading.active_count()
    logger = Logger(str(small_disk), -1, [], True)
    logger.write(1, {"loss": 1.0})
    with contextlib.suppress(OSError), open(small_disk / "others", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(OSError, match="No space left"):
        for step in range(2, 1000):
            logger.write(step, {f"metric {i}": 1.0 for i in range(20)})
    logger.close()
    assert threading.active_count() == before
    assert capfd.readouterr().err == ""


def feed(**metrics):
    made = Feed.__new__(Feed)
    made.objective = types.SimpleNamespace(metrics={"loss": Mean("loss")} | metrics)
    return made


def test_changes_are_those_of_the_batch_that_has_them_first():
    rows, sizes = Rows([(0, "a"), (40, "b")], 64), [(0, 16), (65, 32)]
    made, changes = feed(), {}
    made.objective = MaskedLM(rows, sizes, rate=[(0, 0.15), (64, 0.3)])
    for made.rows in (0, 16, 32, 48, 64, 80, 112, 144):
        changes[made.rows] = made.changes()
    assert {rows: change for rows, change in changes.items() if change} == {
        32: {"mixture": "b"},
        64: {"phase": 0.3},
        80: {"batch_size": 32},
    }


def test_a_batch_that_shrinks_changes_once():
    made = feed()
    made.objective = MaskedLM(Rows("a", 64), [(0, 16), (25, 2), (55, 8)])
    changes = {}
    for made.rows in (0, 16, *range(32, 56, 2), 56, 64, 72):
        changes[made.rows] = made.changes()
    changes = {rows: change for rows, change in changes.items() if change}
    assert changes == {32: {"batch_size": 2}, 56: {"batch_size": 8}}


def test_metrics_of_ones_own_are_on_the_console():
    own = {"accuracy": Mean("c"), "margin": Mean("m"), "fill": Mean("t", on_console=False)}
    values = SPEED | {"loss": 2.0, "learning_rate": 1e-3, "grad_norm": 1.0}
    values |= {"a/loss": 1.5, "a/accuracy": 0.25, "a/margin": 0.125, "a/fill": 0.9, "b/loss": 0.5}
    alone = console_line(10, 100, values, {"a": feed(**own)}, 60)
    assert "loss 2.0000  acc 0.250  margin 0.125  lr 1.0e-03" in alone
    assert max(map(len, alone.splitlines())) <= 80 and alone.endswith("\n  ETA 0:01:00")
    both = console_line(10, 100, values, {"a": feed(**own), "b": feed()}, 60)
    assert "loss 2.0000  a 1.5000 acc 0.250 margin 0.125  b 0.5000  lr" in both
    skipped = console_line(10, 100, SPEED | {"skipped": 3}, {"a": feed(**own)}, 60)
    assert "loss" not in skipped and "skipped 3" in skipped
