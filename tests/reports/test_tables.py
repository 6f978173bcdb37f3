"""Means over seeds by any fields; what must not be averaged; controls; languages and gaps."""

import os

import pytest
from written import labelled, pairs

from xl_flax.errors import UserError
from xl_flax.evaluation.results import MACRO, OTHERS
from xl_flax.reports import layers, records, views
from xl_flax.reports.records import Wanted
from xl_flax.reports.tables import make

SEED_0 = {("eng", "deu"): 0.4, ("deu", "eng"): 0.6, ("eng", "ita"): 0.1, ("deu", "ita"): 0.9}
SEED_1 = {("eng", "deu"): 0.7, ("ita", "eng"): 0.3, MACRO: 0.9, ("eng", MACRO): 0.9}
GROUPS = {"seen": ["deu"], "unseen": []}


@pytest.fixture
def read(tmp_path, capsys):
    """read(**how) -> records of the folder; what was said is in `read.notes`."""

    def collect(*folders, where=(), **how):
        collect.notes = []
        places = [str(tmp_path / name) for name in folders] or [str(tmp_path)]
        every = records.read(places, Wanted(**how), collect.notes.append)
        return records.select(every, where)

    return collect


def values(table):
    return {key: number.values for key, number in table.cells.items()}


def test_seeds_are_averaged_by_groups_of_languages_with_a_pivot(read, tmp_path):
    for seed, own in enumerate((SEED_0, SEED_1)):
        pairs(f"{tmp_path}/mlm/{seed}", own)
    pairs(f"{tmp_path}/mlm/0", {("eng", "deu"): 0.0}, step=5)  # an earlier checkpoint
    pairs(f"{tmp_path}/mlm/1", {("eng", "deu"): 0.8}, center="test_mean")
    every = read(pivot="eng", groups=GROUPS)
    table = make(every, ["setting", "center"], ["group"])
    assert values(table) == {
        (("mlm", "none"), ("seen",)): pytest.approx((0.5, 0.7)),
        (("mlm", "none"), ("unseen",)): pytest.approx((0.1, 0.3)),
        (("mlm", "test_mean"), ("seen",)): pytest.approx((0.8,)),
    }
    number = table.cells[("mlm", "none"), ("seen",)]
    assert number.mean == pytest.approx(0.6) and number.spread == pytest.approx(0.02**0.5)
    assert not make(every, ["setting", "center"], ["group"]).is_best(
        ("mlm", "none"), ("unseen",)
    )  # nothing to compare with


def test_other_pivots_groups_and_names_of_data(read, tmp_path):
    run = pairs(
        f"{tmp_path}/mlm/0", {("deu", "ita"): 0.1, ("fra", "deu"): 0.3, ("fra", "ita"): 0.9}
    )
    for name, value in (("a", 0.5), ("b", 0.7)):
        pairs(run, {("deu", "fra"): value}, data=f"ntrex_{name}/validation")
    groups = {"one": ["ita"], "two": ["fra"]}
    table = make(read(pivot="deu", groups=groups), ["data"], ["group"])
    assert values(table)[("ntrex/test",), ("one",)] == (0.1,)
    assert values(table)[("ntrex_a/validation",), ("two",)] == (0.5,)
    both = read(pivot="deu", groups=groups, data=[("ntrex_*", "others")])
    assert values(make(both, ["data"], ["group"]))[("others",), ("two",)] == pytest.approx((0.6,))
    with pytest.raises(UserError, match="--pivot=xyz: no result is of a pair"):
        read(pivot="xyz")


def test_a_language_that_all_pairs_have_is_the_pivot(read, tmp_path):
    own = {("eng", "deu"): 0.2, ("deu", "eng"): 0.4, ("ita", "eng"): 0.6}
    pairs(f"{tmp_path}/run", own | {MACRO: 0.4, ("eng", MACRO): 0.2, (MACRO, "eng"): 0.5})
    (table,) = views.by_language(read())
    assert {row[0]: n.mean for (row, _), n in table.cells.items()} == pytest.approx(
        {"deu": 0.3, "ita": 0.6}
    )


def test_what_was_measured_in_two_ways_is_no_mean(read, tmp_path):
    for layer, value in ((1, 0.2), (2, 0.4)):
        pairs(f"{tmp_path}/mlm/0", {MACRO: value}, layer=layer)
    with pytest.raises(UserError, match="mlm, ntrex/test.* layer 1 and 2: put layer into --rows"):
        make(read(), ["setting"], ["data"])
    table = make(read(), ["setting", "layer"], ["data"])
    assert values(table)[("mlm", 2), ("ntrex/test",)] == (0.4,)
    pairs(f"{tmp_path}/mlm/1", {MACRO: 0.3}, layer=1, length=64)
    with pytest.raises(UserError, match="length None and 64.*--where=length="):
        make(read(), ["setting", "layer"], ["data"])
    with pytest.raises(UserError, match="no field 'size'; there are setting, run, .*, length"):
        make(read(), ["size"], ["data"])


