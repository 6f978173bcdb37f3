"""XCOPA: which of two sentences is the cause, or the effect, of a third (Ponti et al. 2020).

Files: $XL_FLAX_DATA_DIR/xcopa/{val,test}.<code>.jsonl in 11 languages, as in cambridgeltl/xcopa;
train.en.jsonl, val.en.jsonl and test.en.jsonl are COPA (Roemmele et al. 2011) in the same layout.
Tasks `xcopa_<language>`; train on `xcopa_eng`, 400 questions. The mixture `xcopa` is of the
languages whose files are there.

An example has three texts: the premise with the question, in English everywhere as in XTREME
(third_party/run_xcopa.py), and the two choices. The label says which of them is right.
"""

import json
from collections.abc import Iterator, Sequence

from tasks import labelled, languages, text
from xl_flax.errors import UserError

CODES = "en et ht id it qu sw ta th tr vi zh"
LABELS = ("choice1", "choice2")
SPLITS = {"train": "train", "validation": "val", "test": "test"}
QUESTIONS = ("cause", "effect")
TEXTS = ("premise", "choice1", "choice2")


def read_choices(paths: Sequence[str], split: str) -> Iterator[tuple[str, ...]]:
    """Yields premise with question, both choices, the label's name and the identifier.

    Raises:
      UserError: a line is no JSON object of this form; names file and line.
    """
    del split
    for path in paths:
        for number, line in text.numbered_lines(path):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number} is no JSON: {error}") from error
            known = isinstance(row, dict) and all(isinstance(row.get(key), str) for key in TEXTS)
            if not known or row.get("question") not in QUESTIONS:
                raise UserError(
                    f"{path}, line {number}: expected strings {', '.join(TEXTS)} and a question, "
                    f"{' or '.join(QUESTIONS)}"
                )
            label = row.get("label")
            if type(label) is not int or label not in (0, 1):
                raise UserError(f"{path}, line {number}: label {label!r} is neither 0 nor 1")
            asked = f"{row['premise']} What was the {row['question']}?"
            identifier = str(row.get("idx", ""))
            yield asked, row["choice1"], row["choice2"], LABELS[label], identifier


TASKS = []
for _code in CODES.split():
    _files = {split: f"xcopa/{name}.{_code}.jsonl" for split, name in SPLITS.items()}
    if _code != "en":
        del _files["train"]
    _language = languages.iso639(_code)
    _source = labelled.LabelledFiles(_files, read_choices)
    TASKS.append(
        labelled.add_labelled_task(
            f"xcopa_{_language}", (_language,) * 3, _source, LABELS, ids=True
        )
    )

text.add_language_mixture("xcopa", TASKS, exponent=0, present_only=True)
