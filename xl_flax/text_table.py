"""Tables for the console."""

import textwrap
from collections.abc import Collection, Sequence

WIDTH, LINES = 80, 45  # of a console


def table(
    rows: Sequence[Sequence[str]], left: Collection[int] = (0,), width: int | None = None
) -> str:
    """Aligns columns under a heading.

    Args:
      rows: cells as text; row 0 is the heading.
      left: numbers of the columns that are aligned to the left, such as names; the others are
        aligned to the right, as numbers are.
      width: characters; columns beyond it follow below, each time behind the first one. None: any.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    blocks, used = [[0]], widths[0]
    for i, own in enumerate(widths[1:], 1):
        if width is not None and used + 2 + own > width and len(blocks[-1]) > 1:
            blocks.append([0])
            used = widths[0]
        blocks[-1].append(i)
        used += 2 + own
    return "\n\n".join(_block(rows, widths, columns, left) for columns in blocks)


def _block(
    rows: Sequence[Sequence[str]],
    widths: Sequence[int],
    columns: Sequence[int],
    left: Collection[int],
) -> str:
    lines = [
        "  ".join(
            row[i].ljust(widths[i]) if i in left else row[i].rjust(widths[i]) for i in columns
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * (sum(widths[i] for i in columns) + 2 * (len(columns) - 1)))
    return "\n".join(lines)


def wrap(text: str, indent: str = "") -> str:
    """Breaks a long line between words, for 80 columns; the lines that follow are indented more."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def fits(text: str) -> bool:
    """Whether a table can be read on a console: in width, and without much scrolling."""
    lines = text.splitlines()
    return len(lines) <= LINES and all(len(line) <= WIDTH for line in lines)