def test_the_last_step_counts_or_those_that_are_named(read, tmp_path):
    for step, value in ((5, 0.1), (10, 0.2), (15, 0.3)):
        pairs(f"{tmp_path}/run", {MACRO: value}, step=step)
    steps = lambda **how: [r.row.step for r in read(**how)]  # noqa: E731
    assert steps() == [15] and steps(steps="all") == [5, 10, 15] and steps(steps="5, 15") == [5, 15]
    with pytest.raises(UserError, match="--steps=7: there are no results of these"):
        read(steps="7")
    with pytest.raises(UserError, match="--steps=best: say"):
        read(steps="best")
    with pytest.raises(UserError, match="ntrex/test: .*with step 5 and 10: put step into"):
        make(read(steps="all"), ["setting"], ["data"])
    table = views.overview(read(steps="all"))
    assert table.row_fields == ("setting", "step") and len(table.rows) == 3
    assert table.is_best(("run", 15), table.columns[0]) and not table.is_best(
        ("run", 5), table.columns[0]
    )


def test_layers_are_chosen_on_other_text(read, tmp_path):
    for layer, dev, test in ((1, 0.5, 0.1), (2, 0.4, 0.9)):
        for seed in range(2):
            run = pairs(f"{tmp_path}/mlm/{seed}", {MACRO: dev}, data="a/validation", layer=layer)
            pairs(run, {MACRO: test + seed / 10}, data="b/test", layer=layer)
            pairs(
                run, {MACRO: 1 - dev}, data="a/validation", layer=layer, model="untrained*3#x",
                seeds=(1 - dev, 1 - dev),
            )  # fmt: skip
            pairs(run, {MACRO: 0.3}, data="b/test", layer=layer, model="untrained*3#x")
            pairs(run, {MACRO: 0.7}, data="b/test", layer=None, model="tf-idf")
    shown, note = layers.choose(read(), None)
    found = {(r.setting, r.layer) for r in shown}
    assert found == {("mlm", 1), ("untrained*3#x", 2), ("tf-idf", None)}
    assert note == "layers chosen on a/validation: mlm 1, untrained*3#x 2"
    table = make(shown, ["setting"], ["data"])
    assert values(table)[("mlm",), ("b/test",)] == pytest.approx((0.1, 0.2))
    assert values(table)[("untrained*3#x",), ("a/validation",)] == pytest.approx((0.6, 0.6))
    assert [row[0] for row in table.rows] == ["mlm", "untrained*3#x", "tf-idf"]
    for which, message in {
        "best:c/*": "there are no results of it; there are a/validation, b/test",
        "9": "no result is of this layer; there are 1, 2",
        "top": 'say a number, "all", or',
    }.items():
        with pytest.raises(UserError, match=f"--layer={which}".replace("*", ".")) as caught:
            layers.choose(read(), which)
        assert message in str(caught.value)
    assert len(layers.choose(read(), "all")[0]) == len(read())


def test_a_layer_that_some_models_lack(read, tmp_path):
    pairs(f"{tmp_path}/deep/0", {MACRO: 0.5}, layer=8)
    pairs(f"{tmp_path}/flat/0", {MACRO: 0.4}, layer=4)
    shown, note = layers.choose(read(), "8")
    assert [r.setting for r in shown] == ["deep"] and note == "layer 8; without flat, which lack it"


def test_controls_stand_once_unless_they_differ(read, tmp_path):
    for setting in ("mlm", "tlm"):
        for seed in range(2):
            run = pairs(f"{tmp_path}/{setting}/{seed}", {MACRO: 0.1})
            pairs(run, {MACRO: 0.2}, model="untrained", seeds=(0.19, 0.21))
            pairs(run, {MACRO: 0.3}, model="tf-idf", layer=None, of="text 1")
    table = make(read(), ["setting"], ["data"])
    assert values(table)[("untrained",), ("ntrex/test",)] == (0.19, 0.21)
    assert values(table)[("tf-idf",), ("ntrex/test",)] == (0.3,) and not read.notes
    pairs(f"{tmp_path}/tlm/0", {MACRO: 0.4}, model="tf-idf", layer=None, of="text 1")
    pairs(f"{tmp_path}/tlm/0", {MACRO: 0.25}, model="untrained", seeds=(0.25, 0.25))
    names = [row[0] for row in make(read("tlm", "mlm"), ["setting"], ["data"]).rows]
    assert {"untrained of mlm", "untrained of tlm", "tf-idf of mlm"} < set(names)
    assert any("tf-idf differs between tlm, mlm: their text" in note for note in read.notes)


def test_of_two_versions_the_newer_one_counts_which_is_said(read, tmp_path, monkeypatch):
    import xl_flax

    for version, value in (("0.10.0", 0.9), ("0.9.1", 0.2)):
        monkeypatch.setattr(xl_flax, "__version__", version)
        pairs(f"{tmp_path}/run", {MACRO: value})
    (record,) = read()
    assert record.row.value == 0.9
    assert any("left out are 1 results of version 0.9.1, which a newer" in n for n in read.notes)


