"""What the cache command prints: a table per mixture, and rows as text."""

from collections.abc import Iterator

import numpy as np

from xl_flax.data.build import TRAIN
from xl_flax.data.features import FeatureSpec
from xl_flax.data.mixtures import row_rates
from xl_flax.data.prepare import Caches, DatasetSpec
from xl_flax.data.stream import Rows, Stream, open_stream
from xl_flax.data.tables import split_table
from xl_flax.data.vocabulary import Vocabulary


def report(spec: DatasetSpec, caches: Caches, num_rows: int | None) -> str:
    """The table of a cached mixture.

    Args:
      spec: the mixture, split and layout.
      caches: with it.
      num_rows: rows that a run will read of its train split, None if unknown.
    """
    mixture, manifests, _ = caches[spec]
    shares = row_rates(mixture, manifests)
    planned = num_rows if spec.split == TRAIN else None
    epochs = [planned * shares[t] / m.rows if planned else None for t, m in manifests.items()]
    table = split_table(list(manifests.values()), [shares[t] for t in manifests], epochs)
    return f"\n{spec.mixture} ({spec.split}, {spec.layout} tokens per row)\n{table}"


def show_rows(spec: DatasetSpec, caches: Caches, vocabulary: Vocabulary, count: int) -> str:
    """The first rows of a stream as text, one line per segment.

    Where examples have several texts, lines begin with the number of the example in the row and the
    language; where they have features, the line of the last text ends with those.
    """
    layout = spec.layout
    rows = Rows(
        spec.mixture,
        layout.length,
        spec.split,
        packing=layout.packing,
        too_long=layout.too_long,
        stride=layout.stride,
    )
    stream = open_stream(rows, caches, 0, vocabulary)
    batch = stream.rows(range(count))
    lines = []
    for row, (tokens, ids) in enumerate(zip(batch["tokens"], batch["segment_ids"], strict=True)):
        languages = [stream.languages[i] for i in batch["languages"][row]]
        lines.append(f"row {row} [{'-'.join(languages)}]")
        for segment in range(ids.max()):
            example, text = divmod(segment, stream.num_texts)
            place = f"{example + 1} {languages[text]}: " if stream.num_texts > 1 else ""
            where = ids == segment + 1
            features = ""
            if stream.features and text == stream.num_texts - 1:
                features = "  ".join(["", *_features(stream, batch, row, example, where)])
            decoded = vocabulary.decode(tokens[where][1:-1].tolist())
            lines.append(f"  {place}{decoded}{features}")
    return "\n".join(lines)


def _features(
    stream: Stream, batch: dict[str, np.ndarray], row: int, example: int, where: np.ndarray
) -> Iterator[str]:
    """An example's features as "name=value"; those of tokens for its last text only."""
    for name, spec in stream.features.items():
        if spec.kind == "token":
            yield f"{name}={' '.join(_label(spec, v) for v in batch[name][row][where][1:-1])}"
        elif spec.kind != "text":
            yield f"{name}={' '.join(_label(spec, v) for v in np.ravel(batch[name][row, example]))}"


def _label(spec: FeatureSpec, value: float) -> str:
    return spec.labels[value] if spec.labels and value >= 0 else f"{value:g}"
