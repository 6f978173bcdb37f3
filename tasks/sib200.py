"""SIB-200: the sentences of FLORES-200, the same in every language, with their topics.

Files: $XL_FLAX_DATA_DIR/sib200/<code>/{train,dev,test}.tsv with the columns index_id, category and
text. Here they are plain text, as tasks `sib200_<code>`, and, as sentence i is the same in all
languages, parallel text: the mixture `sib200`, of which "test" (204 sentences) serves retrieval.
"""

import csv
from collections.abc import Iterator

from tasks import text
from xl_flax.errors import UserError

CODES = """
    amh_Ethi arb_Arab ben_Beng ces_Latn deu_Latn eng_Latn est_Latn eus_Latn fin_Latn fra_Latn
    heb_Hebr hin_Deva ind_Latn ita_Latn pes_Arab pol_Latn rus_Cyrl spa_Latn swh_Latn tam_Taml
    tur_Latn ukr_Cyrl urd_Arab vie_Latn yor_Latn zho_Hans
"""
FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
HEADER = ["index_id", "category", "text"]


def read_sentences(path: str, split: str) -> Iterator[str]:
    """Yields the sentences of a file, which quotes some of them as CSV does."""
    del split
    for number, line in text.numbered_lines(path):
        row = next(csv.reader([line], delimiter="\t"), [])
        if (number == 1 and row != HEADER) or len(row) != len(HEADER) or not row[2].strip():
            raise UserError(
                f"{path}, line {number}: expected the columns {', '.join(HEADER)}, set apart by "
                f"tabs, with a header, not {line[:40]!r}"
            )
        if number > 1:
            yield row[2]


_first = None
for _code in CODES.split():
    _paths = {split: f"sib200/{_code}/{name}" for split, name in FILES.items()}
    _source = text.TextFiles(_paths, read_sentences, aligned_with=_first)
    _first = _first or _source
    text.add_text_task(f"sib200_{_code}", text.iso639(_code.split("_")[0]), _source)

text.add_language_mixture("sib200", [f"sib200_{code}" for code in CODES.split()], exponent=0)
