"""Two synthetic languages without a letter in common, and what is trained and tested in them."""

from pathlib import Path

from xl_flax.data.synthetic.generator import corpus_sentence
from xl_flax.data.synthetic.language import FAMILY
from xl_flax.data.vocabulary import VocabularyConfig
from xl_flax.data.vocabulary_training import Corpus, train_model

TASKS = """
import functools
import tensorflow as tf
from tasks import labelled, synthetic_labelled, text
from tasks.synthetic import FAMILY, source

TEXT = {"train": 4000, "validation": 100, "test": 100}
LABELLED = {"train": 1500, "validation": 150, "test": 250}
LANGUAGES = ("alpha", "beta")
for n in LANGUAGES:
    text.add_text_task(f"small_{n}", n, source(FAMILY[n], TEXT))
    tagged = functools.partial(synthetic_labelled.tagged, FAMILY[n])
    words = synthetic_labelled.source(tagged, {"text": tf.TensorSpec((), tf.string)}, LABELLED)
    labelled.add_word_task(
        f"small_pos_{n}", n, words, synthetic_labelled.UPOS,
        preprocessors=[labelled.split_words],
    )
text.add_language_mixture("small", [f"small_{n}" for n in LANGUAGES], exponent=0)
text.add_language_mixture("small_pos", [f"small_pos_{n}" for n in LANGUAGES], exponent=0)
"""
PRETRAIN = """
include 'gin/runs/quickstart.gin'
MODEL_DIR = '{folder}/pretrained'
CACHE_DIR = '{folder}/cache'
VOCABULARY = '{folder}/vocabulary.model'
VOCAB_SIZE = 1200
TASK_MODULES = ['small_transfer_tasks']
MIXTURE = 'small'
STEPS = {steps}
TrainConfig.held_out = []
TrainConfig.checkpoint_every = 10000
"""
FINETUNE = """
include 'gin/runs/finetune_synthetic_pos.gin'
CHECKPOINT = '{folder}/pretrained'
MODEL_DIR = '{folder}/pos/pretrained'
CACHE_DIR = '{folder}/cache'
TASK_MODULES = ['small_transfer_tasks']
MIXTURE = 'small_pos_alpha'
STEPS = {steps}
OptimizerConfig.warmup_steps = 10
Periodic.every = {steps}
dev/TaggingScores.mixture = 'small_pos'
Best.metric = 'eval/small_pos/f1/alpha'
TaggingScores.mixture = 'small_pos'
TaggingScores.train = 'small_pos_alpha'
"""


def make_data(folder: Path, pretraining: int, steps: int) -> None:
    """Writes a module with tasks, a vocabulary and two Gin files, pretrain.gin and finetune.gin."""
    (folder / "small_transfer_tasks.py").write_text(TASKS)
    (folder / "pretrain.gin").write_text(PRETRAIN.format(folder=folder, steps=pretraining))
    (folder / "finetune.gin").write_text(FINETUNE.format(folder=folder, steps=steps))
    corpora = [
        Corpus(n, 2000, [corpus_sentence(FAMILY[n], "train", i).text for i in range(2000)], 1)
        for n in ("alpha", "beta")
    ]
    config = VocabularyConfig(
        "small", str(folder / "vocabulary.model"), 1200, model_type="bpe", character_coverage=1.0
    )
    (folder / "vocabulary.model").write_bytes(train_model(corpora, config))
