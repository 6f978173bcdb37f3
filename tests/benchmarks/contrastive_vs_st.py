"""Seconds per contrastive training step: XL-Flax against sentence-transformers on this CPU.

    python tests/benchmarks/contrastive_vs_st.py [--batch 512] [--mini_batch 64]
        [--pairs-of-steps 5] [--length 128] [--layers 4] [--tiny]

One step is everything behind the tokenizer: the batch encoded in mini-batches without gradients,
the loss of the whole batch, the same mini-batches encoded again with them (gradient caching, Gao et
al. 2021), AdamW. All sides have the same pairs, the same BERT of 4 layers of width 128 (vocabulary
8,000) with the same weights in float32, mean pooling without special tokens, no dropout, cosines
times 20, both directions, and mini-batches of as many sentences:

  xl-flax  Contrastive in the training step of this project; rows packed as the cache packs them
  st       CachedMultipleNegativesRankingLoss over a SentenceTransformer (SDPA attention), fused
           AdamW, the Trainer's default; each mini-batch is padded to its own longest sentence
  sorted   the same, but the pairs of a batch come sorted by length, which a collator could do

The sides take turns in one process, a step each per round, after a first round which checks that
all have the same loss and gradient; ratios are medians over rounds, so that a machine that is busy
now and then does not favour a side. Processor seconds, of all threads, hardly depend on that. Text
is Bible verses in XL_FLAX_DATA_DIR, English beside five languages, if they are there, and otherwise
random tokens with lengths like theirs.

The last line is JSON: {"ratio": st's seconds / ours}. `--worker pairs` serves commits.py.
"""

import argparse
import copy
import csv
import itertools
import json
import os
import time
import types
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# PyTorch's threads sleep while they wait: where other programs run, too, spinning slows it down
# several times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import jax
import numpy as np
from common import (
    LAYERS,
    LENGTH,
    SPECIAL,
    TOKENS,
    VOCAB,
    bert_config,
    parse,
    serve,
)
from flax import nnx
from steps import TrainingStep

from xl_flax.data.framing import Part
from xl_flax.data.packing import measured, pack_windows
from xl_flax.data.records import decode_rows, encode_row, ids_dtype
from xl_flax.data.stream import Rows
from xl_flax.objectives.contrastive import Contrastive
from xl_flax.training.optimizer import OptimizerConfig

SCALE, LEARNING_RATE, B1 = 20.0, 1e-4, 0.9
LANGUAGES = ("deu", "fin", "rus", "spa", "vie")

Pair = tuple[np.ndarray, np.ndarray]


# ---- Text


def make_pairs(count: int) -> list[Pair]:
    """At most `count` pairs of ids int[n] with their special tokens, in random order."""
    rng = np.random.default_rng(0)
    if texts := verses():
        texts = [texts[i] for i in rng.permutation(len(texts))[: 2 * count]]
        found = encode(list(itertools.chain(*texts)))
        found = list(zip(found[::2], found[1::2], strict=True))
    else:
        sizes = rng.normal(np.log(28), 0.4, (count, 1)) + rng.normal(0, 0.15, (count, 2))
        sizes = np.exp(sizes).round().astype(int) + 1
        found = [[rng.integers(len(TOKENS), VOCAB, n) for n in both] for both in sizes]
    # Equal texts are left out: they would be negatives there, and are none here.
    seen, pairs = set(), []
    for both in found:
        pair = tuple(np.array([SPECIAL.cls, *ids, SPECIAL.sep], np.int32) for ids in both)
        texts = {ids.tobytes() for ids in pair}
        if len(texts) == 2 and not texts & seen and sum(map(len, pair)) <= LENGTH:
            seen |= texts
            pairs.append(pair)
    return pairs[:count]


def verses() -> list[tuple[str, str]]:
    """English verses beside those of the other languages, which take turns; none if not there."""
    folder = Path(os.environ.get("XL_FLAX_DATA_DIR", "/nowhere")) / "bible"
    if not all((folder / f"{language}.tsv").exists() for language in ("eng", *LANGUAGES)):
        return []

    def read(language: str) -> dict[str, str]:
        with (folder / f"{language}.tsv").open(encoding="utf-8", newline="") as lines:
            rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            return {row[0]: row[1] for row in rows}

    english, others = read("eng"), itertools.cycle([read(language) for language in LANGUAGES])
    pairs = [(text, next(others).get(verse)) for verse, text in english.items()]
    return [pair for pair in pairs if all(pair)]


def encode(texts: list[str]) -> list[list[int]]:
    """Ids of a SentencePiece vocabulary that is trained on the texts."""
    import sentencepiece

    model = types.SimpleNamespace(bytes=b"", write=lambda b: setattr(model, "bytes", b))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts[:10_000]),
        model_writer=model,
        vocab_size=VOCAB - len(TOKENS),
        hard_vocab_limit=False,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.bytes)
    return [[len(TOKENS) + i for i in ids] for ids in processor.encode(texts)]


