"""The Bible in twelve languages: `bible_<language>`, and `bible` for all of them, by size.

Files: $XL_FLAX_DATA_DIR/bible/<language>.tsv, one verse a line: BOOK.chapter.verse TAB text.
English, German, Finnish and Chinese have the whole Bible (about 29,800 verses), the others the New
Testament (about 6,950). Verses are held out by a hash of their names, so that what is held out in
one language is unseen in every other one too: 2 % for validation, 2 % for test.

The Bible repeats itself: 2 % of the held-out verses of a whole Bible stand under other names, too
("And the Lord said to Moses,"). "train" lacks every verse with the words of a held-out one: about
150 of the 28,600 of a whole Bible, 6 at most of a New Testament.
"""

import functools
import hashlib
import re
import unicodedata
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


def split_verses(path: str, split: str) -> dict[str, str]:
    """Name -> text of the verses of a split in the order of the file; no copies in "train"."""
    verses = dict(named_verses(path))
    chosen = {name: verse for name, verse in verses.items() if verse_split(name) == split}
    if split != "train":
        return chosen
    held_out = {_words(verse) for name, verse in verses.items() if name not in chosen}
    return {name: verse for name, verse in chosen.items() if _words(verse) not in held_out}


def _words(verse: str) -> tuple[str, ...]:
    """What verses are compared by, whatever their case, width and punctuation."""
    return tuple(re.findall(r"\w+", unicodedata.normalize("NFKC", verse).casefold()))


def read_verses(path: str, split: str) -> Iterator[str]:
    """Yields the verses of a split in the order of the file."""
    yield from split_verses(path, split).values()


for _language in LANGUAGES:
    _paths = dict.fromkeys(SPLITS, f"bible/{_language}.tsv")
    text.add_text_task(f"bible_{_language}", _language, text.TextFiles(_paths, read_verses))

text.add_language_mixture("bible", [f"bible_{language}" for language in LANGUAGES])
