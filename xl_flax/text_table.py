"""Tables for the console."""

import textwrap
from collections.abc import Collection, Mapping, Sequence

WIDTH, LINES = 80, 45  # of the smallest usual terminal; of a table that is still read there


def table(
    rows: Sequence[Sequence[str]],
    left: Collection[int] = (0,),
    shorten: int | None = None,
    in_blocks: bool = False,
) -> str:
    """Aligns columns under a heading.

    Args:
      rows: cells as text; row 0 is the heading.
      left: numbers of the columns that are aligned to the left, such as names; the others are
        aligned to the right, as numbers are.
      shorten: number of a column whose long cells lose their middle, if lines of more than `WIDTH`
        characters can be avoided by that.
      in_blocks: columns that do not fit into `WIDTH` follow below, each time behind the first.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    excess = sum(widths) + 2 * (len(widths) - 1) - WIDTH
    if shorten is not None and excess > 0:
        widths[shorten] = max(widths[shorten] - excess, 8, len(rows[0][shorten]))
        rows = [[_short(cell, w) for cell, w in zip(row, widths, strict=True)] for row in rows]
    blocks, used = [[0]], widths[0]
    for i, own in enumerate(widths[1:], 1):
        if in_blocks and used + 2 + own > WIDTH and len(blocks[-1]) > 1:
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


def _short(cell: str, width: int) -> str:
    if len(cell) <= width:
        return cell
    end = (width - 1) // 2
    return f"{cell[: width - 1 - end]}…{cell[len(cell) - end :]}"


def legend(meanings: Mapping[str, str]) -> str:
    """What the columns of a table mean, to stand under it: "fill: ...; rate: ..."."""
    return wrapped("; ".join(f"{name}: {meaning}" for name, meaning in meanings.items()))


def wrapped(text: str) -> str:
    """A sentence on lines of at most `WIDTH` characters; words, as paths, stay whole."""
    return textwrap.fill(
        text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def shown(table: str, path: str) -> str:
    """A table as far as a console holds it, and where all of it is."""
    lines = table.split("\n")
    if len(lines) <= LINES:
        return table
    rest = wrapped(f"... and {len(lines) - LINES} more lines, see {path}")
    return "\n".join([*lines[:LINES], rest])


def count(number: int) -> str:
    """A number in at most seven characters: "950,000", "1.23M", "45.6G"."""
    for factor, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M")):
        if number >= factor:
            return f"{number / factor:.3g}{unit}"
    return f"{number:,}"


def fits(text: str) -> bool:
    """Whether a table can be read on a console: in width, and without much scrolling."""
    lines = text.splitlines()
    return len(lines) <= LINES and all(len(line) <= WIDTH for line in lines)
