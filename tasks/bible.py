"""The Bible in twelve languages: `bible_<language>`, and `bible` for all of them, by size.

Files: $XL_FLAX_DATA_DIR/bible/<language>.tsv, one verse a line: BOOK.chapter.verse TAB text.
English, German, Finnish and Chinese have the whole Bible (about 29,800 verses), the others the New
Testament (about 6,950). Verses are held out by a hash of their names, so that what is held out in
one language is unseen in every other one too: 2 % for validation, 2 % for test.
"""

import functools
import hashlib
import re
from collections.abc import Iterator

from tasks import text
from xl_flax.errors import UserError

LANGUAGES = ("ces", "deu", "eng", "eus", "fin", "fra", "mlg", "rus", "spa", "tgl", "vie", "zho")
WHOLE = ("deu", "eng", "fin", "zho")  # both testaments
SPLITS = ("train", "validation", "test")
HELD_OUT_PERCENT = 2  # for validation, and the same again for test
MISSING = "a"  # stands where a translation lacks the verse


@functools.cache  # most verses come up in twelve files
def verse_split(name: str) -> str:
    """The split that a verse belongs to, in every language."""
    percent = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    if percent < HELD_OUT_PERCENT:
        return "validation"
    return "test" if percent < 2 * HELD_OUT_PERCENT else "train"


def named_verses(path: str) -> Iterator[tuple[str, str]]:
    """Yields (name, text) of the verses that a translation has, in the order of the file."""
    for number, line in text.numbered_lines(path):
        name, tab, verse = line.partition("\t")
        if not tab or not re.fullmatch(r"\w{3}\.\d+\.\d+", name):
            raise UserError(
                f"{path}, line {number}: expected BOOK.chapter.verse, a tab and the text, as in "
                f"GEN.1.1, not {line[:40]!r}"
            )
        if verse.strip() not in ("", MISSING):
            yield name, verse


def read_verses(path: str, split: str) -> Iterator[str]:
    """Yields the verses of a split in the order of the file."""
    return (verse for name, verse in named_verses(path) if verse_split(name) == split)


for _language in LANGUAGES:
    _paths = dict.fromkeys(SPLITS, f"bible/{_language}.tsv")
    text.add_text_task(f"bible_{_language}", _language, text.TextFiles(_paths, read_verses))

text.add_language_mixture("bible", [f"bible_{language}" for language in LANGUAGES])
