"""Tables of cached splits."""

from collections.abc import Sequence

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
    head = ("language", "task", "split", "examples", "rows", "tokens", "fill", "rate", "epochs")
    lines = [(*head, "cut", "empty")]
    for m, share, epoch in zip(manifests, shares, epochs, strict=True):
        lines.append(
            (
                *(m.language, m.task, m.split, f"{m.examples:,}", f"{m.rows:,}", f"{m.tokens:,}"),
                f"{m.fill:.3f}",
                "-" if share is None else f"{share:.4f}",
                "-" if epoch is None else f"{epoch:.2f}",
                *(f"{m.cut:,}", f"{m.empty:,}"),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
