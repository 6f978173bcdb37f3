import sys

import pytest

from xl_flax import progress as progress_lib
from xl_flax.progress import progress


def run(monkeypatch, pace):
    monkeypatch.setattr(progress_lib, "PACE", pace)
    with progress(1000, "reading", "lines") as advance:
        for _ in range(3):
            advance(100)


def test_logs_get_a_line_now_and_then_and_no_bar(monkeypatch, capsys):
    run(monkeypatch, 0.0)
    lines = capsys.readouterr().err.split("\n")
    assert lines[1].startswith("reading: 200 of 1,000 lines, ") and "\r" not in "".join(lines)
    run(monkeypatch, 60.0)
    assert capsys.readouterr().err == ""


def test_terminals_get_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run(monkeypatch, 0.0)
    assert "\r" in capsys.readouterr().err


def test_errors_pass_through(monkeypatch):
    with pytest.raises(ZeroDivisionError), progress(None, "reading", "lines"):
        raise ZeroDivisionError
