"""Tables of cached splits."""

from collections.abc import Mapping, Sequence

from xl_flax.data.manifest import Manifest
from xl_flax.data.unknown import unknown_shares, warn_unknown
from xl_flax.text_table import count, legend, table, wrapped

MOST_LINES = 12  # about what tasks lost

MEANINGS = {
    "rows": "of tokens, as a batch holds them",
    "fill": "share of the rows that is no padding",
    "rate": "share of the rows read that are this task's",
    "epochs": "passes over the task in the whole run",
    "unknown": "share of the pieces that the vocabulary does not know",
}


def split_table(
    manifests: Sequence[Manifest],
    shares: Sequence[float | None],
    epochs: Sequence[float | None],
) -> str:
    """A table of cached splits, with its legend and lines on what was cut and left out.

    Args:
      manifests: one per line.
      shares: of the rows of a mixture.
      epochs: that a run will make.
    """
    planned = any(epoch is not None for epoch in epochs)
    head = ["task", "examples", "rows", "tokens", "fill", "rate", "epochs", "unknown"]
    meanings = MEANINGS
    if not planned:
        head.remove("epochs")
        meanings = {name: meaning for name, meaning in MEANINGS.items() if name != "epochs"}
    lines = [head]
    for m, share, epoch in zip(manifests, shares, epochs, strict=True):
        rate = "-" if share is None else f"{share:.2%}"
        passes = ["-" if epoch is None else f"{epoch:.2f}"] if planned else []
        unknown = f"{sum(m.unknown) / max(sum(m.unknown) + sum(m.known), 1):.2%}"
        counts = map(count, (m.examples, m.rows, m.tokens))
        lines.append([_name(m), *counts, f"{m.fill:.1%}", rate, *passes, unknown])
    said = [_cut(manifests), *_lost(manifests), warn_unknown(unknown_shares(manifests))]
    below = [legend(meanings), *(wrapped(line) for line in said if line)]
    return "\n".join([table(lines, shorten=0), *below])


def _name(manifest: Manifest) -> str:
    """The task, and its languages where its name does not say them."""
    languages = dict.fromkeys(manifest.languages)
    if set(languages) <= set(manifest.task.split("_")):
        return manifest.task
    names = "-".join(languages) if len(languages) < 3 else f"{len(languages)} languages"
    return f"{manifest.task} ({names})"


def _cut(manifests: Sequence[Manifest]) -> str:
    """One line for all tasks, as long examples are nothing unusual."""
    cut = [m for m in manifests if m.cut]
    if not cut:
        return ""
    longest = max(cut, key=lambda m: m.longest)
    return (
        f"cut into pieces, as longer than a row: {sum(m.cut for m in cut):,} examples of "
        f"{len(cut)} tasks, the longest of {longest.longest:,} tokens in {longest.task}"
    )


def _lost(manifests: Sequence[Manifest]) -> list[str]:
    """A line for each task that is not there as a whole."""
    lines = []
    for m in manifests:
        empty = "empty" if m.split == "train" else "empty, but kept"
        counts = {**m.dropped, "truncated": m.truncated, empty: m.empty}
        if said := describe_drops({reason: n for reason, n in counts.items() if n}):
            lines.append(f"left out of {m.task}, or cut off: {said}")
    more = len(lines) - MOST_LINES
    return lines if more <= 0 else [*lines[:MOST_LINES], f"... and {more} more tasks lost some"]


def describe_drops(dropped: Mapping[str, int]) -> str:
    """Reasons and numbers, as "empty text 3, too long 1"."""
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(dropped.items()))
