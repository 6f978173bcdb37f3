import dataclasses
import itertools

import pytest

from xl_flax.evaluation import report_pairs as report
from xl_flax.evaluation.results import MACRO, Result


def retrieval_results(data, pairs, layer, n=100, similarity="cosine", **more):
    """Of each pair, and means over them."""
    rest = {
        "task": "retrieval", "data": data, "metric": "p@1", "layer": layer, "pooling": "mean",
        "signature": f"sign {data} {layer} {similarity}", "similarity": similarity,
    } | more  # fmt: skip
    made = [Result(languages=pair, value=value, n=n, **rest) for pair, value in pairs.items()]
    groups = {}
    for (query, searched), value in pairs.items():
        for group in ((MACRO,), (query, MACRO), (MACRO, searched)):
            groups.setdefault(group, []).append(value)
    return made + [
        Result(languages=group, value=sum(values) / len(values), n=len(values), **rest)
        for group, values in groups.items()
    ]


def controls_of(results, untrained=0.5):
    """The results with controls that have a half, a quarter and a tenth of their values."""
    shares = {"untrained": untrained, "tf-idf": 0.25, "length": 0.1}
    made = list(results)
    for model, share in shares.items():
        own = [r for r in results if model == "untrained" or r.layer == results[0].layer]
        for r in own:
            value = share * r.value
            seeds = (value - 0.01, value, value + 0.01) if model == "untrained" else None
            layer = r.layer if model == "untrained" else None
            signature = f"{r.signature} {model}" if layer is not None else f"sign {model}"
            about = {"value": value, "seeds": seeds, "layer": layer, "signature": signature}
            made.append(dataclasses.replace(r, model=model, **about))
    return made


def cells(text):
    return [line.split() for line in text.splitlines()]


PAIRS = {("a", "b"): 0.25, ("b", "a"): 0.75}


def test_every_layer_stands_beside_the_untrained_models_and_baselines_have_lines():
    low = {pair: value / 10 for pair, value in PAIRS.items()}
    results = controls_of(
        retrieval_results("m/test", low, 0) + retrieval_results("m/test", PAIRS, 2)
    )
    text = report.retrieval(results)
    found = cells(text)
    assert ["layer", "P@1", "untrained"] in found
    assert ["0", "5.0", "2.5", "±", "1.0"] in found
    assert ["2", "50.0", "*", "25.0", "±", "1.0", "*"] in found
    assert ["tf-idf", "1.2"] in found and ["length", "0.5"] in found
    assert ["a-b", "100", "25.0", "75.0", "25.0", "1.2", "0.5", "-"] in found
    assert "chance 1.00%" in text and "sign m/test 2 cosine" in text
    assert "sign m/test 2 cosine untrained" in text and "sign tf-idf" in text


def test_the_untrained_models_layer_is_chosen_as_the_checkpoints_is():
    low = {pair: value / 10 for pair, value in PAIRS.items()}
    results = retrieval_results("m/test", low, 0) + retrieval_results("m/test", PAIRS, 2)
    for layer, values in ((0, PAIRS), (2, low)):
        results += retrieval_results("m/test", values, layer, model="untrained", seeds=(0.1, 0.3))
    text = report.retrieval(results)
    assert "layer 2 (untrained: 0)" in text
    assert ["a-b", "100", "25.0", "75.0", "50.0", "-"] in cells(text)


@pytest.mark.parametrize("left", [100, 60])
def test_unshared_has_a_line_where_queries_were_left_out(left):
    more = {"metric": "p@1_unshared", "n": left}
    results = retrieval_results("m/test", PAIRS, 0) + retrieval_results("m/test", PAIRS, 0, **more)
    text = report.retrieval(results)
    assert (["unshared", "60", "25.0", "75.0"] in cells(text)) == (left == 60)
    assert ("no line for unshared" in text) == (left == 100)


def by_layers(data, best, pairs=PAIRS, **more):
    """Results of three layers, of which one is ten times as good as the others."""
    made = []
    for layer in range(3):
        own = {pair: value / (1 if layer == best else 10) for pair, value in pairs.items()}
        made += retrieval_results(data, own, layer, **more)
    return made


