"""Settings side by side: each with its own languages of training, all measured in one way."""

from pathlib import Path

import pytest

from xl_flax.errors import UserError
from xl_flax.evaluation import results, transfer
from xl_flax.evaluation.results import MACRO, OTHERS, Result, Source

SIGN = "tagging|data:pos/test|trained:{}/train|chosen:{}|version:0.3.0"


def write_run(
    folder, trained, values, text="pos_eng", chosen="last", control=None, step=10, unknown=None
):
    """A run whose results are by language; `control` is what "majority" has in English."""
    sign, found = SIGN.format(text, chosen), []
    for language, value in values.items():
        found.append(
            Result(
                "tagging", "pos/test", (language,), "f1", value, 5, sign,
                trained=language in trained, interval=(0.0, 1.0),
                unknown=((unknown or {}).get(language, 0.01),),
            )
        )  # fmt: skip
    results.write(str(folder / results.FILE), Source("checkpoints/10", step, id="x"), found)
    if control is not None:
        sign = results.of_model(SIGN.format(text, "-"), "majority")
        own = Result("tagging", "pos/test", ("eng",), "f1", control, 5, sign, interval=(0.0, 1.0))
        own = own.__class__(**vars(own) | {"model": "majority"})
        results.write(str(folder / results.FILE), Source("majority", 0, id=text), [own])
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    def make(name):
        (tmp_path / name).mkdir(parents=True)
        return tmp_path / name

    return make


def test_each_setting_has_its_own_gap(folder):
    values = {"eng": 0.9, "deu": 0.5, MACRO: 0.7, OTHERS: 0.5}
    runs = [
        write_run(folder("one/0"), {"eng"}, values),
        write_run(folder("one/1"), {"eng"}, values | {"deu": 0.7}, chosen="eval/f1"),
        write_run(folder("all/0"), {"eng", "deu"}, {"eng": 0.8, "deu": 0.8}, text="pos"),
    ]
    ((test, there),) = transfer.collect(runs).items()
    shown = transfer.shown(test, there)
    assert [line.split()[:2] for line in shown.splitlines()[3:5]] == [["eng", "*"], ["deu", "(*)"]]
    (gap,) = [line for line in shown.splitlines() if line.startswith("gap")]
    assert gap.split() == ["gap", "30.0", "±", "14.1"]
    assert "steps: one 10, 10; all 10" in shown


def test_languages_that_the_vocabulary_does_not_read_stand_apart(folder):
    values = {"eng": 0.9, "deu": 0.5, "hin": 0.1, "fra": 0.3, MACRO: 0.45, OTHERS: 0.3}
    runs = [
        write_run(folder("one/0"), {"eng"}, values, control=0.7, unknown={"hin": 0.4}),
        write_run(folder("two/0"), {"eng"}, values, control=0.7, unknown={"hin": 0.04}),
    ]
    ((test, there),) = transfer.collect(runs).items()
    lines = [line.rsplit(None, 3) for line in transfer.shown(test, there).splitlines()[3:-1]]
    assert [line[:3] for line in lines[:2]] == [["eng *", "90.0", "90.0"], ["deu", "50.0", "50.0"]]
    assert lines[2][:3] == ["fra", "30.0", "30.0"]
    assert lines[3][-3:] == ["56.7", "56.7", "70.0"]
    assert [line[-2:] for line in lines[4:6]] == [["40.0", "40.0"], ["50.0", "50.0"]]
    assert lines[6][-3:] == ["!", "10.0", "10.0"]


def test_two_ways_of_measuring_are_refused(folder):
    one = write_run(folder("a/0"), {"eng"}, {"eng": 0.9})
    other = write_run(folder("a/1"), {"eng"}, {"eng": 0.9}, text="other")
    with pytest.raises(UserError, match=r"pos/test: a was measured in two ways"):
        transfer.collect([one, other])


def test_controls_that_learnt_from_other_text_are_columns_of_their_own(folder):
    runs = [
        write_run(folder("a/0"), {"eng"}, {"eng": 0.9}, control=0.3),
        write_run(folder("b/0"), {"eng"}, {"eng": 0.9}, text="other", control=0.1),
    ]
    ((_, there),) = transfer.collect(runs).items()
    assert there.values["majority of pos_eng/train"]["eng"] == [0.3]
    assert there.values["majority of other/train"]["eng"] == [0.1]
    ((_, there),) = transfer.collect(runs[:1]).items()
    assert list(there.values) == ["a", "majority"]


def test_runs_without_results_are_left_out_and_the_last_evaluation_counts(folder, capsys):
    run = write_run(folder("a/0"), {"eng"}, {"eng": 0.5})
    write_run(Path(run), {"eng"}, {"eng": 0.6}, step=20)
    empty = folder("b/0")
    (empty / results.FILE).write_text("")
    ((_, there),) = transfer.collect([run, str(empty)]).items()
    assert there.values["a"]["eng"] == [0.6]
    # What was evaluated last counts, as the best checkpoint behind the last one.
    write_run(Path(run), {"eng"}, {"eng": 0.7}, step=15)
    ((_, there),) = transfer.collect([run]).items()
    assert there.values["a"]["eng"] == [0.7]
    assert "left out" in capsys.readouterr().err
    with pytest.raises(UserError, match="evaluate them first"):
        transfer.collect([str(empty)])
