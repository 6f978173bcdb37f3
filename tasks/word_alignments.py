"""Sentences whose words people have linked, to test alignment on; from $XL_FLAX_DATA_DIR.

Tasks `alignment_<corpus>_<a>_<b>`; the texts are in this order. In `word_alignments/`:

- `alignment_hansards_eng_fra` (Och and Ney 2003), sure and possible links; its trial is the split
  "validation". In some copies its French has been decoded as Latin-1, which is mended.
- `alignment_czenali_eng_ces` (Mareček 2008), sure links.
- mixture `alignment_golden`: English with Spanish, French and Portuguese (Graça et al. 2008).
- `alignment_simalign_eng_deu`: the five sentences that SimAlign's repository shows.

In `noncommercial/xl-wa/`, the mixture `alignment_xlwa` (Martelli et al. 2023), English with six
languages, "validation" and "test"; its licence forbids commercial use.
"""

from collections.abc import Iterator, Sequence

from tasks import alignment, text

FOLDER, XLWA = "word_alignments", "noncommercial/xl-wa"
LANGUAGES = {
    "bg": "bul",
    "cs": "ces",
    "es": "spa",
    "fr": "fra",
    "it": "ita",
    "nl": "nld",
    "pt": "por",
    "ru": "rus",
}


def read_mended(paths: Sequence[str], split: str) -> Iterator[tuple[str, ...]]:
    """As `alignment.read_columns`, of UTF-8 text that was decoded as Latin-1 and encoded again."""
    for *sentences, links in alignment.read_columns(paths, split):
        yield *(" ".join(map(mended, sentence.split())) for sentence in sentences), links


def mended(word: str) -> str:
    """A word whose UTF-8 bytes were taken for Latin-1; others stay as they are."""
    try:
        data = word.encode("latin-1")
        # The second byte of "à" is Latin-1's no-break space, which is lost between words.
        return (data + b"\xa0" if data.endswith(b"\xc3") else data).decode()
    except UnicodeError:
        return word


alignment.add_alignment_task(
    "alignment_hansards_eng_fra",
    ("eng", "fra"),
    alignment.AlignedFiles(
        {
            "validation": f"{FOLDER}/en-fr.hansards.trial.tsv",
            "test": f"{FOLDER}/en-fr.hansards.test.tsv",
        },
        read_mended,
    ),
)
alignment.add_alignment_task(
    "alignment_simalign_eng_deu",
    ("eng", "deu"),
    alignment.AlignedFiles(
        {
            "test": [
                f"{FOLDER}/simalign_sample/{name}"
                for name in ("sample_eng.txt", "sample_deu.txt", "sample_eng_deu.gold")
            ]
        },
        alignment.read_numbered,
    ),
)


def add_english_task(corpus: str, code: str, files: dict[str, str]) -> str:
    """Registers English with another language; returns the task's name."""
    language = LANGUAGES[code]
    name = f"alignment_{corpus}_eng_{language}"
    alignment.add_alignment_task(name, ("eng", language), alignment.AlignedFiles(files))
    return name


add_english_task("czenali", "cs", {"test": f"{FOLDER}/en-cs.czenali.tsv"})
text.add_language_mixture(
    "alignment_golden",
    [
        add_english_task("golden", code, {"test": f"{FOLDER}/en-{code}.golden.tsv"})
        for code in ("es", "fr", "pt")
    ],
    exponent=0,
)
text.add_language_mixture(
    "alignment_xlwa",
    [
        add_english_task(
            "xlwa",
            code,
            {"validation": f"{XLWA}/{code}.dev.tsv", "test": f"{XLWA}/{code}.test.tsv"},
        )
        for code in ("bg", "es", "it", "nl", "pt", "ru")
    ],
    exponent=0,
)
