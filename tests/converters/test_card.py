"""The model card of a folder that is exported."""

import os
import types

import pytest

from xl_flax.converters import card
from xl_flax.evaluation import results
from xl_flax.evaluation.results import MACRO, Result

GIN = """
CACHE_DIR = 'cache/mine'
InitFrom.checkpoint = "/home/me/runs/first"
InitFrom.include = 'encoder/.*'
MODEL_DIR = ['runs/secret/', '/data/other']
Task.note = '~/text.txt'
VOCABULARY = 'runs/secret/vocabulary.model'
"""


def test_paths_keep_their_last_part_only():
    assert card.without_paths(GIN).splitlines()[1:] == [
        "CACHE_DIR = '…/mine'",
        'InitFrom.checkpoint = "…/first"',
        "InitFrom.include = 'encoder/.*'",
        "MODEL_DIR = ['…/secret', '…/other']",
        "Task.note = '…/text.txt'",
        "VOCABULARY = '…/vocabulary.model'",
    ]


def test_results_say_which_data_and_stay_a_table(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "7"
    (checkpoint / "params").mkdir(parents=True)
    source = results.checkpoint_source(str(checkpoint), 7)
    sign = results.signature("retrieval", data="ntrex/test", layer=3)
    made = [
        Result(
            "retrieval",
            "ntrex/test",
            languages,
            "p@1",
            0.25,
            6,
            sign,
            3,
            similarity="cosine",
            unknown=(0.071,),
        )
        for languages in ((MACRO,), ("deu", "eng"))
    ]
    path = str(tmp_path / "run" / results.FILE)
    results.write(path, source, made)
    another = results.Source("checkpoints/7", 7, id="of another training")
    results.write(path, another, [Result("x", "other/test", (MACRO,), "loss", 1.0, 2, "t")])
    control = Result(
        "retrieval", "ntrex/test", (MACRO,), "p@1", 0.2, 6, "u", model="untrained", seeds=(0.1, 0.3)
    )
    results.write(path, results.Source("untrained", 0, id="shape"), [control])
    (tmp_path / "run" / "config.gin").write_text(GIN)
    encoder = types.SimpleNamespace(num_layers=3, width=8, vocab_size=50, num_params=100)
    description = types.SimpleNamespace(
        encoder=encoder, all_languages=["deu"], step=7, objectives={}
    )
    text = card.make(str(checkpoint), description, {"model_type": "bert"}, ["a note"])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0].count("|") == lines[1].count("|") == lines[2].replace(r"\|", "").count("|") == 8
    assert lines[2].startswith(
        "| ntrex/test | this one | 3 | p@1, cosine | 0.2500 | 7.1% ! | `retrieval\\|data:ntrex/"
    )
    assert lines[3].startswith("| ntrex/test | untrained |  | p@1 | 0.2000 ± 0.1414 |")
    assert len(lines) == 4 and str(tmp_path) not in text and "# run, step 7" in text
    (checkpoint / "model").mkdir(exist_ok=True)
    (checkpoint / "model" / "config.gin").write_text("STEPS = 7")  # its own, whatever the run's is
    text = card.make(str(checkpoint), description, {"model_type": "bert"}, [])
    assert text.endswith("```\nSTEPS = 7\n```\n")


def test_the_configuration_is_that_of_the_step(tmp_path):
    for name in ("config.gin", "config-0000100.gin", "config-0000100-2.gin", "config-0000200.gin"):
        (tmp_path / name).write_text("")
    of = {step: card.configuration(str(tmp_path), step) for step in (50, 100, 150, 200, 250)}
    assert {step: (os.path.basename(path), since) for step, (path, since) in of.items()} == {
        50: ("config-0000100.gin", 0),
        100: ("config-0000100.gin", 0),
        150: ("config-0000200.gin", 100),
        200: ("config-0000200.gin", 100),
        250: ("config.gin", 200),
    }


def test_the_hub_reads_the_results_of_the_card(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    checkpoint = tmp_path / "run" / "checkpoints" / "7"
    (checkpoint / "params").mkdir(parents=True)
    source = results.checkpoint_source(str(checkpoint), 7)
    about = {"layer": 3, "similarity": "cosine"}
    found = [
        Result("retrieval", "ntrex/test", (MACRO,), "p@1", 0.25, 6, "sign", **about),
        Result("retrieval", "ntrex/validation", (MACRO,), "p@1", 0.5, 6, "s", **about),
        Result("tagging", "panx/test", (MACRO,), "f1", 0.75, 6, "other"),
        Result("tagging", "panx/test", ("deu",), "f1", 0.1, 6, "other"),
    ]
    path = str(tmp_path / "run" / results.FILE)
    results.write(path, source, found)
    control = Result("tagging", "panx/test", (MACRO,), "f1", 0.9, 6, "c", model="majority")
    results.write(path, results.Source("majority", 0, id="text"), [control])
    encoder = types.SimpleNamespace(num_layers=3, width=8, vocab_size=50, num_params=100)
    description = types.SimpleNamespace(
        encoder=encoder, step=7, all_languages=("deu", "mul"), objectives={}
    )
    text = card.make(str(checkpoint), description, {"model_type": "bert"}, [])
    (one, other) = hub.ModelCard(text).data.eval_results
    assert (one.task_type, one.dataset_name, one.dataset_split) == (
        "sentence-similarity", "ntrex", "test",
    )  # fmt: skip
    assert (one.metric_type, one.metric_name, one.metric_value) == (
        "p@1",
        "p@1, cosine, layer 3",
        0.25,
    )
    assert one.metric_args == {"signature": "sign"}
    assert (other.task_type, other.metric_value) == ("token-classification", 0.75)
    assert hub.ModelCard(text).data.model_name == "run"
