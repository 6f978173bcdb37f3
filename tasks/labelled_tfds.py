"""Labelled data that TensorFlow Datasets has; the same labels as in the tasks on files.

| mixture | tasks | data set, and the module with its labels |
|---|---|---|
| `tfds_xnli` | `tfds_xnli_<language>` | xnli, 15 languages without "train"; `tasks.xnli` |
| | `tfds_multi_nli_eng` | multi_nli: to train on; its mismatched part is "test" |
| `tfds_pawsx` | `tfds_pawsx_<language>` | paws_x_wiki, 7 languages; `tasks.pawsx` |
| `tfds_wikiann` | `tfds_wikiann_<language>` | wikiann, as PAN-X in 48 languages; `tasks.panx` |
| `tfds_udpos` | `tfds_udpos_<language>` | xtreme_pos, 33 languages; `tasks.udpos` |

Mixtures are of the data sets that TFDS has prepared. tasks/prepared.py says where it finds them. Of
translated training text, `tfds_pawsx` has all languages; for transfer from English train on
`tfds_pawsx_eng`.
"""

import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

from tasks import labelled, languages, panx, pawsx, text, udpos, xnli
from tasks.prepared import PreparedTfds

SPLITS = ("train", "validation", "test")
MATCHED = {"train": "train", "validation": "validation_matched", "test": "validation_mismatched"}


def pair(dataset: tf.data.Dataset, keys: Sequence[str]) -> tf.data.Dataset:
    """A preprocessor: two features as {"text": string [2]}."""
    return dataset.map(lambda e: {"text": [e[key] for key in keys], "label": e["label"]})


def xnli_pair(dataset: tf.data.Dataset, code: str) -> tf.data.Dataset:
    """A preprocessor: premise and hypothesis of XNLI's examples, which have all languages."""

    def choose(example):
        said = example["hypothesis"]
        hypothesis = tf.boolean_mask(said["translation"], said["language"] == code)[0]
        return {"text": [example["premise"][code], hypothesis], "label": example["label"]}

    return dataset.map(choose)


def words(dataset: tf.data.Dataset, labels: str, count: int) -> tf.data.Dataset:
    """A preprocessor: words with their labels, those left out whose label is not below a number.

    UD's "_" is TFDS's last part of speech: lines of multi-word tokens have it, which are no words.
    """

    def convert(example):
        kept = example[labels] < count
        return {
            "words": tf.boolean_mask(example["tokens"], kept),
            "labels": tf.boolean_mask(example[labels], kept),
        }

    return dataset.map(convert)


def add_pairs(
    name: str, language: str, source: PreparedTfds, labels: Sequence[str], make: Callable
) -> None:
    """Registers a task on pairs of one language, which a preprocessor makes."""
    labelled.add_labelled_task(name, (language,) * 2, source, labels, preprocessors=[make])


def add_words(
    name: str, language: str, source: PreparedTfds, labels: Sequence[str], feature: str
) -> None:
    """Registers a task on words, whose labels are a feature of the data set."""
    make = functools.partial(words, labels=feature, count=len(labels))
    labelled.add_word_task(name, language, source, labels, preprocessors=[make])


_premise = functools.partial(pair, keys=("premise", "hypothesis"))
_sentences = functools.partial(pair, keys=("sentence1", "sentence2"))

add_pairs(
    "tfds_multi_nli_eng", "eng", PreparedTfds("multi_nli:1.1.0", MATCHED), xnli.LABELS, _premise
)
for _code in xnli.CODES.split():
    _language, _source = languages.iso639(_code), PreparedTfds("xnli:1.1.0", SPLITS[1:])
    _choose = functools.partial(xnli_pair, code=_code)
    add_pairs(f"tfds_xnli_{_language}", _language, _source, xnli.LABELS, _choose)
for _code in pawsx.CODES.split():
    _language, _source = languages.iso639(_code), PreparedTfds(f"paws_x_wiki/{_code}:1.0.0", SPLITS)
    add_pairs(f"tfds_pawsx_{_language}", _language, _source, pawsx.LABELS, _sentences)
for _code in panx.CODES.split():
    _language, _source = languages.iso639(_code), PreparedTfds(f"wikiann/{_code}:1.0.0", SPLITS)
    add_words(f"tfds_wikiann_{_language}", _language, _source, panx.LABELS, "tags")
for _code in udpos.XTREME.split():
    _language, _splits = languages.iso639(_code), udpos.splits(_code)
    _source = PreparedTfds(f"xtreme_pos/xtreme_pos_{_code}:1.0.0", _splits)
    add_words(f"tfds_udpos_{_language}", _language, _source, udpos.LABELS, "upos")

for _name, _codes in (
    ("xnli", xnli.CODES),
    ("pawsx", pawsx.CODES),
    ("wikiann", panx.CODES),
    ("udpos", udpos.XTREME),
):
    _tasks = [f"tfds_{_name}_{languages.iso639(code)}" for code in _codes.split()]
    text.add_language_mixture(f"tfds_{_name}", _tasks, exponent=0, present_only=True)
