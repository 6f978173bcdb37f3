"""Seconds per training step: XL-Flax against Hugging Face Transformers (PyTorch) on this CPU.

    python tests/benchmarks/mlm_vs_hf.py [--cases a,b,c,d] [--pairs 7] [--tiny]

The same XLM-R architecture, tokens, masking (15 %, 80/10/10), dropout (0.1 everywhere), AdamW and
float32 on every side, and a step is all of it: masking, forward, backward, update. The sides take
turns in one process, one step each per round, after two rounds of warm-up; the ratios are medians
over rounds, so that a machine that is busy now and then does not favour a side.

  xl-flax  MaskedLM, Encoder and the training step of this project, at their defaults but for the
           unrolled stack of layers (no clipping on any side)
  hf       the model as it comes: XLMRobertaForMaskedLM with labels, torch.optim.AdamW
  expert   the same model in expert hands: SDPA attention without a mask where nothing is padded,
           the head only at masked positions, fused AdamW; in case d also sentences of like length
           batched together

Case d compares real tokens per second on real sentences: padded batches against packed rows, with
as many real tokens in a step. Text comes from XL_FLAX_DATA_DIR/{bible,ntrex} if it is there, and
otherwise sentence lengths are drawn from a log-normal distribution with their mean and spread.

The last line is JSON: {case: {side: its time / ours}}, above 1 where XL-Flax is faster.
`--worker CASE` serves commits.py.
"""

import argparse
import csv
import dataclasses
import functools
import gc
import json
import os
import time
import types
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from common import parse, serve
from steps import TrainingStep

from xl_flax.data.packing import best_fit
from xl_flax.data.stream import Rows
from xl_flax.models.config import EncoderConfig
from xl_flax.objectives.mlm import MaskedLM
from xl_flax.training.optimizer import OptimizerConfig

