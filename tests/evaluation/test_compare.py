import dataclasses
import os

import pytest

from xl_flax.errors import UserError
from xl_flax.evaluation import compare, results
from xl_flax.evaluation.results import Result, Source


def write(run, values, step=10, center="none", metric="p@1", data="ntrex/test", of=None, **control):
    """Results of one layer: {(query, searched): value}."""
    sign = results.signature(metric, data=data, layer=3, center=center, similarity="cosine")
    about = {"similarity": "cosine", "layer": 3}
    if model := control.get("model"):
        sign, step = results.of_model(sign, model), 0
        about |= control
    os.makedirs(run, exist_ok=True)
    results.write(
        os.path.join(run, results.FILE),
        Source(model or f"{run}/checkpoints/{step}", step, id=of),
        [
            Result("retrieval", data, pair, metric, value, 100, sign, **about)
            for pair, value in values.items()
        ],
    )


SEEN = {"seen": ["deu"], "unseen": []}
SEED_0 = {("eng", "deu"): 0.4, ("deu", "eng"): 0.6, ("eng", "ita"): 0.1, ("deu", "ita"): 0.9}
SEED_1 = {("eng", "deu"): 0.7, ("ita", "eng"): 0.3, ("macro",): 0.9, ("eng", "macro"): 0.9}


def test_seeds_are_averaged_apart_for_seen_and_unseen_languages(tmp_path):
    for seed, values in enumerate((SEED_0, SEED_1)):
        write(f"{tmp_path}/mlm/{seed}", values)
    write(f"{tmp_path}/mlm/0", {("eng", "deu"): 0.0}, step=5)  # an earlier checkpoint
    write(f"{tmp_path}/mlm/1", {("eng", "deu"): 0.8}, center="test_mean")
    cells = compare.collect([f"{tmp_path}/mlm/{seed}" for seed in range(2)], SEEN)
    assert cells == {
        ("mlm", "ntrex, seen", 3, "p@1"): pytest.approx([0.5, 0.7]),
        ("mlm", "ntrex, unseen", 3, "p@1"): pytest.approx([0.1, 0.3]),
        ("mlm, centred", "ntrex, seen", 3, "p@1"): pytest.approx([0.8]),
    }


