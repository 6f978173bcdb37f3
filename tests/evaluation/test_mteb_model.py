"""mteb's tasks on a checkpoint, with text that lies here."""

import numpy as np
import pytest
from small_evaluations import WORDS, make_run, train_vocabulary

from xl_flax.errors import UserError

mteb = pytest.importorskip("mteb", reason="the extra mteb is not installed")

from datasets import Dataset, DatasetDict  # noqa: E402
from mteb.abstasks import AbsTaskBitextMining, AbsTaskClassification  # noqa: E402
from mteb.abstasks import AbsTaskClusteringLegacy as AbsTaskClustering  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402

from xl_flax.evaluation.mteb_model import MtebModel  # noqa: E402

ABOUT = {
    "description": "Words.", "reference": None, "dataset": {"path": "here", "revision": "1"},
    "category": "t2t", "eval_splits": ["test"], "eval_langs": ["eng-Latn"], "date": None,
    "domains": None, "task_subtypes": None, "license": None, "annotations_creators": None,
    "dialect": None, "sample_creation": None, "bibtex_citation": "", "modalities": ["text"],
}  # fmt: skip
RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(WORDS, 5)) for _ in range(20)]
# Texts of two kinds: of the first words, or of the last ones.
KINDS = [i % 2 for i in range(40)]
SORTED = [" ".join(RNG.choice(WORDS[:5] if kind else WORDS[6:], 5)) for kind in KINDS]


def about(kind, score):
    return TaskMetadata(type=kind, name=f"Local{kind}", main_score=score, **ABOUT)


class Bitext(AbsTaskBitextMining):
    metadata = about("BitextMining", "accuracy")

    def load_data(self, **_):
        columns = {"sentence1": TEXTS, "sentence2": list(TEXTS)}
        self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
        self.data_loaded = True


class Kinds(AbsTaskClassification):
    metadata = about("Classification", "accuracy")

    def load_data(self, **_):
        split = Dataset.from_dict({"text": SORTED, "label": KINDS})
        self.dataset = DatasetDict({"train": split, "test": split})
        self.data_loaded = True


class Clusters(AbsTaskClustering):
    metadata = about("Clustering", "v_measure")

    def load_data(self, **_):
        split = Dataset.from_dict({"sentences": [SORTED], "labels": [KINDS]})
        self.dataset = DatasetDict({"test": split})
        self.data_loaded = True


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mteb")
    vocabulary = train_vocabulary(folder / "v.model", WORDS)
    return make_run(str(folder / "run"), vocabulary, max_positions=64)


@pytest.mark.parametrize(("task", "least"), [(Bitext, 1.0), (Kinds, 0.9), (Clusters, 0.5)])
def test_a_task_runs_on_a_checkpoint(run, task, least):
    model = MtebModel(run, layer=1, length=64)
    result = mteb.evaluate(model, task(), cache=None, show_progress_bar=False, co2_tracker=False)
    (score,) = [own["main_score"] for own in result.task_results[0].scores["test"]]
    assert least <= score <= 1
    assert model.mteb_model_meta.name == "xl-flax/run-layer1-mean"


def test_vectors_are_those_of_a_layer_or_head(run):
    batches = [{"text": TEXTS[:3]}, {"text": TEXTS[3:]}]
    first, second = (MtebModel(run, layer=layer).encode(batches) for layer in (0, 2))
    assert first.shape == second.shape == (20, 16) and not np.allclose(first, second)
    assert MtebModel(run, head="translation").encode(batches).shape == (20, 16)
    with pytest.raises(UserError, match="layers = .7.: give a list"):
        MtebModel(run, layer=7)