def test_one_signature_with_two_values_is_said(read, tmp_path, capsys):
    run = pairs(f"{tmp_path}/run", {MACRO: 0.5})
    other = pairs(f"{tmp_path}/other", {MACRO: 0.6})
    path = f"{run}/results.jsonl"
    with open(path, "a") as file, open(f"{other}/results.jsonl") as theirs:
        file.write(theirs.read().replace(str(tmp_path / "other"), str(tmp_path / "run")))
    with pytest.raises(UserError, match="line 2: is not what was written"):  # it was edited
        read("run")
    os.remove(path)
    for folder, value in (("run", 0.5), ("copy", 0.6)):
        pairs(f"{tmp_path}/{folder}", {MACRO: value}, of="a checkpoint")
    with open(path, "a") as file, open(f"{tmp_path}/copy/results.jsonl") as theirs:
        file.write(theirs.read())
    with pytest.raises(UserError, match="run: there are no results; evaluate"):
        read("run")
    assert "there are different values, left out is step 10, retrieval" in capsys.readouterr().err


def test_what_is_chosen_must_be_there(read, tmp_path):
    pairs(f"{tmp_path}/run", {MACRO: 0.5})
    assert read(where=[("data", "ntrex*"), ("data", "other"), ("metric", "p@1")][:1])
    for where, message in {
        ("metric", "f1"): "--where=metric=f1: no result has this metric; there are p@1",
        ("colour", "red"): "no field 'colour'; there are setting",
    }.items():
        with pytest.raises(UserError, match=message):
            read(where=[where])
    with pytest.raises(UserError, match="no results.jsonl is there; evaluate first"):
        (tmp_path / "empty").mkdir()
        read("empty")
    with pytest.raises(UserError, match="nowhere is no folder"):
        read("nowhere")


# ---- Labelled tests


def by_language(every):
    (table,) = views.by_language(every)
    return table


def test_each_setting_has_its_own_gap(read, tmp_path):
    own = {"eng": 0.9, "deu": 0.5, MACRO: 0.7, OTHERS: 0.5}
    labelled(f"{tmp_path}/one/0", {"eng"}, own)
    labelled(f"{tmp_path}/one/1", {"eng"}, own | {"deu": 0.7}, chosen="eval/f1")
    labelled(f"{tmp_path}/all/0", {"eng", "deu"}, {"eng": 0.8, "deu": 0.8}, text="pos")
    table = by_language(read())
    assert [row[0] for row in table.rows] == ["deu", "eng", "mean", "mean of others", "gap"]
    assert table.marks == {("eng",): "*", ("deu",): "(*)"}
    assert table.cells[("gap",), ("one",)].values == pytest.approx((0.4, 0.2))
    assert (("gap",), ("all",)) not in table.cells
    assert not table.is_best(("gap",), ("one",)) and table.is_best(("eng",), ("one",))


def test_languages_that_the_vocabulary_does_not_read_stand_apart(read, tmp_path):
    own = {"eng": 0.9, "deu": 0.5, "hin": 0.1, "fra": 0.3, MACRO: 0.45, OTHERS: 0.3}
    labelled(f"{tmp_path}/one/0", {"eng"}, own, control=0.7, unknown={"hin": 0.4})
    labelled(f"{tmp_path}/two/0", {"eng"}, own, control=0.7, unknown={"hin": 0.04})
    table = by_language(read())
    assert [row[0] for row in table.rows] == [
        *("eng", "deu", "fra", "mean", "mean of others", "gap", "hin")
    ]
    assert table.marks["hin",] == "!"
    assert table.cells[("mean",), ("one",)].mean == pytest.approx((0.9 + 0.5 + 0.3) / 3)
    assert table.cells[("mean of others",), ("two",)].mean == pytest.approx(0.4)
    assert table.cells[("mean",), ("majority",)].values == (0.7,)
    assert "in no mean" in " ".join(table.notes)


def test_two_ways_of_labelling_are_refused(read, tmp_path):
    labelled(f"{tmp_path}/a/0", {"eng"}, {"eng": 0.9, "deu": 0.1})
    labelled(f"{tmp_path}/a/1", {"eng"}, {"eng": 0.9, "deu": 0.1}, text="other")
    with pytest.raises(UserError, match="trained pos_eng/train and other/train"):
        by_language(read())


def test_controls_that_learnt_from_other_text_are_columns_of_their_own(read, tmp_path):
    labelled(f"{tmp_path}/a/0", {"eng"}, {"eng": 0.9, "deu": 0.5}, control=0.3)
    labelled(f"{tmp_path}/b/0", {"eng"}, {"eng": 0.9, "deu": 0.5}, text="other", control=0.1)
    table = by_language(read())
    assert table.cells[("eng",), ("majority of pos_eng/train",)].values == (0.3,)
    assert table.cells[("eng",), ("majority of other/train",)].values == (0.1,)
    assert [column[0] for column in by_language(read("a")).columns] == ["a", "majority"]
