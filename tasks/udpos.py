"""Universal parts of speech: XTREME's files, and the treebanks of Universal Dependencies.

- `udpos_<language>`: $XL_FLAX_DATA_DIR/udpos/{train,dev,test}-<code>.tsv with a word and its tag in
  a line, as XTREME's download_data.sh writes them from UD 2.5 (it leaves the tags of "test" out):
  written words, several treebanks of a language in one file. XTREME's 33 languages, and the 5 that
  XTREME-R adds. Train on `udpos_eng` for transfer from English.
- `ud_pos_<treebank>`, as in `ud_pos_en_ewt`: the files of `tasks.ud`, in CoNLL-U. Words are
  syntactic words: ranges of multi-word tokens and empty nodes are left out.

Mixtures are of the languages and treebanks whose files are there: `udpos`, `udpos_xtreme` (the 33),
`ud_pos` (all treebanks, also several of a language), and `ud_pos_pud`, of the treebanks with the
same 1,000 sentences in each language.
"""

from collections.abc import Iterator, Sequence

from tasks import conllu, labelled, languages, text, ud
from tasks.treebanks import TREEBANKS

XTREME = """
    en af ar bg de el es et eu fa fi fr he hi hu id it ja kk ko mr nl pt ru ta te th tl tr ur vi yo
    zh
"""
CODES = f"{XTREME} lt pl uk wo ro"
# Languages whose treebanks have tests only, or no validation split, in UD 2.5.
WITHOUT_TRAIN, WITHOUT_VALIDATION = "th tl yo", "kk th tl yo"
# https://universaldependencies.org/u/pos
LABELS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN"),
    *("PUNCT", "SCONJ", "SYM", "VERB", "X"),
)


def read_upos(paths: Sequence[str], split: str) -> Iterator[tuple[str, str]]:
    """Yields what `labelled.TaggedFiles` wants of CoNLL-U.

    Raises:
      UserError: not CoNLL-U, or no universal part of speech; names file and line.
    """
    del split
    for path in paths:
        for sentence in conllu.read_sentences(path):
            for word in sentence:
                labelled.check_label(path, word.line, word.upos, LABELS)
            yield "\n".join(f"{word.form}\t{word.upos}" for word in sentence), ""


def splits(code: str) -> dict[str, str]:
    """The splits of a language, and what XTREME calls them."""
    absent = {"train": WITHOUT_TRAIN, "validation": WITHOUT_VALIDATION}
    return {s: n for s, n in ud.SPLITS.items() if code not in absent.get(s, "").split()}


for _code in CODES.split():
    _files = {split: f"udpos/{name}-{_code}.tsv" for split, name in splits(_code).items()}
    _language = languages.iso639(_code)
    _source = labelled.WordFiles(_files, LABELS)
    labelled.add_word_task(f"udpos_{_language}", _language, _source, LABELS)

for _name, _codes in (("udpos", CODES), ("udpos_xtreme", XTREME)):
    _tasks = [f"udpos_{languages.iso639(code)}" for code in _codes.split()]
    text.add_language_mixture(_name, _tasks, exponent=0, present_only=True)

for _treebank in TREEBANKS.values():
    _files = ud.paths(_treebank.folder, _treebank.prefix)
    _source = labelled.TaggedFiles(_files, read_upos)
    labelled.add_word_task(f"ud_pos_{_treebank.prefix}", _treebank.language, _source, LABELS)

_pud = [t for t in TREEBANKS.values() if t.folder.endswith("-PUD")]
for _name, _treebanks in (("ud_pos", TREEBANKS.values()), ("ud_pos_pud", _pud)):
    _tasks = [f"ud_pos_{treebank.prefix}" for treebank in _treebanks]
    text.add_language_mixture(_name, _tasks, exponent=0, present_only=True)
