"""A sweep over checkpoints against one command for each cell, and against Transformers.

    python tests/benchmarks/sweep.py [--checkpoints 10] [--sentences 1000] [--languages 4]
        [--layers 4] [--width 128] [--words 14000] [--rounds 1] [--tiny]

So many checkpoints of one shape, with random weights, are evaluated in four ways, on all layers:
masked accuracy; retrieval by cosine in two texts of several languages, all pairs in both
directions; mining of the first text. Text is random words, cached as token ids. The defaults are
the model of gin/runs/bible.gin: four layers of width 128, about 10,000 pieces.

  sweep         python -m xl_flax.evaluate --checkpoints='…/*': one process
  separate      the same command for each checkpoint and evaluation, one after the other; what the
                first one compiles, the others find in JAX's cache
  transformers  sweep_transformers.py, one process: AutoModelForMaskedLM with all hidden states,
                each checkpoint converted beforehand; sentences sorted by length, 64 in a batch,
                encoded once for retrieval and mining; nearest neighbours by sentence-transformers
                and faiss; token ids are given

Each side has the same layers, sentences and number of hidden tokens, begins with an empty cache of
compiled programs and pays for its imports. Sides take turns, `--rounds` times, which begin with
another side each. Retrieval must come out alike. A table has the seconds of each round, and those
of all processors, user and system, which say more where a machine is shared. The last line is JSON:
seconds of the other sides / ours, the medians over rounds, {"separate": …, "transformers": …}.
"""

import argparse
import dataclasses
import glob
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import sentencepiece
from common import parse
from flax import nnx

from xl_flax import cli, convert
from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.save import save_checkpoint
from xl_flax.data.build import write_split
from xl_flax.data.features import Example
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache
from xl_flax.data.mixtures import Mixture, write_mixture
from xl_flax.data.vocabulary import VOCABULARY_FILE, Vocabulary, load_vocabulary
from xl_flax.evaluation import results
from xl_flax.evaluation.results import MACRO
from xl_flax.files.read import read_bytes
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model

LENGTH = 64
EVALUATIONS = {
    "masked": "@MaskedAccuracy()",
    "a": "@a/SentenceRetrieval()",
    "b": "@b/SentenceRetrieval()",
    "mining": "@BitextMining()",
}
GIN = """
include 'gin/eval/base.gin'
TASK_MODULES = ['none']
Cache.on_missing = 'stop'
EvaluateConfig.controls = False
EvaluateConfig.evaluations = [{evaluations}]
MaskedAccuracy.mixture = 'a'
MaskedAccuracy.split = 'test'
MaskedAccuracy.baseline = 'a'
a/SentenceRetrieval.mixture = 'a'
b/SentenceRetrieval.mixture = 'b'
BitextMining.mixture = 'a'
MaskedAccuracy.length = {length}
SentenceRetrieval.length = {length}
BitextMining.length = {length}
"""


# ---- What is evaluated


def make_vocabulary(folder: str, count: int) -> Vocabulary:
    """Of random words, most of which are pieces."""
    rng = np.random.default_rng(0)
    letters = [*"bdfgklmnprst", *"aeiou"]
    words = ["".join(rng.choice(letters, rng.integers(3, 8))) for _ in range(count)]
    path = os.path.join(folder, "vocabulary.model")
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([" ".join(words[i : i + 8]) for i in range(0, count, 4)]),
            model_writer=file, vocab_size=2 * count, hard_vocab_limit=False, minloglevel=2,
            bos_piece="<s>", eos_piece="</s>", bos_id=0, pad_id=1, eos_id=2, unk_id=3,
            user_defined_symbols=["<mask>"],
        )  # fmt: skip
    return load_vocabulary(path)


def make_text(args: argparse.Namespace, vocabulary: Vocabulary) -> dict[str, dict[str, list]]:
    """Two texts: name -> language -> token ids; a sentence shares some words with the others'."""
    rng = np.random.default_rng(1)
    ordinary = np.flatnonzero(~vocabulary.special_mask())
    texts: dict[str, dict[str, list]] = {}
    for name in "ab":
        sizes = np.clip(rng.lognormal(np.log(14), 0.45, args.sentences).round(), 4, 40).astype(int)
        first = [rng.choice(ordinary, size) for size in sizes]
        texts[name] = {}
        for language in range(args.languages):
            kept = [rng.random(len(s)) < 0.6 for s in first]
            texts[name][f"l{language}"] = [
                np.where(keep, s, rng.choice(ordinary, len(s)))
                for s, keep in zip(first, kept, strict=True)
            ]
    return texts


