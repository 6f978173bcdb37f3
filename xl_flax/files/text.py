"""Looks at text files before anything decodes them."""

from collections.abc import Iterator


def broken_lines(path: str) -> Iterator[str]:
    """The lines of a file that are not UTF-8, as "file F, line 3"."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                yield f"file {path}, line {number}"


def count_lines(path: str) -> int:
    """The number of line ends in a file."""
    with open(path, "rb") as data:
        return sum(block.count(b"\n") for block in iter(lambda: data.read(2**20), b""))
