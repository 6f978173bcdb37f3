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
  transformers  one process: AutoModelForMaskedLM with all hidden states, each checkpoint converted
                beforehand; sentences sorted by length, 64 in a batch, encoded once for retrieval
                and mining; nearest neighbours by sentence-transformers and faiss; token ids are
                given

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

LENGTH, BATCH = 64, 64
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


def transformers_side(folder: str) -> None:
    """Evaluates all checkpoints with Transformers; writes P@1 by checkpoint, text and layer."""
    import torch
    import transformers

    texts = np.load(f"{folder}/texts.npy", allow_pickle=False)
    by_text = split_texts(texts)
    found = {}
    for path in sorted(glob.glob(f"{folder}/theirs/*"), key=lambda p: int(os.path.basename(p))):
        model = transformers.AutoModelForMaskedLM.from_pretrained(path).eval()
        special = json.loads(read_bytes(f"{folder}/special.json"))
        with torch.inference_mode():
            masked(model, [s for own in by_text["a"].values() for s in own], special)
            for name, languages in by_text.items():
                vectors = {k: encode(model, own, special) for k, own in languages.items()}
                found[f"{os.path.basename(path)}/{name}"] = retrieval(vectors)
                if name == "a":
                    mining(vectors)
    with open(f"{folder}/theirs.json", "w") as file:
        json.dump(found, file)


def batches(sentences: Sequence, special: dict):
    """Token ids and masks of batches by length, with the sentences' numbers."""
    import torch

    order = np.argsort([len(s) for s in sentences], kind="stable")
    for first in range(0, len(order), BATCH):
        chosen = order[first : first + BATCH]
        longest = max(len(sentences[i]) for i in chosen) + 2
        ids = np.full((len(chosen), longest), special["pad"])
        for row, i in enumerate(chosen):
            framed = [special["cls"], *sentences[i], special["sep"]]
            ids[row, : len(framed)] = framed
        yield torch.tensor(ids), torch.tensor(ids != special["pad"]), chosen