def make_cache(folder: str, vocabulary: Vocabulary, texts: dict[str, dict[str, list]]) -> Cache:
    """What `xl_flax.cache` would write."""
    cache = Cache(os.path.join(folder, "cache"), ["none"], on_missing="stop")
    made = {"modules": {}, "source": "", "preprocessors": [], "files": {}}
    made["vocabulary"] = vocabulary.fingerprint
    for split in ("train", "test"):
        made["filter"] = cache.filter.settings(split, False)
        for name, languages in texts.items():
            for language, sentences in languages.items():
                examples = [Example(i, (ids,)) for i, ids in enumerate(sentences)]
                write_split(
                    cache, f"{name}_{language}", split, Layout(LENGTH), examples,
                    languages=(language,), vocabulary=vocabulary, fingerprint=dict(made),
                )  # fmt: skip
            tasks = [f"{name}_{language}" for language in languages]
            counts = dict.fromkeys(tasks, len(next(iter(languages.values()))))
            mixture = Mixture(name, {}, dict.fromkeys(tasks, 1.0), counts)
            write_mixture(cache, split, mixture)
    return cache


def make_checkpoints(args: argparse.Namespace, folder: str, vocabulary: Vocabulary) -> None:
    """A run's checkpoints with random weights, and the same in folders of Hugging Face."""
    config = EncoderConfig(
        vocab_size=vocabulary.size, num_layers=args.layers, width=args.width,
        num_heads=args.width // 64 or 1, mlp_width=4 * args.width, max_positions=LENGTH,
        init_std=0.05, scan="unroll",  # as recipes for CPUs have it
    )  # fmt: skip
    heads = {"mlm": {}}
    create = nnx.jit(lambda key: nnx.state(build_model(config, heads, nnx.Rngs(key))))
    description = Description(config, heads, vocabulary.fingerprint, {}, {})
    for number in range(args.checkpoints):
        path = os.path.join(folder, "run", "checkpoints", str(number + 1))
        params = jax.tree.map(np.asarray, nnx.to_pure_dict(create(jax.random.key(number))))
        files = {"model.json": description.to_json()}
        save_checkpoint(path, params, files | {VOCABULARY_FILE: read_bytes(vocabulary.path)})
        convert.main([f"--source={path}", f"--target={folder}/theirs/{number + 1}"])


# ---- Sides


def command(folder: str, evaluations: Sequence[str], *flags: str) -> list[str]:
    """`python -m xl_flax.evaluate` of some evaluations."""
    path = os.path.join(folder, f"{'-'.join(evaluations)}.gin")
    with open(path, "w") as file:
        named = ", ".join(EVALUATIONS[name] for name in evaluations)
        file.write(GIN.format(evaluations=named, length=LENGTH))
    here = [sys.executable, "-m", "xl_flax.evaluate", f"--gin_file={path}"]
    return [*here, f"--gin.CACHE_DIR={folder}/cache", *flags]


class Seconds(NamedTuple):
    """What commands took."""

    wall: float
    processors: float  # of all processors, user and system


def run(commands: Sequence[list[str]], kept: str) -> Seconds:
    """Runs commands, which find compiled programs in a folder, one after the other."""
    shutil.rmtree(kept, ignore_errors=True)
    os.makedirs(kept)
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": kept,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "PYTHONPATH": os.pathsep.join([cli.ROOT, os.path.dirname(os.path.abspath(__file__))]),
    }
    begin, used = time.perf_counter(), _used()
    for each in commands:
        done = subprocess.run(each, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(each)}\n{done.stderr}")
    return Seconds(time.perf_counter() - begin, _used() - used)


