"""Universal NER: names of persons, organisations and places in UD's treebanks (Mayhew et al. 2024).

Files: $XL_FLAX_DATA_DIR/uner/<treebank>-ud-{train,dev,test}.iob2, as in the repositories of
UniversalNER: the 18 treebanks of version 1. Tasks `uner_<treebank>`, as in `uner_en_ewt`. Names of
other kinds ("OTH") are no entities, as in the authors' experiments (prepare_data.py of
UniversalNER/uner_code). The mixture `uner` is of the treebanks whose files are there. A treebank of
another version takes a line: `uner.add_treebank("nl_alpino")`.
"""

from collections.abc import Iterator, Sequence

import seqio

from tasks import labelled, languages, text
from tasks.panx import LABELS
from tasks.xnli import SPLITS
from xl_flax.errors import UserError

TREEBANKS = """
    ceb_gja da_ddt de_pud en_ewt en_pud hr_set pt_bosque pt_pud ru_pud sk_snk sr_set sv_pud
    sv_talbanken tl_trg tl_ugnayan zh_gsd zh_gsdsimp zh_pud
"""
TEST_ONLY = "ceb_gja de_pud en_pud pt_pud ru_pud sv_pud tl_trg tl_ugnayan zh_pud"
RENAME = {"B-OTH": "O", "I-OTH": "O", "B-O": "O"}


def read_iob2(paths: Sequence[str], split: str) -> Iterator[tuple[str, str]]:
    """Yields what `labelled.TaggedFiles` wants of lines with number, word and tag.

    Raises:
      UserError: a column is missing, or a tag is unknown; names file and line.
    """
    del split
    for path in paths:
        lines, identifier = [], ""
        for number, line in text.numbered_lines(path):
            cells = line.split("\t")
            if line.startswith("#"):
                key, _, value = line[1:].partition("=")
                identifier = value.strip() if key.strip() == "sent_id" else identifier
            elif line.strip():
                if len(cells) < 3:
                    raise UserError(
                        f"{path}, line {number}: expected number, word and tag, set apart by tabs, "
                        f"not {line[:40]!r}"
                    )
                tag = RENAME.get(cells[2], cells[2])
                labelled.check_label(path, number, tag, LABELS)
                lines.append(f"{cells[1].strip()}\t{tag}")
            elif lines:
                yield "\n".join(lines), identifier
                lines, identifier = [], ""
        if lines:
            yield "\n".join(lines), identifier


def add_treebank(treebank: str, splits: dict[str, str] = SPLITS) -> seqio.Task:
    """Registers the task of a treebank, whose name begins with the code of its language."""
    files = {split: f"uner/{treebank}-ud-{name}.iob2" for split, name in splits.items()}
    source = labelled.TaggedFiles(files, read_iob2)
    language = languages.iso639(treebank)
    return labelled.add_word_task(f"uner_{treebank}", language, source, LABELS, ids=True)


TASKS = [
    add_treebank(treebank, {"test": "test"} if treebank in TEST_ONLY.split() else SPLITS)
    for treebank in TREEBANKS.split()
]
text.add_language_mixture("uner", TASKS, exponent=0, present_only=True)
