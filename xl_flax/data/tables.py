"""Tables of cached splits."""

from collections.abc import Mapping, Sequence

from xl_flax.data.manifest import Manifest
from xl_flax.text_table import table


def split_table(
    manifests: Sequence[Manifest],
    shares: Sequence[float | None],
    epochs: Sequence[float | None],
) -> str:
    """A table of cached splits.

    Args:
      manifests: one per line.
      shares: of the rows of a mixture.
      epochs: that a run will make.
    """
    head = ["language", "task", "split", "examples", "rows", "tokens", "fill", "rate", "epochs"]
    head += ["cut", "truncated", "empty", "dropped"]
    lines = [head]
    for m, share, epoch in zip(manifests, shares, epochs, strict=True):
        counts = [f"{n:,}" for n in (m.examples, m.rows, m.tokens)]
        rate = "-" if share is None else f"{share:.4f}"
        passes = "-" if epoch is None else f"{epoch:.2f}"
        lost = [f"{m.cut:,}", f"{m.truncated:,}", f"{m.empty:,}", describe_drops(m.dropped) or "0"]
        names = ["-".join(m.languages), m.task, m.split]
        lines.append([*names, *counts, f"{m.fill:.3f}", rate, passes, *lost])
    return table(lines, left={0, 1, 2, len(head) - 1})


def describe_drops(dropped: Mapping[str, int]) -> str:
    """Reasons and numbers, as "empty text 3, too long 1"."""
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(dropped.items()))
