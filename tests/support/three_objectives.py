"""A small run with an objective of each kind: text alone, one with a state, labelled examples."""

from pathlib import Path

from xl_flax.data.synthetic.generator import corpus_sentence
from xl_flax.data.synthetic.language import FAMILY
from xl_flax.data.vocabulary import VocabularyConfig
from xl_flax.data.vocabulary_training import Corpus, train_model

TASKS = """
import functools
import tensorflow as tf
from tasks import synthetic_labelled
from tasks.labelled import add_labelled_task
from tasks.parallel import add_parallel_task
from tasks.synthetic import FAMILY, source
from tasks.synthetic_parallel import source as pair_source
from tasks.text import add_language_mixture, add_text_task
from xl_flax.data.synthetic.inference import LABELS

SIZES = {"train": 400, "validation": 60, "test": 60}
LANGUAGES = ("alpha", "gamma")
NAMES = [add_text_task(f"small_{n}", n, source(FAMILY[n], SIZES)).name for n in LANGUAGES]
add_language_mixture("small", NAMES)
add_language_mixture("small_even", NAMES, exponent=0)
add_parallel_task("small_pairs", LANGUAGES, pair_source([FAMILY[n] for n in LANGUAGES], SIZES))
SIGNATURE = {"text": tf.TensorSpec((2,), tf.string), "label": tf.TensorSpec((), tf.string)}
EXAMPLE = functools.partial(synthetic_labelled.inference, FAMILY["alpha"])
SOURCE = synthetic_labelled.source(EXAMPLE, SIGNATURE, SIZES)
add_labelled_task("small_inference", ("alpha", "alpha"), SOURCE, LABELS)
"""
VOCAB_SIZE = 300
RUN = """
include 'gin/base.gin'
include 'gin/models/bert_tiny.gin'
include 'gin/objectives/mlm.gin'
include 'gin/objectives/ppa.gin'
MODEL_DIR = '{folder}/run'
CACHE_DIR = '{folder}/cache'
VOCABULARY = '{folder}/vocabulary.model'
VOCAB_SIZE = 300
TASK_MODULES = ['small_tasks']
MIXTURE = [(0, 'small'), (80, 'small_even')]
VocabularyConfig.mixture = 'small'
LENGTH = 32
BATCH_SIZE = 16
STEPS = 12
EncoderConfig.num_layers = 2
EncoderConfig.width = 32
EncoderConfig.num_heads = 2
EncoderConfig.mlp_width = 64
TrainConfig.objectives = [@MaskedLM(), @MomentumContrastive(), @SequenceClassification()]
PAIRS = 'small_pairs'
PAIRS_LENGTH = 48
MOMENTUM_BATCH_SIZE = 16
QUEUE_SIZE = 256
MomentumContrastive.momentum = 0.9
MomentumContrastive.weight = 0.5
labelled/Rows.mixture = 'small_inference'
labelled/Rows.length = 48
labelled/Rows.packing = 'batch'
SequenceClassification.rows = @labelled/Rows()
SequenceClassification.batch_size = 16
SequenceClassification.weight = 0.5
OptimizerConfig.learning_rate = 3e-3
OptimizerConfig.schedule = 'constant'
TrainConfig.log_every = 3
TrainConfig.checkpoint_every = 3
TrainConfig.keep_last = 2
TrainConfig.held_out = [@Periodic()]
Periodic.every = 6
Periodic.evaluation = @MaskedAccuracy()
MaskedAccuracy.mixture = 'small'
MaskedAccuracy.length = %LENGTH
MaskedAccuracy.rows_per_task = 4
"""


def make_data(folder: Path) -> None:
    """Writes a module with tasks, a Gin file and a vocabulary; the first run builds the caches."""
    (folder / "small_tasks.py").write_text(TASKS)
    (folder / "run.gin").write_text(RUN.format(folder=folder))
    corpora = [
        Corpus(n, 400, [corpus_sentence(FAMILY[n], "train", i).text for i in range(400)], 1)
        for n in ("alpha", "gamma")
    ]
    config = VocabularyConfig("small", str(folder / "vocabulary.model"), VOCAB_SIZE)
    (folder / "vocabulary.model").write_bytes(train_model(corpora, config))
