"""Processes that train together learn what one does."""

import house
import processes
import pytest
from run_folders import lines_of

KEYS = ("loss", "grad_norm", "mlm/accuracy", "eval/all/loss")


@pytest.mark.slow
def test_two_and_four_processes_learn_as_one(data, run_here, monkeypatch):
    monkeypatch.chdir(data)
    run_here("train", [*house.RUN, "--gin.MODEL_DIR=one"])
    expected = lines_of(data / "one")
    assert expected[-1]["step"] == house.STEPS
    for count in (2, 4):
        flags = [*house.RUN, f"--gin.MODEL_DIR=run{count}"]
        code, said = processes.finish(
            processes.start(data, count, *processes.python("train", *flags))
        )
        assert code == 0, said
        assert "done: 6 steps" in said[0]
        assert not any("step" in said[number] for number in range(1, count))
        found = lines_of(data / f"run{count}")
        assert len(found) == len(expected)
        for line, other in zip(expected, found, strict=True):
            assert line.keys() == other.keys()
            for key in line.keys() & {*KEYS}:
                assert other[key] == pytest.approx(line[key], rel=2e-3), (count, line["step"], key)
