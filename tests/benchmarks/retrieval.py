"""From text to mined pairs: XL-Flax against sentence-transformers with faiss on this CPU.

    python tests/benchmarks/retrieval.py [--sentences 100000] [--batch_size 128]
        [--layers 4] [--tiny]

Two collections of synthetic sentences (14 tokens in the mean; in four of five, seven tenths of the
words are those of the translation, the rest have none) are tokenised, encoded and mined by ratio
margin, k = 4, one-to-one, both directions. Both sides have the same tokenizer (a fast one of
Hugging Face's), the same BERT of 4 layers of width 128 with the same random weights in float32, and
the same mean pooling without special tokens.

  xl-flax  xl_flax.evaluation: `embed` (packed rows), `mine`
  st       SentenceTransformer.encode(batch_size=…, normalize_embeddings=True), IndexFlatIP in both
           directions, margins and greedy choice as in LASER, but without loops, in NumPy

The sides take turns in one process, a quarter of a collection each, after a warm-up on 2,000
sentences; 128 was the best batch size of 32, 64, 128 and 256 for sentence-transformers. Pairs must
be the same, up to scores that float32 cannot tell apart. With 100,000 sentences it takes three
minutes. The last line is JSON: {"ratio": st's seconds / ours}.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import faiss
import jax
import numpy as np
import sentence_transformers
import torch
from bert import copy_weights, make_bert, make_tokenizer, sentence_transformer
from common import LAYERS, LENGTH, SPECIAL, TOKENS, VOCAB, bert_config, parse
from flax import nnx

from xl_flax.evaluation.embed import Encoding, embed, make_pool
from xl_flax.evaluation.mining import mine
from xl_flax.evaluation.search import unit
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.parallel.mesh import MeshConfig, make_partitioning

K = 4
ALIKE, KEPT = 0.8, 0.7  # share of sentences with a translation, and of words in common


# ---- Text


def make_text(count: int) -> tuple[list[str], list[str]]:
    """Two collections of `count` sentences; row i of one belongs to row i of the other, or none."""
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(VOCAB - len(TOKENS))])
    rank = np.arange(1, len(words) + 1)
    frequency = (1 / rank) / (1 / rank).sum()
    sizes = np.clip(rng.lognormal(np.log(11), 0.45, count).round(), 2, 60).astype(int)
    x = rng.choice(len(words), sizes.sum(), p=frequency)
    replaced = rng.random(len(x)) > np.repeat(np.where(rng.random(count) < ALIKE, KEPT, 0), sizes)
    y = np.where(replaced, rng.choice(len(words), len(x), p=frequency), x)
    ends = np.cumsum(sizes)[:-1]
    return tuple([" ".join(s) for s in np.split(words[ids], ends)] for ids in (x, y))


# ---- Sides: encode(texts) -> vectors of length 1, mine(x, y) -> rows of x, rows of y, scores


class XlFlax:
    """This project."""

    def __init__(self, bert, config: EncoderConfig, tokenizer):
        model = nnx.eval_shape(lambda: build_model(config, {}, nnx.Rngs(0)))
        copy_weights(bert, model.encoder)
        self.partitioning = make_partitioning(MeshConfig(), jax.devices()[:1])
        graph, state = nnx.split(model)
        self.params = nnx.to_pure_dict(state)
        self.pool = make_pool(graph, Encoding((config.num_layers,), "mean"), self.partitioning)
        self.tokenizer = tokenizer.backend_tokenizer

    def encode(self, texts: list[str]) -> np.ndarray:
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        sentences = [np.array(e.ids) for e in encoded]
        (vectors,) = embed(self.pool, self.params, sentences, SPECIAL, LENGTH, self.partitioning)
        return unit(vectors)

    def mine(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
        return mine(x, y, K)


class SentenceTransformers:
    """The usual recipe."""

    def __init__(self, bert, batch_size: int):
        self.model = sentence_transformer(bert)
        self.batch_size = batch_size

    def encode(self, texts: list[str]) -> np.ndarray:
        return self.model.encode(
            texts,
            batch_size=self.batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        )

    def mine(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
        def neighbours(queries, candidates):
            index = faiss.IndexFlatIP(queries.shape[1])
            index.add(candidates)
            return index.search(queries, K)

        x_cos, x_to_y = neighbours(x, y)
        y_cos, y_to_x = neighbours(y, x)
        x_mean, y_mean = x_cos.mean(axis=1), y_cos.mean(axis=1)
        forward = x_cos / ((x_mean[:, None] + y_mean[x_to_y]) / 2)
        backward = y_cos / ((y_mean[:, None] + x_mean[y_to_x]) / 2)
        rows, columns = np.arange(len(x)), np.arange(len(y))
        x_best, y_best = x_to_y[rows, forward.argmax(1)], y_to_x[columns, backward.argmax(1)]
        pairs = np.stack([np.concatenate([rows, y_best]), np.concatenate([x_best, columns])], 1)
        scores = np.concatenate([forward.max(1), backward.max(1)])
        seen_x, seen_y, taken = set(), set(), []
        for i in np.argsort(-scores):
            a, b = pairs[i]
            if a not in seen_x and b not in seen_y:
                seen_x.add(a)
                seen_y.add(b)
                taken.append(i)
        return pairs[taken, 0], pairs[taken, 1], scores[taken]


# ---- The comparison


def compare(sides: dict, text: tuple[list[str], list[str]]) -> tuple[dict, dict]:
    """Seconds by stage and side, and what each side mined."""
    seconds: dict[str, dict[str, float]] = {"encode": {}, "mine": {}}
    vectors: dict[str, list] = {name: [] for name in sides}
    mined = {}

    def timed(stage: str, name: str, function, *args):
        start = time.perf_counter()
        result = function(*args)
        taken = time.perf_counter() - start
        seconds[stage][name] = seconds[stage].get(name, 0.0) + taken
        return result

    # In quarters, in turns, so that a machine that is busy now and then favours no side.
    for texts in text:
        for part in np.array_split(np.arange(len(texts)), 4):
            chosen = [texts[i] for i in part]
            for name, side in sides.items():
                vectors[name].append(timed("encode", name, side.encode, chosen))
    for name, side in sides.items():
        x, y = np.concatenate(vectors[name][:4]), np.concatenate(vectors[name][4:])
        mined[name] = timed("mine", name, side.mine, x, y)
    return seconds, mined


def check(mined: dict) -> None:
    """Raises unless the sides mined the same pairs, up to scores that are equal in float32."""
    ours, theirs = (
        dict(zip(zip(x.tolist(), y.tolist(), strict=True), score.tolist(), strict=True))
        for x, y, score in mined.values()
    )
    common = ours.keys() & theirs.keys()
    worst = max(abs(ours[pair] - theirs[pair]) for pair in common)
    share = 2 * len(common) / (len(ours) + len(theirs))
    right = [sum(x == y for x, y in pairs) for pairs in (ours, theirs)]
    print(
        f"\npairs mined: {len(ours):,} and {len(theirs):,}, right {right[0]:,} and {right[1]:,}; "
        f"in common {share:.4%}, scores differ by {worst:.1e} at most"
    )
    assert share > 0.999 and worst < 1e-4, "the sides mined other pairs"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark with these arguments, or those of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sentences", type=int, default=100_000, help="on each side")
    parser.add_argument("--batch_size", type=int, default=128, help="of sentence-transformers")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of BERT")
    args = parse(parser, argv, sentences=300, layers=1)
    torch.set_num_threads(threads := len(os.sched_getaffinity(0)))
    config = bert_config(args.layers)
    bert = make_bert(config)
    sides = {
        "xl-flax": XlFlax(bert, config, make_tokenizer()),
        "st": SentenceTransformers(bert, args.batch_size),
    }
    compare(sides, make_text(min(2000, args.sentences)))  # a warm-up
    seconds, mined = compare(sides, make_text(args.sentences))
    print(
        f"jax {jax.__version__}, torch {torch.__version__}, sentence-transformers "
        f"{sentence_transformers.__version__}, faiss {faiss.__version__}; {threads} threads; "
        f"{args.sentences:,} x {args.sentences:,} sentences\n"
    )
    seconds["all"] = {name: sum(s[name] for s in seconds.values()) for name in sides}
    print(f"{'seconds':10}{'xl-flax':>10}{'st':>10}{'st / ours':>12}")
    for stage, taken in seconds.items():
        ours, theirs = taken["xl-flax"], taken["st"]
        print(f"{stage:10}{ours:10.2f}{theirs:10.2f}{theirs / ours:12.2f}")
    check(mined)
    print(json.dumps({"ratio": round(seconds["all"]["st"] / seconds["all"]["xl-flax"], 2)}))


if __name__ == "__main__":
    main()
