import os

import pytest

from xl_flax.errors import UserError
from xl_flax.evaluation import compare, results
from xl_flax.evaluation.results import Result, Source


def write(run, values, step=10, center="none"):
    """Results of one layer: {(query, searched): value}."""
    sign = results.signature("retrieval", layer=3, center=center, similarity="cosine")
    os.makedirs(run, exist_ok=True)
    results.write(
        os.path.join(run, results.FILE),
        Source(f"{run}/checkpoints/{step}", step),
        [
            Result("retrieval", "ntrex/test", pair, "p@1", value, 100, sign, 3, similarity="cosine")
            for pair, value in values.items()
        ],
    )


SEED_0 = {("eng", "deu"): 0.4, ("deu", "eng"): 0.6, ("eng", "ita"): 0.1, ("deu", "ita"): 0.9}
SEED_1 = {("eng", "deu"): 0.7, ("ita", "eng"): 0.3, ("macro",): 0.9, ("eng", "macro"): 0.9}


def test_seeds_are_averaged_apart_for_seen_and_unseen_languages(tmp_path):
    for seed, values in enumerate((SEED_0, SEED_1)):
        write(f"{tmp_path}/mlm/{seed}", values)
    write(f"{tmp_path}/mlm/0", {("eng", "deu"): 0.0}, step=5)  # an earlier checkpoint
    write(f"{tmp_path}/mlm/1", {("eng", "deu"): 0.8}, center="test_mean")
    cells = compare.collect([f"{tmp_path}/mlm/{seed}" for seed in range(2)], ["deu"])
    assert cells == {
        ("mlm", "ntrex, seen", 3): pytest.approx([0.5, 0.7]),
        ("mlm", "ntrex, unseen", 3): pytest.approx([0.1, 0.3]),
        ("mlm, centred", "ntrex, seen", 3): pytest.approx([0.8]),
    }


def test_the_command_prints_a_table_and_draws(tmp_path, capsys):
    write(f"{tmp_path}/mlm/0", SEED_0)
    write(f"{tmp_path}/mlm/1", SEED_1)
    write(f"{tmp_path}/tlm/0", SEED_0)
    runs = [f"{tmp_path}/{run}" for run in ("mlm/0", "mlm/1", "tlm/0")]
    compare.main([*runs, "--seen=deu", "--layer=3", f"--plot={tmp_path}/plot.png"])
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


def test_a_run_without_results_is_named(tmp_path):
    with pytest.raises(UserError, match="mlm/7 has no results"):
        compare.collect([f"{tmp_path}/mlm/7"], ["deu"])


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
    *lines, _ = compare.report(cells, layers).splitlines()
    assert lines[-2].split() == ["mlm", "1", "30.0", "±", "14.1", "10.0", "2"]
    assert lines[-1].split() == ["tlm", "2", "50.0", "-", "1"]
    with pytest.raises(UserError, match="choose_on=ntrex: tlm have no results of it.*bible, ntrex"):
        compare.chosen_layers(cells, "ntrex")
