"""A run that carries a momentum encoder and a queue ends with the same bits after a kill."""

import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from xl_flax import cli
from xl_flax.checkpoints.load import find_checkpoints, load_model
from xl_flax.data.synthetic.generator import corpus_sentence
from xl_flax.data.synthetic.language import FAMILY
from xl_flax.data.vocabulary import VocabularyConfig
from xl_flax.data.vocabulary_training import Corpus, train_model

TASKS = """
import seqio
from tasks.parallel import add_parallel_task
from tasks.synthetic import FAMILY, source
from tasks.synthetic_parallel import source as pair_source
from tasks.text import add_language_mixture, add_text_task

SIZES = {"train": 300, "validation": 20, "test": 20}
LANGUAGES = ("alpha", "gamma")
NAMES = [add_text_task(f"carried_{n}", n, source(FAMILY[n], SIZES)).name for n in LANGUAGES]
add_language_mixture("carried", NAMES)
PAIRS = tuple(FAMILY[n] for n in LANGUAGES)
add_parallel_task("carried_alpha_gamma", LANGUAGES, pair_source(PAIRS, SIZES))
"""
RUN = """
include 'gin/base.gin'
include 'gin/models/bert_tiny.gin'
include 'gin/objectives/mlm.gin'
include 'gin/objectives/ppa.gin'
CACHE_DIR = '{folder}/cache'
VOCABULARY = '{folder}/vocabulary.model'
VOCAB_SIZE = 300
TASK_MODULES = ['carried_tasks']
MIXTURE = 'carried'
PAIRS = 'carried_alpha_gamma'
VocabularyConfig.mixture = 'carried'
LENGTH = 32
PAIRS_LENGTH = 64
BATCH_SIZE = 8
MOMENTUM_BATCH_SIZE = 4
QUEUE_SIZE = 64
STEPS = 20
EncoderConfig.num_layers = 1
EncoderConfig.width = 16
EncoderConfig.num_heads = 2
EncoderConfig.mlp_width = 32
MomentumContrastive.momentum = 0.9
OptimizerConfig.learning_rate = 3e-3
OptimizerConfig.schedule = 'constant'
TrainConfig.objectives = [@MaskedLM(), @MomentumContrastive()]
TrainConfig.log_every = 1
TrainConfig.checkpoint_every = 4
TrainConfig.keep_last = 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("carried")
    (folder / "carried_tasks.py").write_text(TASKS)
    (folder / "run.gin").write_text(RUN.format(folder=folder))
    corpora = [
        Corpus(n, 300, [corpus_sentence(FAMILY[n], "train", i).text for i in range(300)], 1)
        for n in ("alpha", "gamma")
    ]
    config = VocabularyConfig("carried", str(folder / "vocabulary.model"), 300)
    (folder / "vocabulary.model").write_bytes(train_model(corpora, config))
    return folder


def start(folder, model_dir):
    environment = os.environ | {
        "PYTHONPATH": f"{folder}{os.pathsep}{cli.ROOT}",
        "XLA_FLAGS": "",  # one device
        "NPROC": "2",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "xl_flax.train", f"--gin_file={folder}/run.gin",
         f"--gin.MODEL_DIR={model_dir}"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process):
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


def saved(model_dir):
    """The newest checkpoint's parameters, and all that lies beside them, by path."""
    newest, leaves = find_checkpoints(str(model_dir))[-1], {}
    for item in ("params", "optimizer"):
        tree = ocp.PyTreeCheckpointer().restore(os.path.join(newest, item))
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            leaves[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return leaves


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_queue_and_follower(folder, tmp_path):
    finish(start(folder, tmp_path / "straight"))
    process = start(folder, tmp_path / "killed")
    for line in process.stdout:
        match = re.match(r"step +(\d+)", line)
        if match and int(match[1]) >= 10:  # after the checkpoint of step 8, before that of 12
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "resuming" in finish(start(folder, tmp_path / "killed"))
    expected, found = saved(tmp_path / "straight"), saved(tmp_path / "killed")
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(value, found[path], err_msg=path)
    prefix = "optimizer['objectives']['momentum']"
    carried = {p.removeprefix(prefix): v for p, v in expected.items() if p.startswith(prefix)}
    assert carried["['batches']"] == 20 and carried["['filled']"].any()
    assert any(path.startswith("['encoder']") for path in carried)
    model, description, _ = load_model(str(tmp_path / "killed"))
    assert set(description.heads) == {"mlm", "momentum"} and "momentum" in model.heads
