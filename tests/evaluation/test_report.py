import dataclasses

from xl_flax.evaluation import report
from xl_flax.evaluation.results import MACRO, Result


def cells(text):
    return [line.split() for line in text.splitlines()]


def masked(languages, unknown=None):
    values = {"loss": 2.0, "accuracy": 0.5, "unigram_loss": 6.0, "unigram_accuracy": 0.07}
    return [
        Result("masked_lm", "m/test", (language,), metric, value, 10, "s", unknown=unknown)
        for language in languages
        for metric, value in values.items()
    ]


def test_the_masked_table_sets_the_model_beside_the_baseline_and_unknown_pieces():
    found = masked(["deu"], (0.01,)) + masked(["tha"], (0.44,)) + masked([MACRO], (0.44,))
    text = report.masked_lm(found)
    assert ["deu", "2.000", "6.000", "50.0%", "7.0%", "10", "1.0%"] in cells(text)
    assert ["tha", "2.000", "6.000", "50.0%", "7.0%", "10", "44.0%!"] in cells(text)
    assert "where pieces are unknown, scores say little: tha 44.0%" in text
    assert "1.0%" not in text.split("say little")[1]


def test_many_results_of_ones_own_are_shown_as_means():
    results = masked([f"l{i:02}" for i in range(60)]) + masked([MACRO])
    text = report.plain(results)
    assert "l07" not in text and "macro" in text and "244 results in all" in text
    assert max(map(len, text.splitlines())) <= 80


def test_controls_are_lines_that_say_so():
    (result,) = [r for r in masked([MACRO]) if r.metric == "loss"]
    untrained = dataclasses.replace(result, model="untrained", value=3.0, seeds=(2.0, 3.0, 4.0))
    found = cells(report.plain([result, untrained]))
    assert ["m/test", "macro", "loss", "2.0000", "10"] in found
    assert ["m/test", "macro", "loss", "3.0000", "±", "1.0000", "10", "untrained"] in found