def _used() -> float:
    """Seconds of processors of all commands that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def flat_texts(texts: dict[str, dict[str, list]]) -> np.ndarray:
    """All token ids: int32[N, 4], the columns text, language, sentence, id."""
    rows = [
        (ord(name), int(language[1:]), i, token)
        for name, languages in texts.items()
        for language, sentences in languages.items()
        for i, sentence in enumerate(sentences)
        for token in sentence
    ]
    return np.array(rows, np.int32)


# ---- The comparison


def check(folder: str) -> None:
    """Raises unless retrieval came out alike, on all layers of all checkpoints."""
    theirs = json.loads(read_bytes(f"{folder}/theirs.json"))
    worst, count = 0.0, 0
    for row in results.read(f"{folder}/swept/{os.path.basename(folder)}/run/{results.FILE}"):
        if (row.task, row.metric, row.languages) == ("retrieval", "p@1", (MACRO,)):
            number, name = os.path.basename(row.checkpoint), row.data.split("/")[0]
            worst = max(worst, abs(row.value - theirs[f"{number}/{name}"][row.layer]))
            count += 1
    print(f"retrieval: {count} figures differ by {worst:.1e} at most")
    assert count and worst < 2e-3, "the sides found other translations"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark with these arguments, or those of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--sentences", type=int, default=1000, help="of each text and language")
    parser.add_argument("--languages", type=int, default=4, help="of each text")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--words", type=int, default=14000, help="most of which are pieces")
    parser.add_argument("--rounds", type=int, default=1)
    tiny = {"sentences": 24, "languages": 2, "layers": 1, "width": 64, "words": 2000}
    args = parse(parser, argv, checkpoints=1, **tiny)
    with tempfile.TemporaryDirectory(prefix="xl-flax-sweep-") as folder:
        vocabulary = make_vocabulary(folder, args.words)
        texts = make_text(args, vocabulary)
        make_cache(folder, vocabulary, texts)
        make_checkpoints(args, folder, vocabulary)
        np.save(f"{folder}/texts.npy", flat_texts(texts))
        with open(f"{folder}/special.json", "w") as file:
            json.dump(dataclasses.asdict(vocabulary.special), file)
        print(f"{args.layers} layers of width {args.width}, {vocabulary.size:,} pieces", flush=True)
        taken: dict[str, list[Seconds]] = {}
        for number in range(args.rounds):
            for path in glob.glob(f"{folder}/**/{results.FILE}", recursive=True):
                os.remove(path)  # what is there would not be measured again
            sides = list(sides_of(folder).items())
            turn = number % len(sides)
            for name, commands in sides[turn:] + sides[:turn]:
                seconds = run(commands, f"{folder}/kept-{name}")
                taken.setdefault(name, []).append(seconds)
                print(f"round {number + 1}, {name}: {seconds.wall:.1f} s", flush=True)
            check(folder)
    show(taken)


def sides_of(folder: str) -> dict[str, list[list[str]]]:
    """The commands of each side."""
    checkpoints = sorted(glob.glob(f"{folder}/run/checkpoints/*"))
    pattern = f"--checkpoints={folder}/run/checkpoints/*"
    theirs = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sweep_transformers.py")
    return {
        "sweep": [command(folder, [*EVALUATIONS], pattern, f"--output={folder}/swept")],
        "transformers": [[sys.executable, theirs, folder]],
        "separate": [
            command(folder, [name], f"--gin.MODEL_DIR={path}")
            for path in checkpoints
            for name in EVALUATIONS
        ],
    }


def show(taken: dict[str, list[Seconds]]) -> None:
    """A table of all rounds, and the ratios of each."""
    print(f"{'':14}{'seconds':>9}{'range':>16}{'processors':>12}{'/ sweep':>9}{'range':>14}")
    ratios = {}
    for name, own in taken.items():
        wall = [seconds.wall for seconds in own]
        used = statistics.median(seconds.processors for seconds in own)
        pairs = zip(own, taken["sweep"], strict=True)
        by_round = [theirs.wall / ours.wall for theirs, ours in pairs]
        ratios[name] = statistics.median(by_round)
        spans = f"{min(wall):.1f}–{max(wall):.1f}", f"{min(by_round):.2f}–{max(by_round):.2f}"
        print(
            f"{name:14}{statistics.median(wall):9.1f}{spans[0]:>16}{used:12.1f}"
            f"{ratios[name]:9.2f}{spans[1]:>14}"
        )
    ratios.pop("sweep")
    print(json.dumps({name: round(ratios[name], 2) for name in sorted(ratios)}))


if __name__ == "__main__":
    main()