def make_batches(
    pairs: list[Pair], length: int, batch: int, parts: int, count: int
) -> tuple[list[dict[str, np.ndarray]], list[list[Pair]], int]:
    """Packed batches, each of about `batch` pairs and a multiple of `parts` rows.

    Returns:
      The batches, the pairs that are in them, and how many pairs a row may hold.
    """
    parts_of_rows = [Part(pair, sum(map(len, pair))) for pair in pairs]
    most, stream = measured(parts_of_rows, length)
    packed = list(pack_windows(stream, length, most))
    rows = parts * max(1, round(batch * len(packed) / len(pairs) / parts))
    order = np.random.default_rng(1).permutation(len(packed))[: count * rows]
    dtype, batches, inside = ids_dtype(VOCAB), [], []
    for chosen in order.reshape(count, rows):
        taken = [packed[i] for i in chosen]
        records = [encode_row(row, dtype) for row in taken]
        batches.append(decode_rows(records, length, dtype, SPECIAL.pad))
        batches[-1]["languages"] = np.tile(np.arange(2, dtype=np.int32), (rows, 1))
        batches[-1]["row_id"] = np.arange(rows, dtype=np.int32)
        inside.append([part.segments for row in taken for part in row])
    return batches, inside, most


# ---- Sides: step(i) -> loss; gradient() -> that of the first step; padding: share of positions


class XlFlax:
    """This project."""

    def __init__(self, layers: int, batches: list, most: int, parts: int, bert=None):
        rows, length = batches[0]["tokens"].shape
        self.config = bert_config(layers, scan="unroll")
        objective = Contrastive(
            rows=Rows("pairs", length),
            batch_size=rows,
            scale=SCALE,
            pooling="mean",
            microbatches=parts,
        )
        stream = types.SimpleNamespace(
            num_texts=2, examples_per_row=most, tasks=("pairs",), languages=("eng", "other")
        )
        settings = OptimizerConfig(learning_rate=LEARNING_RATE, schedule="constant", b1=B1)
        self.train_step = TrainingStep(self.config, objective, None, stream, settings)
        self.state = self.train_step.fresh(None if bert is None else self.like(bert))
        self.batches = batches
        self.padding = np.mean([batch["segment_ids"] == 0 for batch in batches])

    def like(self, bert) -> dict:
        """Our parameters, with BERT's values."""
        from bert import copy_weights

        model = nnx.eval_shape(self.train_step.build)  # the head has no parameters
        copy_weights(bert, model.encoder)
        return nnx.to_pure_dict(nnx.state(model))

    def step(self, i: int) -> float:
        self.state, metrics = self.train_step(self.state, self.batches[i])
        jax.block_until_ready(self.state)
        return float(metrics["step"]["loss"])

    def gradient(self) -> dict:
        """Adam's first moment after one step is (1 - b1) times the gradient."""
        return jax.tree.map(lambda m: np.asarray(m) / (1 - B1), self.state.optimizer[0].mu)


class SentenceTransformers:
    """The usual recipe."""

    def __init__(self, bert, batches: list[list[Pair]], mini_batches: int):
        import torch
        from bert import sentence_transformer
        from sentence_transformers.sentence_transformer import losses

        model = sentence_transformer(bert)
        self.bert = model[0].auto_model.eval()  # no dropout, as there
        self.loss = losses.CachedMultipleNegativesRankingLoss(
            model,
            scale=SCALE,
            directions=("query_to_doc", "doc_to_query"),
            partition_mode="per_direction",
        )
        self.optimizer = torch.optim.AdamW(
            self.bert.parameters(), lr=LEARNING_RATE, betas=(B1, 0.999), fused=True
        )
        self.sizes = [-(-len(batch) // mini_batches) for batch in batches]  # of mini-batches
        self.features = [[padded(side) for side in zip(*batch, strict=True)] for batch in batches]
        masks = [
            part
            for features, size in zip(self.features, self.sizes, strict=True)
            for side in features
            for part in side["attention_mask"].split(size)
        ]
        # The loss cuts off the columns in which a whole mini-batch is padded.
        positions = sum(mask.shape[0] * int(mask.sum(1).max()) for mask in masks)
        self.padding = 1 - sum(int(mask.sum()) for mask in masks) / positions

    def step(self, i: int) -> float:
        self.optimizer.zero_grad()
        self.loss.mini_batch_size = self.sizes[i]
        loss = self.loss(self.features[i], labels=None)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def gradient(self):
        """A BERT whose weights are the gradient."""
        gradient = copy.deepcopy(self.bert)
        for to, parameter in zip(gradient.parameters(), self.bert.parameters(), strict=True):
            if parameter.grad is not None:  # the pooler, which is not used, has none
                to.data = parameter.grad
        return gradient


def padded(sentences: tuple[np.ndarray, ...]) -> dict:
    """Features of sentences, padded to the longest of them."""
    import torch

    tokens = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(ids).long() for ids in sentences], True, SPECIAL.pad
    )
    return {"input_ids": tokens, "attention_mask": (tokens != SPECIAL.pad).long()}