RATE, DROPOUT, LEARNING_RATE = 0.15, 0.1, 1e-4
CLS, PAD, SEP, FIRST = 0, 1, 2, 4  # XLM-R's ids; the mask token is the last
LANGUAGES = ("eng", "deu", "fin", "rus", "vie")
WARM_UP = 2
WORKER_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table."""

    what: str
    vocab: int
    layers: int
    width: int
    rows: int
    length: int = 128
    sentences: bool = False

    @property
    def heads(self) -> int:
        return self.width // 64

    def tiny(self) -> "Case":
        """The same case in seconds."""
        sizes = {"vocab": 2000, "layers": 1, "width": 64, "rows": 4, "length": 32}
        text = ", ".join(f"{name} {size}" for name, size in sizes.items())
        return dataclasses.replace(self, what=f"tiny: {text}", **sizes)


CASES = {
    "a": Case("vocabulary 32,000, 4 layers, width 256, 32 x 128", 32_000, 4, 256, 32),
    "b": Case("vocabulary 250,002, 4 layers, width 256, 16 x 128", 250_002, 4, 256, 16),
    "c": Case("vocabulary 32,000, 12 layers, width 512, 8 x 128", 32_000, 12, 512, 8),
    "d": Case(
        "real sentences, vocabulary 32,000, 4 layers, width 256", 32_000, 4, 256, 32, 128, True
    ),
}


# ---- Tokens


def real_sentences(vocab: int) -> list[list[int]]:
    """Sentences as ids without specials, in random order."""
    rng = np.random.default_rng(0)
    texts = real_text()
    if not texts:
        lengths = np.clip(rng.lognormal(np.log(28), 0.5, 20_000).round(), 2, 126).astype(int)
        return [rng.integers(FIRST, vocab - 1, n).tolist() for n in lengths]
    import sentencepiece

    sample = rng.choice(len(texts), min(20_000, len(texts)), replace=False)
    model = types.SimpleNamespace(bytes=b"", write=lambda b: setattr(model, "bytes", b))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts[i] for i in sample),
        model_writer=model,
        vocab_size=vocab - 10,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.bytes)
    encoded = [(FIRST + np.asarray(ids, int)).tolist() for ids in processor.encode(texts) if ids]
    return [encoded[i] for i in rng.permutation(len(encoded))]


def real_text() -> list[str]:
    """Verses and news sentences in five languages."""
    root, texts = Path(os.environ.get("XL_FLAX_DATA_DIR", "/nowhere")), []
    for language in LANGUAGES:
        if (file := root / "bible" / f"{language}.tsv").exists():
            with file.open(encoding="utf-8", newline="") as lines:
                verses = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
                texts += [row[1] for row in verses][:6000]
        for file in sorted((root / "ntrex").glob(f"newstest2019-*.{language}.txt")):
            texts += file.read_text(encoding="utf-8").split("\n")
    return [text.strip() for text in texts if text.strip()]


def framed(ids: list[int], length: int) -> list[int]:
    return [CLS, *ids[: length - 2], SEP]


def random_rows(case: Case, count: int) -> list[list[list[int]]]:
    """`count` batches of rows that are one sentence each and full."""
    shape = (count, case.rows, case.length - 2)
    ids = np.random.default_rng(0).integers(FIRST, case.vocab - 1, shape)
    return [[framed(row.tolist(), case.length) for row in batch] for batch in ids]


def packed_arrays(rows: list[list[list[int]]], length: int) -> dict[str, np.ndarray]:
    """A batch for XL-Flax from rows of sentences."""
    batch = {k: np.zeros((len(rows), length), np.int32) for k in ("segment_ids", "positions")}
    batch["tokens"] = np.full((len(rows), length), PAD, np.int32)
    for r, row in enumerate(rows):
        at = 0
        for i, sentence in enumerate(row):
            part = np.s_[r, at : at + len(sentence)]
            batch["tokens"][part] = sentence
            batch["segment_ids"][part] = i + 1
            batch["positions"][part] = np.arange(len(sentence))
            at += len(sentence)
    batch["languages"] = np.zeros((len(rows), 1), np.int32)
    return batch


def make_batches(case: Case, count: int) -> tuple[list, list, list]:
    """Batches for ours (arrays), hf and expert (lists of sentences)."""
    if not case.sentences:
        rows = random_rows(case, count)
        ours = [packed_arrays([[row] for row in batch], case.length) for batch in rows]
        return ours, rows, rows
    sentences = [framed(ids, case.length) for ids in real_sentences(case.vocab)]
    sizes = [len(s) for s in sentences]
    packed = [[sentences[i] for i in row] for row in best_fit(sizes, case.length)]
    order = np.random.default_rng(1).permutation(len(packed))[: count * case.rows]
    ours = [
        packed_arrays([packed[i] for i in rows], case.length)
        for rows in order.reshape(count, case.rows)
    ]
    per_batch = round(np.mean([(b["segment_ids"] != 0).sum() for b in ours]) / np.mean(sizes))
    hf = [sentences[i * per_batch : (i + 1) * per_batch] for i in range(count)]
    alike = sorted((s for batch in hf for s in batch), key=len)
    total = sum(map(len, alike)) / count
    expert, batch = [], []
    for sentence in alike:  # as many real tokens in each batch, too
        batch.append(sentence)
        if sum(map(len, batch)) >= total:
            expert.append(batch)
            batch = []
    shuffled = np.random.default_rng(2).permutation(len(expert))
    expert = [expert[i] for i in shuffled]
    return ours, hf, [expert[i % len(expert)] for i in range(count)]


# ---- Sides: each makes a function step(i) -> real tokens


def xl_flax_side(case: Case, batches: list):
    config = EncoderConfig(
        vocab_size=case.vocab,
        num_layers=case.layers,
        width=case.width,
        num_heads=case.heads,
        mlp_width=4 * case.width,
        max_positions=case.length,
        position_offset=2,
        token_types=1,
        norm_eps=1e-5,
        embedding_dropout=DROPOUT,
        attention_dropout=DROPOUT,
        attention_out_dropout=DROPOUT,
        mlp_out_dropout=DROPOUT,
        scan="unroll",
    )
    special = np.isin(np.arange(case.vocab), [0, 1, 2, 3, case.vocab - 1])
    vocabulary = types.SimpleNamespace(
        special=types.SimpleNamespace(mask=case.vocab - 1), special_mask=lambda: special
    )
    objective = MaskedLM(rows=Rows("text", case.length), batch_size=case.rows, rate=RATE)
    stream = types.SimpleNamespace(num_texts=1, tasks=("text",), languages=("all",))
    settings = OptimizerConfig(learning_rate=LEARNING_RATE, schedule="constant")
    train_step = TrainingStep(config, objective, vocabulary, stream, settings)
    state = train_step.fresh()

    def step(i: int) -> int:
        nonlocal state
        row = np.arange(i * case.rows, (i + 1) * case.rows, dtype=np.int32)
        state, metrics = train_step(state, jax.device_put({**batches[i], "row_id": row}))
        sums = jax.device_get(metrics["mlm"])
        jax.block_until_ready(state)
        assert jnp.isfinite(sums["loss"])
        return int(sums["tokens"])

    return step


def torch_side(case: Case, batches: list, expert: bool):
    import torch
    import torch.nn.functional as F
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=case.vocab,
        num_hidden_layers=case.layers,
        hidden_size=case.width,
        num_attention_heads=case.heads,
        intermediate_size=4 * case.width,
        max_position_embeddings=case.length + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=DROPOUT,
        attention_probs_dropout_prob=DROPOUT,
        pad_token_id=PAD,
        bos_token_id=CLS,
        eos_token_id=SEP,
        **({"attn_implementation": "sdpa"} if expert else {}),
    )
    model = XLMRobertaForMaskedLM(config).train()
    settings = {"lr": LEARNING_RATE, **({"fused": True} if expert else {})}
    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    special = torch.tensor([0, 1, 2, 3, case.vocab - 1])

    def masked(tokens):
        """Transformers' DataCollatorForLanguageModeling.torch_mask_tokens."""
        labels = tokens.clone()
        chances = torch.full(labels.shape, RATE)
        chances.masked_fill_(torch.isin(labels, special), 0.0)
        chosen = torch.bernoulli(chances).bool()
        labels[~chosen] = -100
        replaced = torch.bernoulli(torch.full(labels.shape, 0.8)).bool() & chosen
        random = torch.bernoulli(torch.full(labels.shape, 0.5)).bool() & chosen & ~replaced
        tokens = tokens.clone()
        tokens[replaced] = case.vocab - 1
        tokens[random] = torch.randint(case.vocab, labels.shape)[random]
        return tokens, labels, chosen

    def padded(sentences):
        longest = max(map(len, sentences))
        return torch.tensor([s + [PAD] * (longest - len(s)) for s in sentences])

    def as_it_comes(tokens):
        corrupted, labels, _ = masked(tokens)
        return model(input_ids=corrupted, attention_mask=(tokens != PAD).long(), labels=labels).loss

    def by_hand(tokens):
        corrupted, labels, chosen = masked(tokens)
        present = tokens != PAD
        hidden = model.roberta(
            input_ids=corrupted, attention_mask=None if present.all() else present.long()
        ).last_hidden_state
        return F.cross_entropy(model.lm_head(hidden[chosen]), labels[chosen])

    def step(i: int) -> int:
        tokens = padded(batches[i])
        loss = (by_hand if expert else as_it_comes)(tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert np.isfinite(loss.item())
        return sum(map(len, batches[i]))

    return step


# ---- Rounds


def run(case: Case, pairs: int) -> dict[str, np.ndarray]:
    """Seconds (case d: seconds per real token) of each side, by round."""
    ours, hf, expert = make_batches(case, pairs + WARM_UP)
    sides = {
        "xl-flax": xl_flax_side(case, ours),
        "hf": torch_side(case, hf, expert=False),
        "expert": torch_side(case, expert, expert=True),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(pairs + WARM_UP):
        # The order turns, so that no side always follows the same one.
        for name in np.roll(list(sides), i):
            start = time.perf_counter()
            tokens = sides[name](i)
            seconds = time.perf_counter() - start
            times[name].append(seconds / tokens if case.sentences else seconds)
    return {name: np.asarray(t[WARM_UP:]) for name, t in times.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark with these arguments, or those of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES), help="which, as in a,c")
    parser.add_argument("--pairs", type=int, default=7, help="rounds that are measured")
    parser.add_argument("--worker", choices=CASES, help=argparse.SUPPRESS)
    args = parse(parser, argv, cases="d", pairs=2)
    cases = {name: case.tiny() if args.tiny else case for name, case in CASES.items()}
    if args.worker:
        batches, _, _ = make_batches(cases[args.worker], WORKER_BATCHES)
        serve(xl_flax_side(cases[args.worker], batches), WORKER_BATCHES)
    else:
        compare({name: cases[name] for name in args.cases.split(",")}, args.pairs)


def compare(cases: dict[str, Case], pairs: int) -> None:
    """Measures all sides and prints the table."""
    import torch
    import transformers

    threads = len(os.sched_getaffinity(0))  # what XLA takes
    torch.set_num_threads(threads)
    print(
        f"jax {jax.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; {threads} threads; median of {pairs} rounds\n"
    )
    ratios: dict[str, dict[str, float]] = {}
    for name, case in cases.items():
        times = run(case, pairs)
        ours = times.pop("xl-flax")
        ratios[name] = {k: round(float(np.median(t / ours)), 2) for k, t in times.items()}
        show = functools.partial(shown, per_token=case.sentences)
        print(f"({name}) {case.what}\n      xl-flax {show(ours)}")
        for side, t in times.items():
            print(f"      {side:7} {show(t)}   {ratios[name][side]:5.2f} x ours")
        gc.collect()
    print(json.dumps(ratios))


def shown(times: np.ndarray, per_token: bool) -> str:
    if per_token:
        return f"{np.median(1 / times):9,.0f} real tokens/s"
    return f"{np.median(times):8.3f} s/step"


if __name__ == "__main__":
    main()
