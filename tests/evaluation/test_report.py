import dataclasses

import pytest

from xl_flax.evaluation import report
from xl_flax.evaluation.results import MACRO, Result


def retrieval_results(data, pairs, layer, n=100, similarity="cosine"):
    rest = {
        "task": "retrieval", "data": data, "metric": "p@1", "layer": layer, "pooling": "mean",
        "signature": f"sign {data} {layer} {similarity}", "similarity": similarity,
    }  # fmt: skip
    made = [Result(languages=pair, value=value, n=n, **rest) for pair, value in pairs.items()]
    groups = {}
    for (query, searched), value in pairs.items():
        for group in ((MACRO,), (query, MACRO), (MACRO, searched)):
            groups.setdefault(group, []).append(value)
    return made + [
        Result(languages=group, value=sum(values) / len(values), n=len(values), **rest)
        for group, values in groups.items()
    ]


def cells(text):
    return [line.split() for line in text.splitlines()]


def test_the_matrix_shows_queries_down_and_searched_languages_across_in_the_best_layer():
    pairs = {("a", "b"): 0.25, ("b", "a"): 0.75}
    low = {pair: value / 10 for pair, value in pairs.items()}
    text = report.retrieval(
        retrieval_results("m/test", low, 0) + retrieval_results("m/test", pairs, 2)
    )
    found = cells(text)
    assert ["0", "5.0%"] in found and ["2", "*", "50.0%"] in found
    assert ["a", "·", "25.0", "25.0", "-"] in found and ["b", "75.0", "·", "75.0", "-"] in found
    assert "chance 1.00%" in text and "sign m/test 2 cosine" in text


def test_other_similarities_are_shown_by_language_beside_the_first():
    pairs = {("a", "b"): 0.25, ("b", "a"): 0.75}
    better = {("a", "b"): 0.5, ("b", "a"): 0.9}
    text = report.retrieval(
        retrieval_results("m/test", pairs, 2)
        + retrieval_results("m/test", better, 2, similarity="margin")
    )
    found = cells(text)
    assert ["layer", "cosine", "margin", "xSIM", "error"] in found
    assert ["2", "*", "50.0%", "70.0%", "30.0%"] in found
    assert ["a", "25.0", "75.0", "50.0", "90.0", "-"] in found
    assert ["macro", "50.0", "50.0", "70.0", "70.0", "-"] in found
    assert "sign m/test 2 margin" in text


def test_mixtures_of_pairs_become_one_line_each_with_the_shared_language_second():
    text = report.retrieval(
        retrieval_results("t_spa/test", {("eng", "spa"): 0.7, ("spa", "eng"): 0.5}, 1)
        + retrieval_results("t_amh/test", {("amh", "eng"): 0.1, ("eng", "amh"): 0.3}, 1, n=50)
        + retrieval_results("both", {("eng", "amh"): 0.3, ("eng", "spa"): 0.7}, 1)[2:]
    )
    found = cells(text)
    assert ["mixture", "pair", "n", "cosine", "→", "←", "unknown"] in found
    assert ["t_spa", "spa-eng", "100", "50.0", "70.0", "-"] in found
    assert ["t_amh", "amh-eng", "50", "10.0", "30.0", "-"] in found
    assert ["macro", "30.0", "50.0", "-"] in found
    assert "chance at most 2.00%" in text and "sign both 1 cosine" in text


def test_the_mining_table_takes_the_layer_that_is_best_on_dev():
    results = []
    for layer, dev, test in ((0, 0.3, 0.9), (1, 0.6, 0.5)):
        for languages in (("deu", "eng"), (MACRO,)):
            values = {
                "precision": 0.4,
                "recall": 0.7,
                "f1": test,
                "dev_f1": dev,
                "threshold": 1.0625,
            }
            results += [
                Result("mining", "m/test", languages, metric, value, 120, f"sign {layer}", layer)
                for metric, value in values.items()
                if languages != (MACRO,) or metric != "threshold"
            ]
    text = report.mining(results)
    found = cells(text)
    assert ["0", "30.0", "90.0"] in found and ["1", "*", "60.0", "50.0"] in found
    assert ["m/test", "deu-eng", "120", "40.0", "70.0", "50.0", "1.062", "-"] in found
    assert ["m/test", "macro", "40.0", "70.0", "50.0", "-"] in found
    assert text.endswith("sign 1")


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


def test_pairs_say_how_much_of_each_language_is_unknown():
    pairs = {("deu", "tha"): 0.25, ("tha", "deu"): 0.75}
    shares = {"deu": 0.0, "tha": 0.441, MACRO: 0.441}
    results = [
        dataclasses.replace(r, unknown=tuple(shares[x] for x in r.languages))
        for r in retrieval_results("m/test", pairs, 2)
    ]
    text = report.retrieval(results)
    assert ["deu", "·", "25.0", "25.0", "0.0%"] in cells(text)
    assert ["tha", "75.0", "·", "75.0", "44.1%!"] in cells(text)
    assert "scores say little: tha 44.1%" in text and "44.1%!" in report.plain(results)


@pytest.mark.parametrize("similarities", [("cosine",), ("cosine", "csls", "margin")])
def test_tables_of_many_languages_have_80_columns_and_details_have_each_pair(similarities):
    names = [f"l{i:02}" for i in range(26)]
    every = {(a, b): 0.5 for a in names for b in names if a != b}
    pairs = {pair: value for pair, value in every.items() if "l03" in pair}
    made = {"matrix": [], "pivot": [], "mixtures": []}
    for s in similarities:
        made["matrix"] += retrieval_results("m/test", every, 2, similarity=s)
        made["pivot"] += retrieval_results("m/test", pairs, 2, similarity=s)
        for x in names:
            both = {("eng", x): 0.5, (x, "eng"): 0.25}
            made["mixtures"] += retrieval_results(f"tatoeba_{x}/test", both, 2, similarity=s)
    for kind, results in made.items():
        whole = kind == "matrix"
        text, details = report.retrieval(results), report.retrieval_details(results)
        lines = [x for x in text.splitlines() if not x.startswith("sign ")]
        assert max(map(len, lines)) <= 80 and "l07" in text
        assert bool(details) == whole == ("in the file named below" in text)
        assert details.count("query") == len(similarities) * whole


def test_many_mined_pairs_are_shown_as_means():
    rest = {"task": "mining", "data": "m/test", "n": 50, "signature": "s", "layer": 1}
    for count, whole in ((10, True), (60, False)):
        pairs = [(f"l{i:02}", "eng") for i in range(count)]
        results = [
            Result(languages=languages, metric=metric, value=0.5, **rest)
            for languages in [*pairs, (MACRO,)]
            for metric in ("precision", "recall", "f1", "dev_f1", "threshold")
        ]
        assert ("l05-eng" in report.mining(results)) == whole
        assert ("l05-eng" in report.mining_details(results)) != whole
        assert max(map(len, report.mining(results).splitlines())) <= 80


def test_many_results_of_ones_own_are_shown_as_means():
    results = masked([f"l{i:02}" for i in range(60)]) + masked([MACRO])
    text = report.plain(results)
    assert "l07" not in text and "macro" in text and "244 results in all" in text
    assert max(map(len, text.splitlines())) <= 80
