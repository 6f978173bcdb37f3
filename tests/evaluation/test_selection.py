"""A checkpoint is chosen by validation text, and never by a test."""

import os

import pytest
from written import pairs

from xl_flax.errors import UserError
from xl_flax.evaluation import selection
from xl_flax.evaluation.results import MACRO
from xl_flax.reports import records
from xl_flax.reports.records import Wanted


@pytest.fixture
def run(tmp_path):
    """Step 10 has the lowest loss, step 5 the best layer of retrieval."""
    run = str(tmp_path / "runs" / "a")
    for step, loss, found in ((5, 3.0, (0.2, 0.9)), (10, 2.0, (0.5, 0.5)), (15, 2.5, (0.8, 0.1))):
        pairs(run, {MACRO: loss, "deu": 0.0}, step=step, data="m/validation", metric="loss")
        for layer, value in enumerate(found, 1):
            pairs(run, {MACRO: value}, step=step, data="r/validation", layer=layer)
        pairs(run, {MACRO: step / 100}, step=step, data="r/test", layer=1)
        os.makedirs(f"{run}/checkpoints/{step}")
    return run


def refuse(_, error):
    raise error


def test_the_best_of_each_run_is_taken(run, capsys):
    checkpoints = [f"{run}/checkpoints/{step}" for step in (5, 10, 15)]
    homes = dict.fromkeys(checkpoints, run)
    for text, step in {"best:loss:m/validation": 10, "best:p@1:r/validation": 5}.items():
        assert selection.select(checkpoints, homes, text, refuse) == [f"{run}/checkpoints/{step}"]
        assert f"selected: {run}/checkpoints/{step} (" in capsys.readouterr().out
    more = f"{run}/checkpoints/20"
    homes |= {more: run}
    selection.select([*checkpoints, more], homes, "best:loss:m/validation", refuse)
    assert "1 checkpoints have no results" in capsys.readouterr().out
    shown = records.read([run], Wanted(steps="best:loss:m/validation"), print)
    assert {record.row.step for record in shown} == {10}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best:p@1:r/test", "r/test is no validation split. Who chooses by a test has tuned on it"),
        ("best:p@1:r/train", "no validation split.*choose by r/validation"),
        ("best:p@1", "write best:METRIC:DATA"),
        ("last:5", "write best:METRIC:DATA"),
        ("best:f1:m/validation", "has no f1 on m/validation.* are loss:m/validation, p@1:r/val"),
    ],
)
def test_a_test_is_refused_with_a_reason(run, text, message):
    with pytest.raises(UserError, match=message):
        selection.select([f"{run}/checkpoints/5"], {f"{run}/checkpoints/5": run}, text, refuse)


def test_a_run_without_such_results_does_not_stop_the_others(run, tmp_path):
    other, failed = str(tmp_path / "other"), []
    homes = {f"{place}/checkpoints/10": place for place in (other, run)}
    chosen = selection.select(
        [*homes], homes, "best:loss:m/validation", lambda *failure: failed.append(failure)
    )
    assert chosen == [f"{run}/checkpoints/10"]
    ((place, error),) = failed
    assert place == other and "no results on validation text" in str(error)
