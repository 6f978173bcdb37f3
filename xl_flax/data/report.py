"""What the cache command prints: a table per mixture, and rows as text."""

from xl_flax.data.build import TRAIN
from xl_flax.data.manifest import Cache, read_manifest
from xl_flax.data.mixtures import read_mixture, row_rates
from xl_flax.data.prepare import DatasetSpec
from xl_flax.data.stream import Rows, open_stream
from xl_flax.data.tables import split_table
from xl_flax.data.vocabulary import Vocabulary


def report(need: DatasetSpec, cache: Cache, num_rows: int | None) -> str:
    """The table of a cached mixture.

    Args:
      need: the mixture, split and length.
      cache: where it lies.
      num_rows: rows that a run will read of its train split, None if unknown.
    """
    mixture = read_mixture(cache, need.mixture, need.split)
    folders = {task: cache.folder(task, need.split, need.length) for task in mixture.rates}
    manifests = {task: read_manifest(folder) for task, folder in folders.items()}
    shares = row_rates(mixture, manifests)
    planned = num_rows if need.split == TRAIN else None
    epochs = [planned * shares[t] / m.rows if planned else None for t, m in manifests.items()]
    table = split_table(list(manifests.values()), [shares[t] for t in manifests], epochs)
    return f"\n{need.mixture} ({need.split}, {need.length} tokens per row)\n{table}"


def show_rows(need: DatasetSpec, cache: Cache, vocabulary: Vocabulary, count: int) -> str:
    """The first rows of a stream as text, one line per segment.

    The lines of parallel text begin with the group and the language.
    """
    stream = open_stream(Rows(need.mixture, need.length, need.split), cache, 0, vocabulary)
    batch = stream.rows(range(count))
    lines = []
    for row, (tokens, ids) in enumerate(zip(batch["tokens"], batch["segment_ids"], strict=True)):
        languages = [stream.languages[i] for i in batch["languages"][row]]
        lines.append(f"row {row} [{'-'.join(languages)}]")
        for segment in range(ids.max()):
            group, side = divmod(segment, stream.num_texts)
            place = f"{group + 1} {languages[side]}: " if stream.num_texts > 1 else ""
            text = vocabulary.decode(tokens[ids == segment + 1][1:-1].tolist())
            lines.append(f"  {place}{text}")
    return "\n".join(lines)
