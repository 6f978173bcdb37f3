"""The model card of a folder: what the model is, its data, its results, and how it was made."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import xl_flax
from xl_flax.checkpoints.description import Description
from xl_flax.evaluation import results as results_lib


def make(
    checkpoint: str, description: Description, config: Mapping[str, Any], notes: Sequence[str]
) -> str:
    """The text of README.md.

    Args:
      checkpoint: its folder; a run's `config.gin` and `results.jsonl` are above it, a converted
        one's in it.
      description: of the checkpoint.
      config: of the new config.json.
      notes: what the folder does in another way than the checkpoint.
    """
    run = os.path.abspath(checkpoint)
    if os.path.basename(os.path.dirname(run)) == "checkpoints":
        run = os.path.dirname(os.path.dirname(run))
    encoder = description.encoder
    languages = [name for name in description.all_languages if name != "mul"]
    lines = ["---", "library_name: transformers", f"tags: [{config['model_type']}, multilingual]"]
    lines += (
        [f"language: [{', '.join(json.dumps(name) for name in languages)}]"] if languages else []
    )
    lines += ["---", "", f"# {os.path.basename(run)}, step {description.step:,}", ""]
    lines += [
        f"A multilingual encoder ({config['model_type']}): {encoder.num_layers} layers of width "
        f"{encoder.width}, {encoder.vocab_size:,} pieces, {encoder.num_params:,} parameters "
        f"without heads. Written by XL-Flax {xl_flax.__version__}.",
        "",
        "`AutoModel` and `AutoTokenizer` of Transformers open this folder; so does"
        " `python -m xl_flax.convert`.",
    ]
    lines += ["", *(f"- {note}" for note in notes)] if notes else []
    if description.objectives:
        lines += ["", "## Training", "", "```json"]
        lines += [json.dumps(description.objectives, indent=1, ensure_ascii=False), "```"]
    if results := _results(os.path.join(run, results_lib.FILE), description.step):
        lines += ["", "## Results", "", *results]
    gin = os.path.join(run, "config.gin")
    if os.path.exists(gin):
        with open(gin, encoding="utf-8") as file:
            lines += ["", "## Configuration", "", "```", file.read().strip(), "```"]
    return "\n".join(lines) + "\n"


def _results(path: str, step: int) -> list[str]:
    """Means over languages, each with its signature; all else stays in the run's file."""
    if not os.path.exists(path):
        return []
    rows = [
        row
        for row in results_lib.read(path)
        if row["step"] == step and tuple(row["languages"]) == (results_lib.MACRO,)
    ]
    lines = ["| result | value | signature |", "|---|---|---|"]
    for row in rows:
        lines.append(f"| {row['metric']} | {row['value']:.4f} | `{row['signature']}` |")
    return lines if rows else []
