"""Predictions as files: in the layout that XTREME's scripts read, and what paired tests need.

In a run's folder, `predictions/STEP/MIXTURE/` holds for each language of a split, as "test-de":

* `test-de.tsv`, a label a line; of words a blank line behind each sentence. XTREME's `evaluate.py`
  (Hu et al. 2020) takes these folders where the mixture has the name of one of its tasks.
* `test-de.json` instead, of answers: {identifier: text}; of trees: a list of heads and relations.
* `test-de.counts.json`: the signature of the results, and by metric [[numbers of an example], …],
  of whose sums it is a function.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from xl_flax.errors import UserError
from xl_flax.evaluation.labelled import Scored
from xl_flax.evaluation.results import Row
from xl_flax.files.read import read_json
from xl_flax.files.write import write_atomically

FOLDER = "predictions"
SPLITS = {"validation": "dev"}  # as XTREME calls them
# The languages of XTREME by ISO 639-3; others keep their names.
XTREME = {
    "afr": "af", "ara": "ar", "ben": "bn", "bul": "bg", "deu": "de", "ell": "el", "eng": "en",
    "est": "et", "eus": "eu", "fas": "fa", "fin": "fi", "fra": "fr", "heb": "he", "hin": "hi",
    "hun": "hu", "ind": "id", "ita": "it", "jav": "jv", "jpn": "ja", "kat": "ka", "kaz": "kk",
    "kor": "ko", "mal": "ml", "mar": "mr", "msa": "ms", "mya": "my", "nld": "nl", "por": "pt",
    "rus": "ru", "spa": "es", "swa": "sw", "tam": "ta", "tel": "te", "tgl": "tl", "tha": "th",
    "tur": "tr", "urd": "ur", "vie": "vi", "yor": "yo", "zho": "zh",
}  # fmt: skip


def write(folder: str, step: int, sign: str, data: str, scored: Mapping[str, Scored]) -> None:
    """Writes what was predicted of a mixture's split.

    Args:
      folder: the run's.
      step: of the checkpoint.
      sign: the signature of the results.
      data: mixture/split. What stands there of another signature is replaced.
      scored: by language.
    """
    for name, own in scored.items():
        path = _path(folder, step, data, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        text, ending = as_text(own.predictions)
        write_atomically(f"{path}.{ending}", text)
        counts = {metric: array.tolist() for metric, array in own.counts.items()}
        kept = {"signature": sign, "counts": counts}
        write_atomically(f"{path}.counts.json", json.dumps(kept))


def as_text(predictions: Any) -> tuple[str, str]:
    """The text of a file and its ending, by what an example's prediction is."""
    first = predictions[0] if len(predictions) else ""
    if isinstance(first, str):
        return "".join(f"{label}\n" for label in predictions), "tsv"
    if isinstance(first, list):
        return "".join("\n".join(labels) + "\n\n" for labels in predictions), "tsv"
    if set(first) == {"id", "text"}:
        answers = {each["id"]: each["text"] for each in predictions}
        return json.dumps(answers, indent=1, ensure_ascii=False) + "\n", "json"
    return json.dumps(list(predictions), ensure_ascii=False) + "\n", "json"


def read_counts(folder: str, row: Row) -> np.ndarray:
    """The counts of one language's result, float64[n, k], that `write` wrote.

    Raises:
      UserError: they are not there, or those of another evaluation of this data.
    """
    path = f"{_path(folder, row.step, row.data, row.languages[0])}.counts.json"
    kept = read_json(path) if os.path.exists(path) else {}
    if kept.get("signature") != row.signature:
        wrong = "is of another evaluation" if kept else "is missing"
        raise UserError(
            f"{path} {wrong}, and a paired test needs that of {row.signature}: evaluate the "
            "checkpoint again with --overwrite, and in no other way in the same command"
        )
    return np.array(kept["counts"][row.metric], np.float64)


def _path(folder: str, step: int, data: str, language: str) -> str:
    mixture, _, split = data.rpartition("/")
    name = f"{SPLITS.get(split, split)}-{XTREME.get(language, language)}"
    return os.path.join(folder, FOLDER, str(step), mixture.replace("/", "-"), name)
