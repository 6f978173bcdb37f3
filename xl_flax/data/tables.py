"""Tables of cached splits."""

from collections.abc import Mapping, Sequence

from xl_flax.data.manifest import Manifest


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
    head += ["cut", "empty", "dropped"]
    lines = [head]
    for m, share, epoch in zip(manifests, shares, epochs, strict=True):
        counts = [f"{n:,}" for n in (m.examples, m.rows, m.tokens)]
        rate = "-" if share is None else f"{share:.4f}"
        passes = "-" if epoch is None else f"{epoch:.2f}"
        lost = [f"{m.cut:,}", f"{m.empty:,}", describe_drops(m.dropped) or "0"]
        names = ["-".join(m.languages), m.task, m.split]
        lines.append([*names, *counts, f"{m.fill:.3f}", rate, passes, *lost])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = {0, 1, 2, len(head) - 1}  # columns of words
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def describe_drops(dropped: Mapping[str, int]) -> str:
    """Reasons and numbers, as "empty side 3, too long 1"."""
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(dropped.items()))