def encode(model, sentences: Sequence, special: dict) -> np.ndarray:
    """Means over tokens without special ones, of all layers: float32[Layers, N, D]."""
    output = None
    for ids, mask, chosen in batches(sentences, special):
        base = getattr(model, model.base_model_prefix)
        states = base(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        inside = mask & (ids != special["cls"]) & (ids != special["sep"])
        weights = inside / inside.sum(dim=1, keepdim=True)
        for layer, h in enumerate(states):
            mean = (h * weights[:, :, None]).sum(dim=1).numpy()
            if output is None:
                output = np.empty((len(states), len(sentences), mean.shape[1]), np.float32)
            output[layer, chosen] = mean
    return output


def masked(model, sentences: Sequence, special: dict) -> tuple[float, float]:
    """Loss and accuracy of 15 % of the tokens."""
    import torch

    generator, total, right, count = torch.Generator().manual_seed(0), 0.0, 0, 0
    for ids, mask, _ in batches(sentences, special):
        inside = mask & (ids != special["cls"]) & (ids != special["sep"])
        chosen = inside & (torch.rand(ids.shape, generator=generator) < 0.15)
        hidden = ids.masked_fill(chosen, special["mask"])
        logits = model(input_ids=hidden, attention_mask=mask).logits[chosen]
        total += float(torch.nn.functional.cross_entropy(logits, ids[chosen], reduction="sum"))
        right += int((logits.argmax(dim=-1) == ids[chosen]).sum())
        count += int(chosen.sum())
    return total / count, right / count


def retrieval(vectors: dict[str, np.ndarray]) -> list[float]:
    """P@1 by cosine of each layer, the mean over all ordered pairs of languages."""
    from sentence_transformers import util

    scores = []
    for layer in range(len(next(iter(vectors.values())))):
        own = []
        for x, queries in vectors.items():
            for y, candidates in vectors.items():
                if x != y:
                    hits = util.semantic_search(queries[layer], candidates[layer], top_k=1)
                    own.append(np.mean([h[0]["corpus_id"] == i for i, h in enumerate(hits)]))
        scores.append(float(np.mean(own)))
    return scores


def mining(vectors: dict[str, np.ndarray]) -> list[float]:
    """F1 of each layer and pair on one half of the sentences, at the threshold of the other."""
    names, scores = list(vectors), []
    number = np.arange(vectors[names[0]].shape[1])
    halves = number[number % 2 == 0], number[number % 2 == 1]
    for layer in range(len(vectors[names[0]])):
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                mined = []
                for own in halves:  # half of the sentences of each have a translation
                    kept = own[own // 2 % 4 != 3], own[own // 2 % 4 != 2]
                    x, y = vectors[a][layer][kept[0]], vectors[b][layer][kept[1]]
                    rows, columns, margins = mined_pairs(x, y)
                    gold = (own // 2 % 4 < 2).sum()
                    mined.append((kept[0][rows] == kept[1][columns], margins, gold))
                (right, margins, gold), (test_right, test_margins, test_gold) = mined
                f1 = 2 * np.cumsum(right) / (np.arange(1, len(right) + 1) + gold)
                accepted = test_margins >= margins[f1.argmax()]
                found = test_right[accepted].sum()
                scores.append(float(2 * found / (accepted.sum() + test_gold)))
    return scores


def mined_pairs(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of x and of y that belong together, one-to-one, by ratio margin (k = 4), best first."""
    import faiss

    def neighbours(queries, candidates):
        index = faiss.IndexFlatIP(queries.shape[1])
        index.add(candidates)
        return index.search(queries, 4)

    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    (x_cos, x_to_y), (y_cos, y_to_x) = neighbours(x, y), neighbours(y, x)
    x_mean, y_mean = x_cos.mean(axis=1), y_cos.mean(axis=1)
    forward = x_cos / ((x_mean[:, None] + y_mean[x_to_y]) / 2)
    backward = y_cos / ((y_mean[:, None] + x_mean[y_to_x]) / 2)
    rows, columns = np.arange(len(x)), np.arange(len(y))
    pairs = np.concatenate(
        [
            np.stack([rows, x_to_y[rows, forward.argmax(axis=1)]]),
            np.stack([y_to_x[columns, backward.argmax(axis=1)], columns]),
        ],
        axis=1,
    )
    margins = np.concatenate([forward.max(axis=1), backward.max(axis=1)])
    taken_x, taken_y, taken = set(), set(), []
    for i in np.argsort(-margins):
        a, b = pairs[:, i].tolist()
        if a not in taken_x and b not in taken_y:
            taken_x.add(a)
            taken_y.add(b)
            taken.append(i)
    return *pairs[:, taken], margins[taken]


def flat_texts(texts: dict[str, dict[str, list]]) -> np.ndarray:
    """All token ids as one array: text, language, sentence, id in four columns."""
    rows = [
        (ord(name), int(language[1:]), i, token)
        for name, languages in texts.items()
        for language, sentences in languages.items()
        for i, sentence in enumerate(sentences)
        for token in sentence
    ]
    return np.array(rows, np.int32)


def split_texts(flat: np.ndarray) -> dict[str, dict[str, list]]:
    """The inverse of `flat_texts`."""
    edges = np.flatnonzero(np.any(np.diff(flat[:, :3], axis=0), axis=1)) + 1
    texts: dict[str, dict[str, list]] = {}
    for part in np.split(flat, edges):
        name, language = chr(part[0, 0]), f"l{part[0, 1]}"
        texts.setdefault(name, {}).setdefault(language, []).append(part[:, 3])
    return texts


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
    parser.add_argument("--worker", metavar="FOLDER", help=argparse.SUPPRESS)
    tiny = {"sentences": 24, "languages": 2, "layers": 1, "width": 64, "words": 2000}
    args = parse(parser, argv, checkpoints=1, **tiny)
    if args.worker:
        transformers_side(args.worker)
        return
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
    here = os.path.abspath(__file__)
    return {
        "sweep": [command(folder, [*EVALUATIONS], pattern, f"--output={folder}/swept")],
        "transformers": [[sys.executable, here, f"--worker={folder}"]],
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
