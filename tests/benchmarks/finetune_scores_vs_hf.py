"""Scores on dev after the same fine-tuning: XL-Flax against the Trainer of Transformers.

    XL_FLAX_DATA_DIR=… python tests/benchmarks/finetune_scores_vs_hf.py --model=FOLDER
        [--steps 250] [--batch 32] [--rate 5e-5] [--seeds 3] [--out runs/scores_vs_hf] [--tiny]

Both begin with the same BERT of Hugging Face and learn SNLI's counterfactual pairs (nli_en) and
PAN-X in English from the same files, in as many steps of as many examples, with AdamW, a linear
schedule behind a warm-up of a tenth, dropout 0.1 and clipping at 1, once for each seed of the order
of the data, the head's start, and dropout. Inference is scored by accuracy, names by seqeval's F1.

Two things differ: Transformers has dropout before the scores, and takes BERT's pooler with it.

The table has each seed's score in %. The last line is JSON, by task: {"xl-flax": mean, "hf": mean,
"spread": the larger standard deviation over seeds}, as shares. With --tiny a small random model
learns generated text.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from common import TOKENS, parse

from xl_flax import train
from xl_flax.text_table import table

LABELS = {
    "nli": ("entailment", "neutral", "contradiction"),
    "panx": ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"),
}
# Of this project: the Gin file, the evaluation, and the scalar in metrics.jsonl.
OURS = {
    "nli": ("finetune_snli", "ClassificationScores", "eval/snli_cad_eng/accuracy/eng"),
    "panx": ("finetune_panx", "TaggingScores", "eval/panx_eng/f1/eng"),
}
FILES = {"nli": "nli_en/snli_cad.{}.tsv", "panx": "panx/{}-en.tsv"}
LENGTH = 128


# ---- Text


def read(task: str, split: str) -> list[tuple]:
    """(premise, hypothesis, label) or (words, labels) of each example."""
    name, folder = FILES[task].format(split), Path(os.environ["XL_FLAX_DATA_DIR"])
    path = next(p for p in (folder / name, folder / "ner" / name) if p.exists())
    if task == "nli":
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
        return [tuple(cell.strip('"') for cell in line.split("\t")) for line in lines if line]
    sentences = path.read_text(encoding="utf-8").strip().split("\n\n")
    pairs = [[line.split("\t") for line in s.split("\n")] for s in sentences]
    return [([w.removeprefix("en:") for w, *_ in own], [x[-1] for x in own]) for own in pairs]


def write_small(folder: Path) -> str:
    """Text of a few words, and a BERT that knows them; gives the BERT's folder."""
    import transformers

    rng, words = np.random.default_rng(0), [f"w{i}" for i in range(40)]
    for split, count in (("train", 24), ("dev", 8)):
        said = [" ".join(rng.choice(words, 5)) for _ in range(2 * count)]
        told = rng.choice(LABELS["nli"], count)
        rows = ["sentence1\tsentence2\tgold_label"]
        rows += ["\t".join(row) for row in zip(said[::2], said[1::2], told, strict=True)]
        tags = [[f"{w}\t{rng.choice(LABELS['panx'])}" for w in s.split()] for s in said[::2]]
        for task, text in (("nli", rows), ("panx", ["\n".join(own) + "\n" for own in tags])):
            path = folder / FILES[task].format(split)
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(text) + "\n")
    config = transformers.BertConfig(
        vocab_size=len(TOKENS) + len(words), hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16, max_position_embeddings=LENGTH,
    )  # fmt: skip
    model = folder / "model"
    transformers.BertModel(config).save_pretrained(model)
    (model / "vocab.txt").write_text("\n".join([*TOKENS, *words]) + "\n")
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return str(model)


# ---- Sides: scores of the seeds


def xl_flax(task: str, args: argparse.Namespace) -> list[float]:
    """This project."""
    file, evaluation, metric = OURS[task]
    folder = f"{args.out}/{task}"
    settings = {
        "CHECKPOINT": args.model,
        "MODEL_DIR": folder,
        "CACHE_DIR": f"{args.out}/cache",
        "SEEDS": list(range(args.seeds)),
        "STEPS": args.steps,
        "BATCH_SIZE": args.batch,
        "OptimizerConfig.learning_rate": args.rate,
        "OptimizerConfig.warmup_steps": args.steps // 10,
        "OptimizerConfig.eps": 1e-8,
        "Periodic.every": args.steps,
        f"dev/{evaluation}.split": "validation",
    }
    if task == "nli":  # BERT's
        settings["SequenceClassification.pooling"] = "cls"
    flags = [f"--gin.{name}={value}" for name, value in settings.items()]
    if train.main([f"--gin_file=gin/runs/{file}.gin", *flags]) != 0:
        raise SystemExit(f"{task}: training failed")
    scores = []
    for seed in range(args.seeds):
        lines = Path(f"{folder}/{seed}/metrics.jsonl").read_text().splitlines()
        values = [line[metric] for line in map(json.loads, lines) if metric in line]
        scores.append(values[-1])
    return scores


