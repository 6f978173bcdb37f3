"""Examples per second of fine-tuning: XL-Flax against Transformers on this CPU.

    python tests/benchmarks/finetune_vs_hf.py [--batch 32] [--rounds 8] [--layers 6] [--width 384]
        [--length 128] [--tiny]

One step is everything behind the tokenizer: examples put into arrays, the loss, its gradient, and
AdamW, with dropout 0.1, in float32. All sides have the same batches of English examples and a BERT
of MiniLM's size with random weights; inference has a label for each pair, names one for each word.

  xl-flax  the training step of this project; the examples of a batch share rows of 128 tokens
  hf       BertForSequenceClassification and BertForTokenClassification (SDPA attention), fused
           AdamW, the Trainer's default; each batch is padded to its longest example
  hf-128   the same, padded to 128 tokens, as XTREME's scripts do

Ours and theirs have a process each: in one, the threads and the freed memory of one library slow
down the other. All sides take turns, after each has seen its batches once. A turn is two steps on a
batch, of which the second is measured: in a virtual machine, what a process frees may go back to
the host while it waits, and the first step fetches it again. Ratios are medians over rounds. Memory
comes in pages of 2 MiB, as launch/environment.sh has it.

Text is that of nli_en and PAN-X in XL_FLAX_DATA_DIR, cut by a SentencePiece vocabulary of 8,000
pieces that is made of it, and otherwise random tokens with lengths like theirs.

The last line is JSON: {"nli": seconds of hf / ours, "panx": …}.
"""

import argparse
import json
import multiprocessing.connection
import os
import statistics
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# PyTorch's threads sleep while they wait: where other programs run, too, spinning slows it down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # read when a process starts

import jax
import numpy as np
from common import SPECIAL, VOCAB, parse
from contrastive_vs_st import encode
from steps import TrainingStep

from xl_flax.data.batch_packing import MOST, pack_batch
from xl_flax.data.features import FeatureSpec
from xl_flax.data.stream import Rows
from xl_flax.models.config import EncoderConfig
from xl_flax.objectives.classification import SequenceClassification, TokenClassification
from xl_flax.text_table import table
from xl_flax.training.optimizer import OptimizerConfig

LABELS = {"nli": ("entailment", "neutral", "contradiction"), "panx": tuple("OBIPLXY")}
DROPOUT = 0.1


class Example(NamedTuple):
    """Tokens without special ones, of one or two texts; a label, or one per token (-1: none)."""

    texts: tuple[list[int], ...]
    label: int | list[int]


# ---- Text


