"""Tables for the console."""

import textwrap
from collections.abc import Collection, Sequence

WIDTH = 80  # columns of the smallest usual terminal


def table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Aligns columns under a heading.

    Args:
      rows: cells as text; row 0 is the heading.
      left: numbers of the columns that are aligned to the left, such as names; the others are
        aligned to the right, as numbers are.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def wrapped(text: str) -> str:
    """A sentence on lines of at most `WIDTH` characters; words, as paths, stay whole."""
    return textwrap.fill(
        text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