UNTRAINED = {"model": "untrained", "seeds": (0.1, 0.3)}


def test_layers_are_chosen_on_other_text_also_that_of_the_untrained_model():
    test = by_layers("m/test", 2) + by_layers("m/test", 1, **UNTRAINED)
    choice = by_layers("o/validation", 0) + by_layers("o/validation", 2, **UNTRAINED)
    text = report.retrieval(test, choice)
    found = cells(text)
    assert ["layer", "choice", "untrained", "P@1", "untrained"] in found
    assert [*("0", "50.0", "*", "5.0", "±", "14.1"), *("5.0", "*", "5.0", "±", "14.1")] in found
    assert [*("2", "5.0", "50.0", "±", "14.1", "*"), *("50.0", "5.0", "±", "14.1", "*")] in found
    assert "* best on o/validation, shown below; choice: P@1 there, all pairs" in text
    assert "layer 0 (untrained: 2)" in text and ["a-b", "100", "2.5", "7.5", "5.0", "-"] in found
    assert text.splitlines()[-1] == "sign o/validation 0 cosine"
    assert "chance 1.00%" in text and "best on this very test" in report.retrieval(test)


def test_a_layer_is_chosen_by_the_first_similarity_and_the_mean_over_all_mixtures():
    test = by_layers("m/test", 2)
    means = [r for r in by_layers("first+1#012abc/validation", 1) if MACRO in r.languages]
    choice = by_layers("first/validation", 2) + by_layers("second/validation", 1) + means
    test += by_layers("m/test", 2, similarity="margin")
    choice += by_layers("first/validation", 0, similarity="margin")
    text = report.retrieval(test, choice)
    assert text.count("* best by cosine on first+1#012abc/validation, shown below") == 2
    assert "m/test by pairs, by margin, layer 1" in text
    assert "sign first+1#012abc/validation 1 cosine" in text and "sign second" not in text


def test_queries_that_share_no_string_have_lines_of_their_own():
    unshared = retrieval_results("m/test", {("a", "b"): 0.1, ("b", "a"): 0.2}, 2, n=7)
    unshared = [dataclasses.replace(r, metric="p@1_unshared") for r in unshared]
    results = controls_of(retrieval_results("m/test", PAIRS | {("a", "c"): 0.5, ("c", "a"): 0.5}, 2)
                          + unshared)  # fmt: skip
    text = report.retrieval(results)
    found = cells(text)
    assert ["layer", "P@1", "untrained", "unshared", "untrained"] in found
    assert ["unshared", "7", "20.0", "10.0", "7.5", "3.8", "1.5"] in found
    assert ["unshared", "-", "-", "-", "-", "-", "-"] in found  # no query of a and c is left
    assert "without queries whose translation shares a digit" in text


def test_other_similarities_have_tables_of_their_own_in_the_same_layer():
    better = {("a", "b"): 0.5, ("b", "a"): 0.9}
    text = report.retrieval(
        retrieval_results("m/test", PAIRS, 2)
        + retrieval_results("m/test", PAIRS, 1, similarity="margin")
        + retrieval_results("m/test", better, 2, similarity="margin")
    )
    found = cells(text)
    assert "by margin; xSIM error: 100 less P@1" in text
    assert ["2", "70.0", "*"] in found and ["2", "50.0", "*"] in found
    assert ["a-b", "100", "25.0", "75.0", "-"] in found
    assert ["a-b", "100", "50.0", "90.0", "-"] in found
    assert "untrained" not in text and "sign m/test 2 margin" in text


def test_mixtures_of_pairs_become_one_line_each_with_the_shared_language_second():
    text = report.retrieval(
        controls_of(
            retrieval_results("t_spa/test", {("eng", "spa"): 0.7, ("spa", "eng"): 0.5}, 1)
            + retrieval_results("t_amh/test", {("amh", "eng"): 0.1, ("eng", "amh"): 0.3}, 1, n=50)
            + retrieval_results("both", dict.fromkeys(itertools.permutations("abc", 2), 0.4), 1)[6:]
        )
    )
    found = cells(text)
    assert ["mixture", "pair", "n", "→", "←", "untrained", "tf-idf", "length", "unknown"] in found
    assert ["t_spa", "spa-eng", "100", "50.0", "70.0", "30.0", "15.0", "6.0", "-"] in found
    assert ["t_amh", "amh-eng", "50", "10.0", "30.0", "10.0", "5.0", "2.0", "-"] in found
    assert ["macro", "30.0", "50.0", "20.0", "10.0", "4.0", "-"] in found
    assert "chance at most 2.00%" in text