def examples(task: str, count: int, length: int) -> list[Example]:
    """Examples that fit into `length` tokens."""
    rng = np.random.default_rng(0)
    texts = read(task, count)
    if texts is None:  # means and spreads of the real ones
        sizes = rng.gamma(6, {"nli": 2.5, "panx": 2}[task], (count, 2 if task == "nli" else 1))
        sizes = np.clip(sizes.astype(int), 2, length // 2 - 3)
        encoded = [[rng.integers(5, VOCAB, n).tolist() for n in own] for own in sizes]
    else:
        flat = iter(encode([text for own in texts for text in own]))
        encoded = [[next(flat)[: length // 2 - 3] for _ in own] for own in texts]
    made = []
    for own in encoded:
        number = len(LABELS[task])
        label = int(rng.integers(number))
        if task == "panx":
            label = [int(x) for x in rng.integers(-1, number, len(own[0]))]
        made.append(Example(tuple(own), label))
    return made


def read(task: str, count: int) -> list[list[str]] | None:
    """The texts of so many examples, or None where the files are not at hand."""
    folder = Path(os.environ.get("XL_FLAX_DATA_DIR", ""))
    if task == "nli":
        path = folder / "nli_en" / "snli_cad.train.tsv"
        if not path.exists():
            return None
        lines = path.read_text(encoding="utf-8").splitlines()[1 : count + 1]
        return [line.split("\t")[:2] for line in lines]
    for path in (folder / "panx" / "train-en.tsv", folder / "ner" / "panx" / "train-en.tsv"):
        if path.exists():
            sentences = path.read_text(encoding="utf-8").split("\n\n")[:count]
            words = [[line.split("\t")[0] for line in s.splitlines() if line] for s in sentences]
            return [[" ".join(own)] for own in words if own]
    return None


# ---- Sides: step(i) -> loss


class XlFlax:
    """This project."""

    def __init__(self, task: str, config: EncoderConfig, batches: list, length: int):
        kind = "example" if task == "nli" else "token"
        self.texts, self.length = (2 if task == "nli" else 1), length
        self.specs = {"label": FeatureSpec(kind, labels=LABELS[task])}
        stream = types.SimpleNamespace(
            num_texts=self.texts, examples_per_row=MOST, tasks=(task,), languages=("eng",),
            features=self.specs,
        )  # fmt: skip
        make = SequenceClassification if task == "nli" else TokenClassification
        dense = {"dense": "tanh"} if task == "nli" else {}
        rows = Rows(task, length, packing="batch")
        objective = make(rows=rows, batch_size=len(batches[0]), **dense)
        settings = OptimizerConfig(learning_rate=2e-5, schedule="constant", eps=1e-8)
        vocabulary = types.SimpleNamespace(special=SPECIAL)
        self.train_step = TrainingStep(config, objective, vocabulary, stream, settings)
        self.state = self.train_step.fresh()
        self.batches = [self.single(batch) for batch in batches]

    def single(self, batch: list[Example]) -> dict[str, np.ndarray]:
        """A row for each example, as the cache holds them."""
        n, shape = len(batch), (len(batch), self.length)
        rows = {name: np.zeros(shape, np.int32) for name in ("tokens", "segment_ids", "positions")}
        rows["label"] = np.full((n, 1) if self.texts == 2 else shape, -1, np.int32)
        for i, (texts, label) in enumerate(batch):
            at = 0
            for k, ids in enumerate(texts):
                size = len(ids) + 2
                rows["tokens"][i, at : at + size] = [SPECIAL.cls, *ids, SPECIAL.sep]
                rows["segment_ids"][i, at : at + size] = k + 1
                rows["positions"][i, at : at + size] = np.arange(size)
                at += size
            if self.texts == 2:
                rows["label"][i] = label
            else:
                rows["label"][i, 1 : 1 + len(label)] = label
        rows["languages"] = np.zeros((n, self.texts), np.int32)
        rows["row_id"] = np.arange(n, dtype=np.int32)
        rows["example"], rows["piece"] = (
            np.arange(n)[:, None].astype(np.int32),
            rows["label"][:, :1],
        )
        return rows

    def step(self, i: int) -> float:
        packed = pack_batch(self.batches[i], self.texts, self.specs, SPECIAL.pad, 1)
        self.state, metrics = self.train_step(self.state, packed)
        jax.block_until_ready(self.state)
        return float(metrics["step"]["loss"])


class HuggingFace:
    """The usual recipe."""

    def __init__(self, task: str, config: EncoderConfig, batches: list, pad_to: int | None):
        import torch
        import transformers

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        settings = transformers.BertConfig(
            vocab_size=config.vocab_size, hidden_size=config.width,
            num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
            intermediate_size=config.mlp_width, max_position_embeddings=config.max_positions,
            hidden_dropout_prob=DROPOUT, attention_probs_dropout_prob=DROPOUT,
            num_labels=len(LABELS[task]),
        )  # fmt: skip
        self.sentences = task == "nli"
        kind = "Sequence" if self.sentences else "Token"
        self.model = getattr(transformers, f"BertFor{kind}Classification")(settings).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=2e-5, weight_decay=0.01, fused=True
        )
        self.batches, self.pad_to = batches, pad_to

    def features(self, batch: list[Example]) -> dict:
        """Ids, token types and labels, padded."""
        import torch

        ids, types_, labels = [], [], []
        for texts, label in batch:
            own = [SPECIAL.cls, *texts[0], SPECIAL.sep]
            second = [*texts[1], SPECIAL.sep] if self.sentences else []
            ids.append(own + second)
            types_.append([0] * len(own) + [1] * len(second))
            labels.append(label if self.sentences else [-100, *label, -100])
        longest = self.pad_to or max(map(len, ids))
        pad = lambda rows, value: torch.tensor([r + [value] * (longest - len(r)) for r in rows])  # noqa: E731
        tokens = pad(ids, SPECIAL.pad)
        target = torch.tensor(labels) if self.sentences else pad(labels, -100)
        return {
            "input_ids": tokens,
            "attention_mask": (tokens != SPECIAL.pad).long(),
            "token_type_ids": pad(types_, 0),
            "labels": torch.where(target == -1, -100, target),
        }

    def step(self, i: int) -> float:
        import torch

        self.optimizer.zero_grad()
        loss = self.model(**self.features(self.batches[i])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


# ---- Workers


class Worker:
    """A process of its own that holds sides of one kind."""

    def __init__(self, kind: type):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, kind), daemon=True)
        self.process.start()
        other.close()  # so that the end of the process ends the pipe

    def ask(self, name: str, request: Any) -> float:
        """Gives the seconds that a request took: a tuple, the arguments of which a side of this
        name is made, or a number, the batch on which it takes a step."""
        self.pipe.send((name, request))
        return self.pipe.recv()

    def stop(self) -> None:
        """Ends the process."""
        self.pipe.close()
        self.process.join()


def serve(pipe: multiprocessing.connection.Connection, kind: type) -> None:
    """Answers what `Worker.ask` sends, until the pipe is closed."""
    sides = {}
    while True:
        try:
            name, request = pipe.recv()
        except EOFError:
            return
        start = time.perf_counter()
        if isinstance(request, tuple):
            sides[name] = kind(*request)
        else:
            assert np.isfinite(sides[name].step(request))
        pipe.send(time.perf_counter() - start)


# ---- The comparison


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark with these arguments, or those of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32, help="examples per step")
    parser.add_argument("--rounds", type=int, default=8, help="that are measured")
    parser.add_argument("--layers", type=int, default=6, help="of BERT")
    parser.add_argument("--width", type=int, default=384, help="of BERT")
    parser.add_argument("--length", type=int, default=128, help="tokens per row")
    args = parse(parser, argv, batch=4, rounds=2, layers=1, width=32, length=64)

    import torch
    import transformers

    threads = len(os.sched_getaffinity(0))
    config = EncoderConfig(
        vocab_size=30_522, num_layers=args.layers, width=args.width,
        num_heads=max(1, args.width // 32), mlp_width=4 * args.width, max_positions=512,
        token_types=2, scan="unroll", embedding_dropout=DROPOUT, attention_dropout=DROPOUT,
        attention_out_dropout=DROPOUT, mlp_out_dropout=DROPOUT,
    )  # fmt: skip
    print(f"jax {jax.__version__}, torch {torch.__version__}, transformers ", end="")
    print(f"{transformers.__version__}; {threads} threads; median of {args.rounds} rounds")
    ours, theirs = Worker(XlFlax), Worker(HuggingFace)
    # Where each side runs, and the tokens that it pads rows to (None: the longest example's).
    sides = {"xl-flax": (ours, args.length), "hf": (theirs, None), "hf-128": (theirs, args.length)}
    rows, ratios = [("task", "tokens", "side", "examples/s", "of hf")], {}
    for task in LABELS:
        made = examples(task, args.batch * args.rounds, args.length)
        batches = [made[i :: args.rounds] for i in range(args.rounds)]
        for name, (worker, length) in sides.items():
            worker.ask(name, (task, config, batches, length))
            for i in range(args.rounds):  # compiles each shape
                worker.ask(name, i)
        times: dict[str, list[float]] = {name: [] for name in sides}
        for i in range(args.rounds):
            # The order turns, so that no side always follows the same one.
            for name in np.roll(list(sides), i):
                sides[name][0].ask(name, i)
                times[name].append(sides[name][0].ask(name, i))
        tokens = np.mean([sum(len(t) + 1 for t in e.texts) + 1 for e in made])
        for name, own in times.items():
            pairs = zip(times["hf"], own, strict=True)
            ratio = statistics.median(theirs / ours for theirs, ours in pairs)
            speed = len(batches[0]) / statistics.median(own)
            rows.append((task, f"{tokens:.1f}", name, f"{speed:.1f}", f"{ratio:.2f}"))
            if name == "xl-flax":
                ratios[task] = round(ratio, 2)
    ours.stop()
    theirs.stop()
    print(table(rows, left=(0, 2)))
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
