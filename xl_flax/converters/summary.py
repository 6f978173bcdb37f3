"""What a model's folder or a checkpoint holds, as text."""

import collections
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.load import read_description, vocabulary_path
from xl_flax.converters import families, read, write
from xl_flax.data.vocabulary import Vocabulary, load_vocabulary
from xl_flax.errors import UserError
from xl_flax.text_table import WIDTH, table


def of_theirs(
    model: read.HuggingFaceModel,
    heads: Mapping[str, Any],
    vocabulary: Vocabulary | UserError,
    whole: bool,
) -> str:
    """What a folder of Hugging Face holds.

    Args:
      model: from `read.open_model`.
      heads: for sentences, beside the model's own.
      vocabulary: the folder's, or why there is none.
      whole: with each tensor.
    """
    rows = [("tensor", "shape", "dtype", "our parameter")]
    places = {place.theirs: place.ours for place in model.places}
    for name, tensor in model.tensors.items():
        shape = "×".join(map(str, tensor.shape)) or "scalar"
        rows.append((name, shape, str(tensor.dtype), places.get(name, "left out")))
    description = read.describe(model, "", heads)
    kind, sizes = model.config["model_type"], {k: math.prod(v) for k, v in model.shapes.items()}
    dtypes = {str(model.tensors[place.theirs].dtype) for place in model.places}
    facts = _facts(kind, description, vocabulary, sizes, dtypes)
    if model.ignored:
        facts["left out"] = ", ".join(model.ignored)
    return _summary(facts, rows, whole)


def of_ours(checkpoint: str, whole: bool) -> str:
    """What one of our checkpoints holds; `whole`: with each parameter."""
    description = read_description(checkpoint)
    rows = [("parameter", "shape", "dtype")]
    stored = write.stored_layout(checkpoint, description)
    for path, leaf in stored.items():
        rows.append((path, "×".join(map(str, leaf.shape)) or "scalar", str(leaf.dtype)))
    vocabulary = load_vocabulary(vocabulary_path(checkpoint))
    kept = {n: s for n, s in description.heads.items() if n in families.HEADS}
    try:
        family = families.for_encoder(description.encoder, kept)[0].MODEL_TYPES[0]
    except UserError as error:
        family = f"none of Hugging Face ({error})"
    sizes = {path: math.prod(leaf.shape) for path, leaf in stored.items()}
    dtypes = {str(leaf.dtype) for leaf in stored.values()}
    return _summary(_facts(family, description, vocabulary, sizes, dtypes), rows, whole)


def _facts(
    family: str,
    description: Description,
    vocabulary: Vocabulary | UserError,
    sizes: Mapping[str, int],
    dtypes: Collection[str],
) -> dict[str, str]:
    """What a model is, by name; `sizes` are the numbers in each of our parameters."""
    encoder = description.encoder
    parts: dict[str, int] = collections.defaultdict(int)
    for path, size in sizes.items():
        parts["/".join(path.split("/")[:2])] += size
    heads = ", ".join(
        f"{name} ({len(s['labels'])} labels)" if "labels" in s else name
        for name, s in description.heads.items()
    )
    facts = {
        "family": family,
        "parameters": f"{sum(sizes.values()):,} of {', '.join(sorted(dtypes))}: "
        + ", ".join(f"{part} {size:,}" for part, size in parts.items()),
        "layers": f"{encoder.num_layers} of width {encoder.width}, {encoder.num_heads} heads"
        + (f" ({encoder.kv_heads} of keys)" if encoder.num_kv_heads else ""),
        "longest input": f"{encoder.max_positions:,} tokens",
        "heads": heads or "none",
        "languages": ", ".join(description.all_languages) or "not named",
    }
    if isinstance(vocabulary, UserError):
        return facts | {"vocabulary": f"none: {vocabulary}"}
    special = vars(vocabulary.special).items()
    return facts | {
        "vocabulary": f"{vocabulary.size:,} pieces, {encoder.vocab_size:,} rows of the table",
        "special tokens": ", ".join(f"{k} {vocabulary.piece(i)} = {i}" for k, i in special),
    }


def _summary(facts: Mapping[str, str], rows: Sequence[tuple[str, ...]], whole: bool) -> str:
    """The facts, then the table or where to find it."""
    width = max(map(len, facts)) + 2
    lines = []
    for name, value in facts.items():
        lines += textwrap.wrap(
            f"{name:<{width}}{value}",
            WIDTH,
            subsequent_indent=" " * width,
            break_on_hyphens=False,
            break_long_words=False,
        )
    end = table(rows) if whole else f"{len(rows) - 1:,} tensors: --inspect=all shows each of them"
    return "\n".join([*lines, "", end])
