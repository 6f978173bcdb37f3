"""Translations that TensorFlow Datasets has: OPUS, ParaCrawl and TED talks.

| mixture | tasks | data set |
|---|---|---|
| `opus` | `opus_<domain>_deu_eng` | five domains of OPUS (Tiedemann 2012) |
| `paracrawl` | `paracrawl_<a>_<b>` | the web, 23 languages with English (Bañón et al. 2020) |
| `ted` | `ted_<a>_<b>` | talks, 54 languages with English (Qi et al. 2018) |

Mixtures are by size. TED has its own splits; of the others the last 1,000 pairs are "test", the
1,000 before them "validation". tasks/prepared.py says where TFDS finds its data.

More of TED takes a line, in any of its languages, two or more at once:

    opus.add_translations("ted_deu_eng_fra", opus.source(opus.TED), ("de", "en", "fr"))
"""

import functools
from collections.abc import Sequence

import seqio

from tasks import parallel, text
from tasks.prepared import PreparedTfds
from tasks.wikipedia import LANGUAGES

ISO639 = {**LANGUAGES, "mt": "mlt", "nb": "nob", "zh-cn": "zho"}

DOMAINS = ("medical", "law", "koran", "IT", "subtitles")
PARACRAWL_CODES = "bg cs da de el es et fi fr ga hr hu it lt lv mt nl pl pt ro sk sl sv"
TED_CODES = """
    ar az be bg bn bs cs da de el eo es et eu fa fi fr gl he hi hr hu hy id it ja ka kk ko ku lt mk
    mn mr ms my nb nl pl pt ro ru sk sl sq sr sv ta th tr uk ur vi zh-cn
"""
OPUS, PARACRAWL, TED = "opus/{}:0.1.0", "para_crawl/en{}:1.2.0", "ted_multi_translate:1.1.0"
SPLITS = {
    "train": "train[:-2000]",
    "validation": "train[-2000:-1000]",
    "test": "train[-1000:]",
}
TED_SPLITS = ("train", "validation", "test")


def source(name: str, data_dir: str | None = None) -> PreparedTfds:
    """A data set of translations by its name in TFDS."""
    return PreparedTfds(name, TED_SPLITS if name == TED else SPLITS, data_dir)


def add_translations(name: str, source: seqio.DataSource, codes: Sequence[str]) -> seqio.Task:
    """Registers a task on the translations of a TFDS data set into the languages of these codes."""
    return parallel.add_parallel_task(
        name,
        [ISO639[code] for code in codes],
        source,
        preprocessors=[functools.partial(parallel.translation_texts, codes=tuple(codes))],
    )


def add_english_pairs(family: str, sources: dict[str, seqio.DataSource]) -> None:
    """Registers a family of tasks `{family}_{a}_{b}`, one per code, and the mixture of them."""
    tasks = []
    for code, data in sources.items():
        pair = sorted((code, "en"), key=ISO639.get)
        tasks.append(add_translations("_".join((family, *map(ISO639.get, pair))), data, pair))
    text.add_language_mixture(family, tasks)


_opus = [
    add_translations(f"opus_{d.lower()}_deu_eng", source(OPUS.format(d)), ("de", "en"))
    for d in DOMAINS
]
text.add_language_mixture("opus", _opus)
add_english_pairs("paracrawl", {c: source(PARACRAWL.format(c)) for c in PARACRAWL_CODES.split()})
add_english_pairs("ted", {code: source(TED) for code in TED_CODES.split()})
