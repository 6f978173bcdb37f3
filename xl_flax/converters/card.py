"""The model card of a folder: what the model is, its data, its results, and how it was made."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import xl_flax
from xl_flax.checkpoints.description import Description
from xl_flax.data.unknown import MANY_UNKNOWN
from xl_flax.evaluation import results as results_lib
from xl_flax.files.read import read_text

# What the Hub calls tasks; others keep their names.
HUB_TASKS = {
    "masked_lm": "fill-mask", "retrieval": "sentence-similarity", "mining": "sentence-similarity",
    "classification": "text-classification", "tagging": "token-classification",
    "choice": "multiple-choice", "questions": "question-answering",
}  # fmt: skip
STRING = re.compile(r"""(['"])(.*?)\1""")
# Settings that name a folder or a file; a path from the root is one wherever it stands.
KEPT = re.compile(r"config-(\d{7,})(-\d+)?\.gin")  # of `xl_flax.training.folder`
PATH_OF = re.compile(r"(\w+_DIR|VOCABULARY|.*\.(path|directory|checkpoint|model_dir)) =")


def make(
    checkpoint: str, description: Description, config: Mapping[str, Any], notes: Sequence[str]
) -> str:
    """The text of README.md.

    Args:
      checkpoint: its folder; a run's `results.jsonl` is above it, a converted one's in it.
      description: of the checkpoint.
      config: of the new config.json.
      notes: what the folder does in another way than the checkpoint.
    """
    run = results_lib.run_folder(checkpoint)
    encoder = description.encoder
    languages = [name for name in description.all_languages if name != "mul"]
    lines = ["---", "library_name: transformers", f"tags: [{config['model_type']}, multilingual]"]
    lines += (
        [f"language: [{', '.join(json.dumps(name) for name in languages)}]"] if languages else []
    )
    if entries := model_index(checkpoint, description.step):
        index = [{"name": os.path.basename(run), "results": entries}]
        lines.append(f"model-index: {json.dumps(index, ensure_ascii=False)}")
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
    if results := _results(checkpoint, description.step):
        lines += ["", "## Results", "", *results]
    path, since = configuration(run, description.step)
    own = os.path.join(checkpoint, "model", "config.gin")  # not of an older version's checkpoint
    path = own if os.path.exists(own) else path
    if os.path.exists(path):
        lines += ["", "## Configuration", ""]
        lines += [f"Since step {since:,}; before, some settings were others.", ""] if since else []
        lines += ["```", without_paths(read_text(path)).strip(), "```"]
    return "\n".join(lines) + "\n"


def configuration(run: str, step: int) -> tuple[str, int]:
    """The Gin configuration that a run had when it reached a step.

    A run whose settings changed keeps the earlier ones, as `config-0000200.gin`, by the step until
    which they held. `config-0000200-2.gin` was given up at that step, too, and no step was trained
    with it that is still there.

    Returns:
      Its path, and the step after which it held: 0 for the first one.
    """
    names = sorted(os.listdir(run), key=lambda name: name.removesuffix(".gin"))
    kept = [(int(m[1]), m[0]) for m in map(KEPT.fullmatch, names) if m]
    later = [name for until, name in kept if until >= step]
    return (
        os.path.join(run, later[0] if later else "config.gin"),
        max((until for until, _ in kept if until < step), default=0),
    )


def without_paths(gin: str) -> str:
    """A Gin configuration with the last part only of each path of the machine it ran on."""

    def shorten(line: str) -> str:
        def last(match: re.Match) -> str:
            quote, value = match.groups()
            local = PATH_OF.match(line) or value.startswith(("/", "~"))
            return f"{quote}…/{os.path.basename(value.rstrip('/'))}{quote}" if local else match[0]

        return STRING.sub(last, line)

    return "\n".join(map(shorten, gin.splitlines()))


def model_index(checkpoint: str, step: int) -> list[dict[str, Any]]:
    """Results as the Hugging Face Hub has them in a card's `model-index`: an entry for each test.

    Those of the checkpoint itself, means over languages, also by layer; none on validation text.
    """
    tests: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row, own in _rows(checkpoint, step):
        if own and row.languages == (results_lib.MACRO,) and not row.data.endswith("/validation"):
            layer = None if row.layer is None else f"layer {row.layer}"
            name = ", ".join(filter(None, [row.metric, row.similarity, layer]))
            metric = {"type": row.metric, "name": name, "value": row.value}
            metric["args"] = {"signature": row.signature}
            tests.setdefault((row.task, row.data), []).append(metric)
    entries = []
    for (task, data), metrics in tests.items():
        mixture, _, split = data.rpartition("/")
        entries.append(
            {
                "task": {"type": HUB_TASKS.get(task, task), "name": task},
                "dataset": {"type": mixture, "name": mixture, "split": split},
                "metrics": metrics,
            }
        )
    return entries


def _rows(checkpoint: str, step: int) -> Iterator[tuple[results_lib.Row, bool]]:
    """The results beside a checkpoint, and whether they are its own, and not a control's."""
    path = os.path.join(results_lib.run_folder(checkpoint), results_lib.FILE)
    source = results_lib.checkpoint_source(checkpoint, step)
    for row in results_lib.read(path):
        own = row.model is None and row.step == step and row.id in (None, source.id)
        if own or row.model is not None:
            yield row, own


def _results(checkpoint: str, step: int) -> list[str]:
    """Means over languages and their controls, with signatures; all else is in the run's file."""
    table = [("data", "model", "layer", "metric", "value", "unknown pieces", "signature")]
    for row, _ in sorted(_rows(checkpoint, step), key=lambda pair: not pair[1]):
        if row.languages == (results_lib.MACRO,):
            layer = "" if row.layer is None else str(row.layer)
            metric = row.metric + (f", {row.similarity}" if row.similarity else "")
            flag = " !" if row.unknown and row.unknown[0] > MANY_UNKNOWN else ""
            unknown = f"{row.unknown[0]:.1%}{flag}" if row.unknown else ""
            value = f"{row.value:.4f}" + (f" ± {row.spread:.4f}" if row.seeds else "")
            cells = (row.data, row.model or "this one", layer, metric, value, unknown)
            table.append((*cells, f"`{row.signature}`"))
    if len(table) == 1:
        return []
    head, *lines = ("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in table)
    legend = (
        "Means over languages. Models that are not this one are controls: untrained, the mean ± "
        "standard deviation of random starts; tf-idf and length, no model at all. Layer 0 is the "
        "embeddings. Unknown pieces: the largest share, over the languages, of pieces that the "
        "vocabulary lacks; ! above 5 %, where scores say little. Two numbers may be compared if "
        "their signatures are equal, and a number and its control if nothing but the model differs."
    )
    return [legend, "", head, "|" + "---|" * len(table[0]), *lines]
