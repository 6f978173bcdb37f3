"""What the cache command prints: a table per mixture, and rows as text."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from xl_flax.data.features import FeatureSpec
from xl_flax.data.framing import Part
from xl_flax.data.manifest import Cache, Manifest
from xl_flax.data.mixtures import row_rates
from xl_flax.data.prepare import CachedMixture, DatasetSpec
from xl_flax.data.records import RowSource, decode_row, ids_dtype
from xl_flax.data.tables import split_table
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.files.write import write_atomically
from xl_flax.text_table import shown, wrapped


def print_report(
    cache: Cache, spec: DatasetSpec, cached: CachedMixture, num_rows: int | None, new: bool
) -> None:
    """Stores the table of a mixture in the cache's folder, and prints it if it says anything new.

    Args:
      cache: where the rows lie.
      spec: the mixture, split and layout.
      cached: its rows.
      num_rows: rows that a run will train on, None if it trains on others.
      new: whether any of it has just been cached.
    """
    table = report(spec, cached, num_rows)
    path = Path(cache.directory) / "tables" / f"{spec.mixture}-{spec.split}-{spec.layout}.txt"
    write_atomically(path, f"{table}\n")
    if new:
        print(f"\n{shown(table, path)}")
    else:
        print(wrapped(f"{table.splitlines()[0]}: there already, see {path}"))


def report(spec: DatasetSpec, cached: CachedMixture, num_rows: int | None) -> str:
    """The table of a cached mixture under a line that names it; arguments as of `print_report`."""
    mixture, manifests, _ = cached
    shares = row_rates(mixture, manifests)
    epochs = [num_rows * shares[t] / m.rows if num_rows else None for t, m in manifests.items()]
    table = split_table(list(manifests.values()), [shares[t] for t in manifests], epochs)
    return f"{spec.mixture} ({spec.split}, {spec.layout} tokens per row)\n{table}"


def show_rows(mixtures: Sequence[CachedMixture], vocabulary: Vocabulary, count: int) -> str:
    """The first rows of each task as text, one line per text of an example.

    A line begins with the number of the example in the row; with its language, where examples have
    several texts; and with which piece of a cut example it is. The line of an example's last text
    ends with its features. The first row of a task stands there in pieces of the vocabulary, too.

    Args:
      mixtures: a task of several of them is shown once.
      vocabulary: of the run.
      count: rows per task.
    """
    folders = {folder: m.manifests[t] for m in mixtures for t, folder in m.folders.items()}
    lines = []
    for folder, manifest in folders.items():
        source = RowSource(folder, manifest.shards, manifest.mark)
        dtype = ids_dtype(manifest.vocab_size)
        for row in range(min(count, len(source))):
            lines.append(f"\n{manifest.task}, row {row} [{'-'.join(manifest.languages)}]")
            parts = decode_row(source[row][1], dtype, manifest.num_texts, manifest.features)
            for number, part in enumerate(parts, 1):
                lines += _part(manifest, number, part, vocabulary, in_pieces=row == 0)
    return "\n".join(lines)


def _part(
    manifest: Manifest, number: int, part: Part, vocabulary: Vocabulary, in_pieces: bool
) -> Iterator[str]:
    """A line or two for each text of an example, or of a piece of one."""
    piece = part.piece
    what = "window" if manifest.layout.stride else "piece"
    cut = f" ({what} {piece.index + 1} of {piece.count})" if piece else ""
    last = manifest.num_texts - 1
    for text, ids in enumerate(part.segments):
        place = f"{number} {manifest.languages[text]}" if last else f"{number}"
        features = _features(manifest, part, vocabulary) if text == last else ()
        cut_here = cut if text == last else ""
        yield "  ".join([f"  {place}{cut_here}: {vocabulary.decode(ids[1:-1])}", *features])
        if in_pieces:
            yield f"    in pieces: {' '.join(vocabulary.piece(i) for i in ids)}"


def _features(manifest: Manifest, part: Part, vocabulary: Vocabulary) -> Iterator[str]:
    """An example's features as "name=value"; those of tokens for its last text only."""
    size = len(part.segments[-1])
    for name, spec in manifest.features.items():
        value = part.features[name]
        if spec.kind == "token":
            yield f"{name}={' '.join(_label(spec, v) for v in value[-size:][1:-1])}"
        elif spec.kind == "text":
            yield f"{name}={value}"
        elif spec.kind == "span":
            first, end = (int(v) - (part.size - size) for v in (value[0], value[1] + 1))
            inside = vocabulary.decode(part.segments[-1][first:end]) if value[0] >= 0 else "-"
            yield f"{name}={inside}"
        else:
            yield f"{name}={_label(spec, np.ravel(value)[0])}"


def _label(spec: FeatureSpec, value: float) -> str:
    return spec.labels[int(value)] if spec.labels and value >= 0 else f"{value:g}"