def mining_results(dev_test, pairs=(("deu", "eng"),)):
    results = []
    for layer, dev, test in dev_test:
        for languages in (*pairs, (MACRO,)):
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
    return results


def test_the_mining_table_takes_the_layer_that_is_best_on_dev():
    text = report.mining(controls_of(mining_results([(0, 0.3, 0.9), (1, 0.6, 0.5)])))
    found = cells(text)
    assert ["0", "30.0", "15.0", "±", "1.0", "90.0", "45.0", "±", "1.0"] in found
    assert [
        "1",
        "60.0",
        "*",
        "30.0",
        "±",
        "1.0",
        "*",
        "50.0",
        "*",
        "25.0",
        "±",
        "1.0",
        "*",
    ] in found
    assert ["tf-idf", "7.5", "22.5"] in found
    assert ["deu-eng", "120", "40.0", "70.0", "50.0", "25.0", "22.5", "9.0", "-"] in found
    assert ["macro", "40.0", "70.0", "50.0", "25.0", "22.5", "9.0", "-"] in found
    assert text.endswith("sign length")


def test_pairs_say_how_much_of_each_language_is_unknown():
    pairs = {("deu", "tha"): 0.25, ("tha", "deu"): 0.75}
    shares = {"deu": 0.0, "tha": 0.441, MACRO: 0.441}
    results = [
        dataclasses.replace(r, unknown=tuple(shares[x] for x in r.languages))
        for r in retrieval_results("m/test", pairs, 2)
    ]
    text = report.retrieval(results)
    assert ["deu-tha", "100", "25.0", "75.0", "44.1%!"] in cells(text)
    assert "scores say little: tha 44.1%" in text


@pytest.mark.parametrize("similarities", [("cosine",), ("cosine", "csls", "margin")])
def test_tables_of_many_languages_have_80_columns_and_details_have_each_pair(similarities):
    names = [f"l{i:02}" for i in range(26)]
    every = {(a, b): 0.5 for a in names for b in names if a != b}
    pairs = {pair: value for pair, value in every.items() if "l03" in pair}
    made = {"matrix": [], "pivot": [], "mixtures": []}
    for metric, s in itertools.product(("p@1", "p@1_unshared"), similarities):
        rest = {"similarity": s, "metric": metric}
        made["matrix"] += retrieval_results("m/test", every, 2, n=1997, **rest)
        made["pivot"] += retrieval_results("m/test", pairs, 2, **rest)
        for x in names:
            both = {("eng", x): 1.0, (x, "eng"): 1.0}
            made["mixtures"] += retrieval_results(f"tatoeba_{x}/test", both, 2, n=1000, **rest)
        made["mixtures"] += retrieval_results("all", every, 2, **rest)[len(every) :]
    for kind, results in made.items():
        whole = kind == "matrix"
        results = controls_of(results)
        text, details = report.retrieval(results), report.retrieval_details(results)
        chosen = report.retrieval(results, results)
        lines = [x for x in (text + chosen).splitlines() if not x.startswith("sign ")]
        assert max(map(len, lines)) <= 80 and "l07" in text and "  choice  " in chosen
        assert bool(details) == whole == ("in the file named below" in text)
        # of each similarity and score a matrix of the checkpoint and of each control
        assert details.count("query  ") == 8 * len(similarities) * whole


def test_many_mined_pairs_are_shown_as_means():
    for count, whole in ((10, True), (60, False)):
        pairs = [(f"l{i:02}", "eng") for i in range(count)]
        results = controls_of(mining_results([(1, 0.5, 0.5)], pairs))
        assert ("l05-eng" in report.mining(results)) == whole
        assert ("l05-eng" in report.mining_details(results)) != whole
        assert max(map(len, report.mining(results).splitlines())) <= 80