def test_the_command_prints_a_table_and_draws(tmp_path, capsys):
    write(f"{tmp_path}/mlm/0", SEED_0)
    write(f"{tmp_path}/mlm/1", SEED_1)
    write(f"{tmp_path}/tlm/0", SEED_0)
    runs = [f"{tmp_path}/{run}" for run in ("mlm/0", "mlm/1", "tlm/0")]
    compare.main(
        [*runs, "--group=seen=deu", "--group=unseen=", "--layer=3", f"--plot={tmp_path}/plot.png"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("  ")[0] == "setting"
    assert next(x for x in lines if x.startswith("mlm")).split() == [
        *("mlm", "3", "60.0", "±", "14.1", "20.0", "±", "14.1", "2")
    ]
    assert next(x for x in lines if x.startswith("tlm")).split() == [
        "tlm",
        "3",
        "50.0",
        "10.0",
        "1",
    ]
    assert os.path.getsize(tmp_path / "plot.png") > 1000


def test_another_pivot_and_groups_of_languages_by_split(tmp_path):
    run = f"{tmp_path}/mlm/0"
    write(run, {("deu", "ita"): 0.1, ("fra", "deu"): 0.3, ("fra", "ita"): 0.9})
    write(run, {("deu", "fra"): 0.5}, data="ntrex_two/validation")
    assert compare.collect([run], {"one": ["ita"], "two": ["fra"]}, "deu") == {
        ("mlm", "ntrex, one", 3, "p@1"): [0.1],
        ("mlm", "ntrex, two", 3, "p@1"): [0.3],
        ("mlm", "ntrex/validation, two", 3, "p@1"): [0.5],
    }
    assert ("mlm", "ntrex, one", 3, "p@1") not in compare.collect([run], {"two": ["fra"]}, "deu")


def test_measurements_in_two_ways_are_not_mixed(tmp_path, capsys):
    run = f"{tmp_path}/mlm/0"
    write(run, SEED_0)
    path = os.path.join(run, results.FILE)
    (row, *_) = results.read(path)
    sign = row.signature.replace("layer:3", "layer:3|length:64")
    other = Result("retrieval", "ntrex/test", ("eng", "deu"), "p@1", 0.2, 100, sign)
    other = dataclasses.replace(other, similarity="cosine", layer=3)
    results.write(path, Source(row.checkpoint, row.step), [other])
    with pytest.raises(UserError, match="ntrex/test was measured in two ways.*length:64"):
        compare.collect([run], SEEN)
    with pytest.raises(SystemExit):
        compare.main([run, "--layer=3", "--group=deu"])
    assert "write NAME=LANGUAGES" in capsys.readouterr().err


def test_the_steps_that_are_compared_are_named(tmp_path, capsys):
    runs = [f"{tmp_path}/mlm/{seed}" for seed in range(2)]
    for run in runs:
        write(run, SEED_0, step=1000)
    compare.main([*runs, "--layer=3"])
    assert capsys.readouterr().out.endswith("Of all runs step 1,000, the last in their results.\n")
    write(runs[1], SEED_0, step=2000)
    compare.main([*runs, "--layer=3"])
    assert "results of runs differ: mlm/0 1,000; mlm/1 2,000" in capsys.readouterr().out


def test_runs_that_were_measured_on_two_versions_of_a_text_are_not_mixed(tmp_path):
    runs = [f"{tmp_path}/{setting}/0" for setting in ("mlm", "tlm")]
    about = {"model": "tf-idf", "layer": None}
    for run, mark in zip(runs, "ab", strict=True):
        write(run, SEED_0)
        write(run, {("deu", "eng"): 0.3}, of=mark, **about)
    compare.collect(runs, SEEN)  # made anew, but the same
    write(runs[1], {("deu", "eng"): 0.4}, of="b", **about)
    with pytest.raises(UserError, match="tlm/0/results.*tf-idf of ntrex/test differs.*mlm/0"):
        compare.collect(runs, SEEN)


def test_a_run_without_results_is_named(tmp_path):
    with pytest.raises(UserError, match="mlm/7 has no results"):
        compare.collect([f"{tmp_path}/mlm/7"], SEEN)


def test_each_setting_is_shown_at_its_best_layer_on_other_data():
    cells = {
        compare.Cell(setting, data, layer): values
        for setting, data, layer, values in [
            ("mlm", "bible, seen", 1, [0.2, 0.4]),
            ("mlm", "bible, seen", 2, [0.1, 0.3]),
            ("mlm", "ntrex, seen", 1, [0.1]),
            ("mlm", "ntrex, seen", 2, [0.9]),
            ("tlm", "bible, seen", 1, [0.1]),
            ("tlm", "bible, seen", 2, [0.5]),
        ]
    }
    layers = compare.chosen_layers(cells, "bible")
    assert layers == {"mlm": 1, "tlm": 2}
    found = [line.split() for line in compare.report(cells, layers).splitlines()]
    assert ["mlm", "1", "30.0", "±", "14.1", "10.0", "2"] in found
    assert ["tlm", "2", "50.0", "-", "1"] in found
    with pytest.raises(UserError, match="choose_on=ntrex: tlm have no results of it.*bible, ntrex"):
        compare.chosen_layers(cells, "ntrex")


def test_settings_stand_above_their_controls_and_overlaps_have_no_verdict(tmp_path, capsys):
    pair = ("deu", "eng")
    for setting, values in {"mlm": (0.10, 0.12), "tlm": (0.11, 0.14), "all": (0.5, 0.52)}.items():
        for seed, value in enumerate(values):
            run = f"{tmp_path}/{setting}/{seed}"
            write(run, {pair: value})
            write(run, {pair: value / 2}, metric="p@1_unshared")
            write(run, {pair: 0.2}, model="untrained", seeds=(0.19, 0.21))
            write(run, {pair: 0.3}, model="tf-idf", layer=None)
    runs = [f"{tmp_path}/{s}/{seed}" for s in ("mlm", "tlm", "all") for seed in range(2)]
    compare.main(
        [
            *runs,
            "--group=seen=deu",
            "--group=unseen=",
            "--choose_on=ntrex",
            f"--plot={tmp_path}/plot.png",
        ]
    )
    text = capsys.readouterr().out
    found = [line.split() for line in text.splitlines()]
    assert ["mlm", "3", "11.0", "±", "1.4", "(-9.0)", "2"] in found
    assert ["untrained", "3", "20.0", "±", "1.4", "2"] in found
    assert ["tf-idf", "-", "30.0", "1"] in found
    assert "ntrex, seen: all > tf-idf > untrained > tlm ≈ mlm" in text
    assert ["mlm", "3", "5.5", "±", "0.7", "2"] in found  # no control of this is there
    write(f"{tmp_path}/one/0", {pair: 0.9})
    write(f"{tmp_path}/one/0", {pair: 0.1}, model="untrained", seeds=(0.1, 0.12))
    compare.main(
        [*runs[:2], f"{tmp_path}/one/0", "--group=seen=deu", "--group=unseen=", "--layer=3"]
    )
    text = capsys.readouterr().out
    assert "one ≈ tf-idf > untrained of mlm > mlm" in text
    assert any(line.startswith("untrained of one") for line in text.splitlines())
