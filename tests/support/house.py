"""A finished run and its cache, small and made without TensorFlow, for tests that damage it."""

import contextlib
import io
from pathlib import Path

import numpy as np
import sentencepiece

from xl_flax.data.build import write_split
from xl_flax.data.features import Example
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache
from xl_flax.data.mixtures import Mixture, write_mixture
from xl_flax.data.vocabulary import load_vocabulary

LANGUAGES = ("one", "two")
COUNT = {"train": 300, "validation": 24, "test": 24}
STEPS = 6  # of the finished run, which has checkpoints of steps 2, 4 and 6
GIN = """
include 'gin/base.gin'
include 'gin/models/bert_tiny.gin'
include 'gin/objectives/mlm.gin'
include 'gin/eval/both.gin'
MODEL_DIR = 'run'
CACHE_DIR = 'cache'
VOCABULARY = 'vocabulary.model'
VOCAB_SIZE = {size}
TASK_MODULES = ['none']
MIXTURE = 'all'
LENGTH = 16
BATCH_SIZE = 4
STEPS = {steps}
Cache.on_missing = 'stop'
EncoderConfig.num_layers = 1
EncoderConfig.width = 16
EncoderConfig.num_heads = 2
EncoderConfig.mlp_width = 32
EncoderConfig.scan = 'unroll'
OptimizerConfig.learning_rate = 3e-3
OptimizerConfig.schedule = 'constant'
OptimizerConfig.warmup_steps = 0
TrainConfig.log_every = 1
TrainConfig.checkpoint_every = 2
TrainConfig.keep_last = None
TrainConfig.held_out = [@Periodic()]
TrainConfig.best = @Best()
Best.metric = 'eval/all/loss'
Periodic.every = 2
Periodic.evaluation = @MaskedAccuracy()
MaskedAccuracy.mixture = 'all'
MaskedAccuracy.length = 16
MaskedAccuracy.rows_per_task = 4
SentenceRetrieval.mixture = 'all'
SentenceRetrieval.length = 16
EvaluateConfig.controls = False
"""
RUN = ["--gin_file=run.gin"]
MORE = [*RUN, f"--gin.STEPS={STEPS + 2}"]
MAKE = (  # what was run when the damage comes; retrieval is still to be measured
    ("xl_flax.train", RUN),
    ("xl_flax.evaluate", [*RUN, "--gin.EvaluateConfig.evaluations=[@MaskedAccuracy()]"]),
)
COMMANDS = {
    "train": ("xl_flax.train", MORE),
    "evaluate": ("xl_flax.evaluate", RUN),
    "best": ("xl_flax.evaluate", [*RUN, "--checkpoint=best"]),
    "convert": ("xl_flax.convert", ["--source=run", "--target=exported"]),
}


def made_in(folder: Path) -> Path:
    """A folder, in which `make_data` has written its files."""
    with contextlib.chdir(folder):
        make_data()
    return folder


def make_data() -> None:
    """Writes the vocabulary, the cache and the run's Gin file into the current folder."""
    rng = np.random.default_rng(0)
    words = ("sun", "moon", "star", "tree", "leaf", "root", "stone", "river", "cloud", "rain")
    lines, model = [" ".join(rng.choice(words, 6)) for _ in range(300)], io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=48, hard_vocab_limit=False,
        bos_piece="<s>", eos_piece="</s>", bos_id=0, pad_id=1, eos_id=2, unk_id=3,
        user_defined_symbols=["<mask>"], minloglevel=2,
    )  # fmt: skip
    with open("vocabulary.model", "wb") as file:
        file.write(model.getvalue())
    vocabulary = load_vocabulary("vocabulary.model")
    with open("run.gin", "w") as file:
        file.write(GIN.format(size=vocabulary.size, steps=STEPS))
    cache = Cache("cache", ["none"], on_missing="stop")
    ordinary = np.flatnonzero(~vocabulary.special_mask())
    made = {"modules": {}, "source": "", "preprocessors": [], "files": {}}
    made["vocabulary"] = vocabulary.fingerprint
    for split, count in COUNT.items():
        fingerprint = made | {"filter": cache.filter.settings(split, False)}
        for language in LANGUAGES:
            texts = [rng.choice(ordinary, n) for n in rng.integers(4, 12, count)]
            write_split(
                cache, f"t_{language}", split, Layout(16),
                [Example(i, (ids,)) for i, ids in enumerate(texts)],
                languages=(language,), vocabulary=vocabulary, fingerprint=fingerprint,
            )  # fmt: skip
        tasks = [f"t_{language}" for language in LANGUAGES]
        rates, counts = dict.fromkeys(tasks, 1.0), dict.fromkeys(tasks, count)
        write_mixture(cache, split, Mixture("all", {}, rates, counts))
