"""The Bible as parallel text: verses of the same name, from the files that tasks/bible.py reads.

Tasks:

- `bible_<a>_<b>`, as in `bible_deu_eng`, for each of the 66 pairs: about 6,950 verses, and 29,800
  where both languages have the whole Bible.
- `bible_multiway`: the verses that all twelve languages have, in all of them. `bible_multiway4`:
  the same for the four languages with the whole Bible.

Mixtures: `bible_pairs`, all pairs by size, and `bible_english`, the eleven with English. Verses are
held out by name as in tasks/bible.py: what is held out there is held out here, and "train" has no
verse that is left out there in one of its languages.
"""

import functools
import itertools
import os
from collections.abc import Iterator, Sequence

from tasks import parallel, text
from tasks.bible import LANGUAGES, SPLITS, WHOLE, split_verses


def read_verses_together(paths: Sequence[str], split: str) -> Iterator[tuple[str, ...]]:
    """Yields the verses of a split that every file has, in the order of the first."""
    files = [_verses(path, split, os.stat(path).st_mtime_ns) for path in paths]
    for name in files[0]:
        if all(name in verses for verses in files):
            yield tuple(verses[name] for verses in files)


@functools.cache  # a file takes part in eleven pairs
def _verses(path: str, split: str, mtime: int) -> dict[str, str]:
    del mtime
    return split_verses(path, split)


def add_verses(name: str, languages: Sequence[str]) -> None:
    """Registers a task on the verses that all the languages have."""
    paths = {split: [f"bible/{language}.tsv" for language in languages] for split in SPLITS}
    source = parallel.ParallelFiles(paths, read_verses_together)
    parallel.add_parallel_task(name, languages, source)


PAIRS = {f"bible_{a}_{b}": (a, b) for a, b in itertools.combinations(LANGUAGES, 2)}
for _name, _pair in PAIRS.items():
    add_verses(_name, _pair)
add_verses("bible_multiway", LANGUAGES)
add_verses("bible_multiway4", WHOLE)

text.add_language_mixture("bible_pairs", list(PAIRS))
text.add_language_mixture("bible_english", [n for n, pair in PAIRS.items() if "eng" in pair])