def hugging_face(task: str, args: argparse.Namespace) -> list[float]:
    """The usual recipe."""
    import transformers
    from seqeval.metrics import f1_score

    labels = LABELS[task]
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    train_set, dev = (encoded(task, read(task, split), tokenizer) for split in ("train", "dev"))
    kind = "Sequence" if task == "nli" else "Token"
    make = getattr(transformers, f"AutoModelFor{kind}Classification").from_pretrained
    collate = (
        transformers.DataCollatorWithPadding(tokenizer)
        if task == "nli"
        else transformers.DataCollatorForTokenClassification(tokenizer)
    )

    def score(predictions: np.ndarray, gold: np.ndarray) -> float:
        best = predictions.argmax(-1)
        if task == "nli":
            return float((best == gold).mean())
        names = [
            [[labels[i] for i in row[own >= 0]] for row, own in zip(x, gold, strict=True)]
            for x in (gold, best)
        ]
        return float(f1_score(*names))

    scores = []
    for seed in range(args.seeds):
        transformers.set_seed(seed)
        settings = transformers.TrainingArguments(
            output_dir=f"{args.out}/hf/{task}/{seed}", max_steps=args.steps, seed=seed,
            per_device_train_batch_size=args.batch, per_device_eval_batch_size=args.batch,
            learning_rate=args.rate, warmup_steps=args.steps // 10, weight_decay=0.01,
            lr_scheduler_type="linear", save_strategy="no", report_to=[], use_cpu=True,
            disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = transformers.Trainer(
            make(args.model, num_labels=len(labels)), settings, collate, train_set
        )
        trainer.train()
        told = trainer.predict(dev)
        scores.append(score(told.predictions, told.label_ids))
    return scores


def encoded(task: str, examples: list[tuple], tokenizer: Callable) -> list[dict]:
    """What the Trainer reads; of words the first piece has the label, the others have -100."""
    made = []
    for example in examples:
        if task == "nli":
            *texts, label = example
            row = dict(tokenizer(*texts, truncation=True, max_length=LENGTH))
            made.append(row | {"labels": LABELS[task].index(label)})
            continue
        words, tags = example
        row = tokenizer(words, is_split_into_words=True, truncation=True, max_length=LENGTH)
        of = row.word_ids()
        first = [w is not None and w != before for before, w in zip([None, *of], of, strict=False)]
        marks = [
            LABELS[task].index(tags[w]) if begins else -100
            for w, begins in zip(of, first, strict=True)
        ]
        made.append(dict(row) | {"labels": marks})
    return made


# ---- The comparison


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark with these arguments, or those of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a folder of Hugging Face with a BERT and its tokenizer")
    parser.add_argument("--out", default="runs/scores_vs_hf", help="folder of runs and caches")
    parser.add_argument("--tasks", nargs="+", choices=list(LABELS), default=list(LABELS))
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=32, help="examples per step")
    parser.add_argument("--rate", type=float, default=5e-5, help="peak of the learning rate")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each side")
    args = parse(parser, argv, steps=2, batch=4, seeds=2)
    with tempfile.TemporaryDirectory() as folder:
        if args.tiny:
            args.model, args.out = write_small(Path(folder)), f"{folder}/out"
            os.environ["XL_FLAX_DATA_DIR"] = folder
        elif not args.model:
            parser.error("--model: name a folder with a BERT, as of all-MiniLM-L6-v2")
        rows = [("task", "side", *(f"seed {i}" for i in range(args.seeds)), "mean", "sd")]
        found = {}
        for task in args.tasks:
            sides = {"xl-flax": xl_flax(task, args), "hf": hugging_face(task, args)}
            sd = {name: statistics.stdev(own) for name, own in sides.items()}
            for name, own in sides.items():
                cells = [f"{100 * x:.1f}" for x in (*own, statistics.mean(own), sd[name])]
                rows.append((task, name, *cells))
            means = {name: round(statistics.mean(own), 4) for name, own in sides.items()}
            found[task] = means | {"spread": round(max(sd.values()), 4)}
        print(table(rows, left=(0, 1)))
        print(json.dumps(found))


if __name__ == "__main__":
    main()
