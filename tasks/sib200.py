"""SIB-200: the sentences of FLORES-200, the same in every language, with their topics.

Files: $XL_FLAX_DATA_DIR/sib200/<code>/{train,dev,test}.tsv with the columns index_id, category and
text. Here they are plain text, as tasks `sib200_<code>`, and, as sentence i is the same in all
languages, parallel text: the mixture `sib200`, of which "test" (204 sentences) serves retrieval.
The tasks `sib200_topics_<code>` and the mixture `sib200_topics` have the topics as labels.
"""

import csv
from collections.abc import Iterator, Sequence

from tasks import labelled, text
from xl_flax.errors import UserError

CODES = """
    amh_Ethi arb_Arab ben_Beng ces_Latn deu_Latn eng_Latn est_Latn eus_Latn fin_Latn fra_Latn
    heb_Hebr hin_Deva ind_Latn ita_Latn pes_Arab pol_Latn rus_Cyrl spa_Latn swh_Latn tam_Taml
    tur_Latn ukr_Cyrl urd_Arab vie_Latn yor_Latn zho_Hans
"""
FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
HEADER = ["index_id", "category", "text"]


TOPICS = (
    "entertainment",
    "geography",
    "health",
    "politics",
    "science/technology",
    "sports",
    "travel",
)


def read_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yields line number and columns of a file, which quotes some sentences as CSV does."""
    for number, line in text.numbered_lines(path):
        row = next(csv.reader([line], delimiter="\t"), [])
        if (number == 1 and row != HEADER) or len(row) != len(HEADER) or not row[2].strip():
            raise UserError(
                f"{path}, line {number}: expected the columns {', '.join(HEADER)}, set apart by "
                f"tabs, with a header, not {line[:40]!r}"
            )
        if number > 1:
            yield number, row


def read_sentences(path: str, split: str) -> Iterator[str]:
    """Yields the sentences of a file."""
    del split
    return (sentence for _, (_, _, sentence) in read_rows(path))


def read_topics(paths: Sequence[str], split: str) -> Iterator[tuple[str, str, str]]:
    """Yields sentence, topic and identifier."""
    del split
    for path in paths:
        for number, (identifier, topic, sentence) in read_rows(path):
            labelled.check_label(path, number, topic, TOPICS)
            yield sentence, topic, identifier


_first = None
for _code in CODES.split():
    _paths = {split: f"sib200/{_code}/{name}" for split, name in FILES.items()}
    _language = text.iso639(_code.split("_")[0])
    _source = text.TextFiles(_paths, read_sentences, aligned_with=_first)
    _first = _first or _source
    text.add_text_task(f"sib200_{_code}", _language, _source)
    _topics = labelled.LabelledFiles(_paths, read_topics)
    labelled.add_labelled_task(f"sib200_topics_{_code}", _language, _topics, TOPICS, ids=True)

for _name in ("sib200", "sib200_topics"):
    text.add_language_mixture(_name, [f"{_name}_{code}" for code in CODES.split()], exponent=0)
