"""What the evaluation command is run on: a vocabulary, a cache of token ids, random parameters."""

import functools

import jax
import numpy as np
import sentencepiece
from flax import nnx

from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.manager import CheckpointManager, Progress
from xl_flax.data.build import write_split
from xl_flax.data.features import Example
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache
from xl_flax.data.mixtures import Mixture, write_mixture
from xl_flax.data.vocabulary import VOCABULARY_FILE, load_vocabulary
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model

WORDS = ("sun", "moon", "star", "tree", "leaf", "root", "stone", "river", "cloud", "rain", "wind")
COUNT = 40
LANGUAGES = ("one", "same", "other")
HEADS = {"mlm": {}, "translation": {"kind": "sentence", "layer": 1, "projection": "linear"}}


def train_vocabulary(path, words):
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(words, 6)) for _ in range(300)]
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, vocab_size=60,
            hard_vocab_limit=False, bos_piece="<s>", eos_piece="</s>",
            bos_id=0, pad_id=1, eos_id=2, unk_id=3, user_defined_symbols=["<mask>"], minloglevel=2,
        )  # fmt: skip
    return load_vocabulary(str(path))


def make_cache(directory, vocabulary):
    """`same` repeats the sentences of `one`, `other` has its own."""
    cache = Cache(directory, ["none"], on_missing="stop")
    ordinary = np.flatnonzero(~vocabulary.special_mask())
    made = {"modules": {}, "source": "", "preprocessors": [], "files": {}}
    made["vocabulary"] = vocabulary.fingerprint

    def write(task, split, languages, examples):
        fingerprint = made | {"filter": cache.filter.settings(split, len(languages) > 1)}
        numbered = [Example(i, texts) for i, texts in enumerate(examples)]
        write_split(
            cache, task, split, Layout(16), numbered,
            languages=languages, vocabulary=vocabulary, fingerprint=fingerprint,
        )  # fmt: skip

    for split in ("train", "validation", "test"):
        for seed, language in enumerate(LANGUAGES):
            rng = np.random.default_rng(7 if language == "same" else 7 + seed)
            sizes = rng.integers(4, 20, COUNT)
            write(f"t_{language}", split, (language,), [(rng.choice(ordinary, n),) for n in sizes])
        twice = [(ids, ids) for ids in rng.choice(ordinary, (COUNT, 5))]
        write("p_one-same", split, ("one", "same"), twice)
        tasks = [f"t_{language}" for language in LANGUAGES]
        mixtures = {task: [task] for task in [*tasks, "p_one-same"]} | {
            "all": tasks, "one-same": ["t_one", "t_same"], "one-other": ["t_one", "t_other"],
        }  # fmt: skip
        for name, of in mixtures.items():
            rates, counts = dict.fromkeys(of, 1.0), dict.fromkeys(of, COUNT)
            write_mixture(cache, split, Mixture(name, {}, rates, counts))
    return cache


@functools.cache
def _initializer(config):
    return nnx.jit(lambda key: nnx.state(build_model(config, HEADS, nnx.Rngs(key))))


def make_run(directory, vocabulary, seed=0, best=None, keep_last=5, max_positions=16, layers=2):
    """A run with checkpoints of steps 5 and 10, whose parameters are random."""
    shape = {"num_layers": layers, "width": 16, "num_heads": 2, "mlp_width": 32}
    config = EncoderConfig(vocab_size=vocabulary.size, max_positions=max_positions, **shape)
    manager = CheckpointManager(directory, keep_last=keep_last)
    with open(vocabulary.path, "rb") as file:
        model_file = file.read()
    for step in (5, 10):
        state = _initializer(config)(jax.random.key(seed + step))
        description = Description(
            config, HEADS, vocabulary.fingerprint, {"mlm": LANGUAGES}, {}, step=step
        )
        manager.save(
            nnx.to_pure_dict(state),
            {"count": jax.numpy.zeros(())},
            Progress(step, {}, 0, {}, best=best, saved=[5, 10][: step // 5]),
            {"model.json": description.to_json(), VOCABULARY_FILE: model_file},
        )
    manager.wait()
    manager.close()
    return directory
