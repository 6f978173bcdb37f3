import dataclasses

import numpy as np
import pytest

from xl_flax.errors import UserError
from xl_flax.evaluation import report, results
from xl_flax.evaluation.base import Evaluation
from xl_flax.evaluation.results import MACRO, Result, Source, signature


def result(value, sign="s", languages=("deu",), metric="loss", **more):
    return Result("masked_lm", "m/test", languages, metric, value, 10, sign, **more)


def test_results_are_appended_and_replaced_by_checkpoint_and_signature(tmp_path):
    path, first, second = str(tmp_path / "r.jsonl"), Source("/run/5", 5), Source("/run/10", 10)
    results.write(path, first, [result(1.0), result(2.0, "other")])
    results.write(path, second, [result(3.0)])
    results.write(path, first, [result(4.0)])
    rows = results.read(path)
    assert [(r["step"], r["signature"], r["value"]) for r in rows] == [
        (5, "other", 2.0), (10, "s", 3.0), (5, "s", 4.0),
    ]  # fmt: skip
    assert {"checkpoint", "version", "n", "layer", "pooling"} <= rows[0].keys()
    assert results.done(rows, first) == {"s", "other"}
    assert results.done(rows, Source("/moved/10", 10)) == {"s"}


def test_results_come_back_as_they_were(tmp_path):
    path, given = str(tmp_path / "r.jsonl"), [result(1.5, layer=3, pooling="mean"), result(2.5)]
    results.write(path, Source("/run/5", 5), given)
    assert results.from_rows(results.read(path), {"s"}) == given


def test_numpy_scalars_are_written_as_numbers(tmp_path):
    path = str(tmp_path / "r.jsonl")
    given = [dataclasses.replace(result(np.float32(0.5)), n=np.int64(7))]
    results.write(path, Source("/run/5", 5), given)
    assert results.read(path)[0].items() >= {"value": 0.5, "n": 7}.items()
    assert type(Evaluation().scalars(given)["eval/m/loss/deu"]) is float


def test_a_line_cut_off_by_a_kill_is_dropped_and_a_damaged_one_is_an_error(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"value": 1}\n{"val')
    assert results.read(str(path)) == [{"value": 1}]
    path.write_text('{"val\n{"value": 1}\n')
    with pytest.raises(UserError, match="line 1"):
        results.read(str(path))


def test_a_signature_says_how(monkeypatch):
    monkeypatch.setattr(results.xl_flax, "__version__", "9")
    assert signature("retrieval", layer=8, k=4) == "retrieval|layer:8|k:4|version:9"


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
    assert ["layer", "0", "2*"] in found and ["P@1,", "cosine", "5.0%", "50.0%"] in found
    assert ["a", "·", "25.0", "25.0"] in found and ["b", "75.0", "·", "75.0"] in found
    assert "chance 1.00%" in text and "sign m/test 2 cosine" in text


def test_other_similarities_are_shown_by_language_beside_the_first():
    pairs = {("a", "b"): 0.25, ("b", "a"): 0.75}
    better = {("a", "b"): 0.5, ("b", "a"): 0.9}
    text = report.retrieval(
        retrieval_results("m/test", pairs, 2)
        + retrieval_results("m/test", better, 2, similarity="margin")
    )
    found = cells(text)
    assert ["P@1,", "margin", "70.0%"] in found and ["xSIM", "error", "30.0%"] in found
    assert ["a", "25.0", "75.0", "50.0", "90.0"] in found
    assert ["macro", "50.0", "50.0", "70.0", "70.0"] in found
    assert "sign m/test 2 margin" in text


def test_mixtures_of_pairs_become_one_line_each_with_the_shared_language_second():
    text = report.retrieval(
        retrieval_results("t_spa/test", {("eng", "spa"): 0.7, ("spa", "eng"): 0.5}, 1)
        + retrieval_results("t_amh/test", {("amh", "eng"): 0.1, ("eng", "amh"): 0.3}, 1, n=50)
        + retrieval_results("both", {("eng", "amh"): 0.3, ("eng", "spa"): 0.7}, 1)[2:]
    )
    found = cells(text)
    assert ["mixture", "pair", "sentences", "cosine", "→", "cosine", "←", "chance"] in found
    assert ["t_spa/test", "spa", "→", "eng", "100", "50.0", "70.0", "1.00"] in found
    assert ["t_amh/test", "amh", "→", "eng", "50", "10.0", "30.0", "2.00"] in found
    assert ["macro", "30.0", "50.0"] in found
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
    assert ["layer", "0", "1*"] in found and ["F1", "on", "test", "90.0", "50.0"] in found
    assert ["m/test", "deu-eng", "120", "40.0", "70.0", "50.0", "1.062"] in found
    assert ["m/test", "macro", "40.0", "70.0", "50.0"] in found
    assert text.endswith("sign 1")


def test_the_masked_table_sets_the_model_beside_the_baseline():
    values = {"loss": 2.0, "accuracy": 0.5, "unigram_loss": 6.0, "unigram_accuracy": 0.07}
    found = [
        result(value, languages=(language,), metric=metric)
        for language in ("deu", MACRO)
        for metric, value in values.items()
    ]
    cells = [line.split() for line in report.masked_lm(found).splitlines()]
    assert ["deu", "2.000", "6.000", "50.0%", "7.0%", "10"] in cells