# ---- The comparison


def check(sides: dict, first_losses: dict[str, float]) -> None:
    """Raises unless all sides had the same loss and gradient in their first step."""
    ours = sides["xl-flax"]
    gradient = ours.gradient()
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
    for name, side in sides.items():
        if side is ours:
            continue
        theirs = ours.like(side.gradient())
        squares = jax.tree.map(lambda a, b: ((a - b) ** 2).sum(), gradient, theirs)
        off = float(np.sqrt(sum(jax.tree.leaves(squares))) / norm)
        loss = first_losses["xl-flax"], first_losses[name]
        print(f"first step, xl-flax and {name}: losses {loss[0]:.6f} and {loss[1]:.6f}, ", end="")
        print(f"gradients differ by {off:.1e} of their norm {norm:.3f}")
        assert abs(loss[0] - loss[1]) < 1e-4 and off < 1e-3, "the sides compute something else"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark with these arguments, or those of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=512, help="pairs per step, about")
    parser.add_argument("--mini_batch", type=int, default=64, help="sentences encoded at once")
    parser.add_argument("--pairs-of-steps", type=int, default=5, help="rounds that are measured")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens per packed row")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of BERT")
    parser.add_argument("--worker", choices=["pairs"], help=argparse.SUPPRESS)
    args = parse(parser, argv, batch=8, mini_batch=4, pairs_of_steps=2, layers=1)

    steps = args.pairs_of_steps + 1
    pairs = make_pairs(args.batch * (steps + 3))
    mini_batches = -(-args.batch // args.mini_batch)  # of each side; rows hold both sides
    ours, theirs, most = make_batches(pairs, args.length, args.batch, 2 * mini_batches, steps)
    if args.worker:
        serve(XlFlax(args.layers, ours, most, 2 * mini_batches).step, steps)
    else:
        compare(args, ours, theirs, most, mini_batches)


def compare(
    args: argparse.Namespace, ours: list, theirs: list, most: int, mini_batches: int
) -> None:
    """Measures all sides and prints the table."""
    import sentence_transformers
    import torch
    import transformers
    from bert import make_bert

    torch.set_num_threads(threads := len(os.sched_getaffinity(0)))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    alike = [sorted(batch, key=lambda pair: (len(pair[0]), len(pair[1]))) for batch in theirs]
    bert = make_bert(bert_config(args.layers))
    sides = {
        "xl-flax": XlFlax(args.layers, ours, most, 2 * mini_batches, bert),
        "st": SentenceTransformers(bert, theirs, mini_batches),
        "sorted": SentenceTransformers(bert, alike, mini_batches),
    }
    tokens = np.mean([len(ids) for pair in itertools.chain(*theirs) for ids in pair])
    print(
        f"jax {jax.__version__}, torch {torch.__version__}, sentence-transformers "
        f"{sentence_transformers.__version__}; {threads} threads; median of "
        f"{args.pairs_of_steps} rounds\n{np.mean([len(b) for b in theirs]):.0f} pairs per step, "
        f"{2 * mini_batches} mini-batches; {tokens:.1f} tokens per sentence; "
        f"{len(ours[0]['tokens'])} packed rows of {args.length}\n"
    )
    check(sides, {name: side.step(0) for name, side in sides.items()})

    # Of each side and round, the seconds that a clock and the processors counted.
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for i in range(1, len(ours)):
        # The order turns, so that no side always follows the same one.
        for name in np.roll(list(sides), i):
            start = time.perf_counter(), time.process_time()
            loss = sides[name].step(i)
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
            assert np.isfinite(loss)
    sizes = np.array([len(batch) for batch in theirs[1:]])
    seconds = {name: np.array(t) for name, t in times.items()}
    ratios = {name: np.median(t / seconds["xl-flax"], axis=0) for name, t in seconds.items()}
    print(
        f"\n{'':8}{'s/step':>9}{'pairs/s':>9}{'padding':>9}{'/ ours':>8}"
        f"{'processor s':>14}{'/ ours':>8}"
    )
    for name, t in seconds.items():
        wall, processor = np.median(t, axis=0)
        print(
            f"{name:8}{wall:9.2f}{np.median(sizes / t[:, 0]):9.0f}{sides[name].padding:9.1%}"
            f"{ratios[name][0]:8.2f}{processor:14.2f}{ratios[name][1]:8.2f}"
        )
    print(json.dumps({"ratio": round(float(ratios["st"][0]), 2)}))


if __name__ == "__main__":
    main()
