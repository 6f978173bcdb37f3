"""Time and peak memory of conversion: XL-Flax against Transformers' own load and save.

    python tests/benchmarks/convert.py [--models xlmr_base,xlmr_xl] [--dir /tmp/convert]
        [--repeats 3] [--tiny]

Each line is a process of its own. Folders are of the published layouts with random weights, written
tensor by tensor: XLM-R base in float32 (0.28 B parameters) and XLM-R XL in bfloat16 (3.5 B); "tiny"
has few. Memory is the process's peak resident set, which includes about 0.4 GB of libraries; the
ratio leaves out what was resident before the conversion began. Weights were read once before, so
that disks do not decide; nothing is synced.

  to ours    python -m xl_flax.convert of the folder
  to theirs  the same of the checkpoint that was made
  hf         AutoModelForMaskedLM.from_pretrained and save_pretrained of the folder, in its dtype

Each of the three reads and writes all weights once; they take turns, seconds are medians, memory is
the most. The last line is JSON, hf's seconds over those of each step and our worst memory:
{"xlmr_base": {"to ours": …, "to theirs": …, "memory": …}, …}.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import tokenizers
from common import parse

from xl_flax.converters import families, tensors
from xl_flax.converters.weights import places
from xl_flax.text_table import table

MODELS = {
    "xlmr_base": (
        np.float32,
        {
            "model_type": "xlm-roberta", "architectures": ["XLMRobertaForMaskedLM"],
            "vocab_size": 250002, "hidden_size": 768, "num_hidden_layers": 12,
            "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 514,
            "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1, "hidden_act": "gelu",
            "bos_token_id": 0, "eos_token_id": 2, "dtype": "float32",
        },
    ),
    "tiny": (
        np.float32,
        {
            "model_type": "xlm-roberta", "architectures": ["XLMRobertaForMaskedLM"],
            "vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 34,
            "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1, "hidden_act": "gelu",
            "bos_token_id": 0, "eos_token_id": 2, "dtype": "float32",
        },
    ),
    "xlmr_xl": (
        ml_dtypes.bfloat16,
        {
            "model_type": "xlm-roberta-xl", "architectures": ["XLMRobertaXLForMaskedLM"],
            "vocab_size": 250880, "hidden_size": 2560, "num_hidden_layers": 36,
            "num_attention_heads": 32, "intermediate_size": 10240, "max_position_embeddings": 514,
            "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1, "hidden_act": "gelu",
            "bos_token_id": 0, "eos_token_id": 2, "dtype": "bfloat16",
        },
    ),
}  # fmt: skip
CONVERT = """
import sys
from xl_flax import convert
import xl_flax.converters.write, orbax.checkpoint, jax
jax.devices()
{probe}
convert.main(sys.argv[1:])
{report}
"""
TRANSFORMERS = """
import sys, torch, transformers
{probe}
model = transformers.AutoModelForMaskedLM.from_pretrained(sys.argv[1], dtype="auto")
model.save_pretrained(sys.argv[2])
{report}
"""
PROBE = """
import time
def resident(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))
before, start = resident("VmRSS"), time.monotonic()
"""
REPORT = "print('MEASURED', time.monotonic() - start, before, resident('VmHWM'))"


def write_model(folder: str, name: str) -> int:
    """Writes a folder with random weights; returns their bytes."""
    from xl_flax.converters.read import param_shapes

    dtype, config = MODELS[name]
    os.makedirs(folder)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)
    family = families.for_config(config, folder)
    encoder = family.read_config(config)
    placed = places(families.weights(family, encoder), param_shapes(encoder, {"mlm": {}}), encoder)
    rng = np.random.default_rng(0)

    def tensor(shape: tuple[int, ...]) -> tensors.Tensor:
        read = lambda: (rng.random(shape, np.float32) * 0.1 - 0.05).astype(dtype)  # noqa: E731
        return tensors.Tensor(shape, np.dtype(dtype), read)

    made = {place.theirs: tensor(place.shape) for place in placed}
    tensors.write_folder(folder, made, int(5e9), lambda _: None)
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    vocabulary = tokenizers.Tokenizer(
        tokenizers.models.Unigram([(piece, 0.0) for piece in special], 3)
    )
    vocabulary.add_special_tokens(list(special))
    vocabulary.save(os.path.join(folder, "tokenizer.json"))
    return sum(t.nbytes for t in made.values())


def measure(program: str, *arguments: str) -> tuple[float, float, float]:
    """(seconds, bytes resident before, peak bytes) of a program in a process of its own."""
    code = program.format(probe=PROBE, report=REPORT)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    line = next(x for x in done.stdout.splitlines() if x.startswith("MEASURED"))
    return tuple(map(float, line.split()[1:]))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark with these arguments, or those of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="xlmr_base,xlmr_xl")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dir", default=None, help="where to; needs four times the weights")
    args = parse(parser, argv, models="tiny", repeats=1)
    rows = [("model", "weights", "step", "seconds", "peak GB", "peak / weights")]
    summary = {}
    for name in args.models.split(","):
        root = tempfile.mkdtemp(prefix="convert-", dir=args.dir)
        source, ours, back, theirs = (f"{root}/{x}" for x in ("source", "ours", "back", "theirs"))
        size = write_model(source, name)
        steps = {
            "to ours": (CONVERT, f"--source={source}", f"--target={ours}"),
            "to theirs": (CONVERT, f"--source={ours}", f"--target={back}"),
            "hf": (TRANSFORMERS, source, theirs),
        }
        found = {step: [] for step in steps}
        for _ in range(args.repeats):
            for step, (program, *arguments) in steps.items():
                found[step].append(measure(program, *arguments))
            for folder in (ours, back, theirs):
                shutil.rmtree(folder)
        shutil.rmtree(root)
        seconds = {step: statistics.median(s for s, _, _ in found[step]) for step in steps}
        memory = {step: max((peak - before) / size for _, before, peak in found[step])
                  for step in steps}  # fmt: skip
        for step in steps:
            peak = max(peak for _, _, peak in found[step])
            rows.append((name, f"{size / 1e9:.2f} GB", step, f"{seconds[step]:.1f}",
                         f"{peak / 1e9:.2f}", f"{memory[step]:.2f}"))  # fmt: skip
        both = ("to ours", "to theirs")
        summary[name] = {step: round(seconds["hf"] / seconds[step], 2) for step in both}
        summary[name]["memory"] = round(max(memory[step] for step in both), 2)
    print(table(rows))
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
