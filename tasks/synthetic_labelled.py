"""Labelled text in the synthetic languages, generated from a seed.

- `synthetic_inference_<language>`, mixture `synthetic_inference`: a premise and a hypothesis, and
  whether the second follows ("entailment"), may be ("neutral") or cannot be ("contradiction"); see
  xl_flax/data/synthetic/inference.py. Pairs with one number mean the same in every language.
- `synthetic_pos_<language>`, mixture `synthetic_pos`: words with their parts of speech. Sentence i
  of "test" is a translation of sentence i of every other language.
- `synthetic_entities_<language>`, mixture `synthetic_entities`: words with tags of names in IOB2:
  persons, places and organisations. "test" as above.
- `synthetic_topics_<language>`, mixture `synthetic_topics`: a sentence and what it is about, one of
  five topics; see xl_flax/data/synthetic/topics.py. "test" as above.
- `synthetic_choices_<language>`, mixture `synthetic_choices`: a sentence and two others, of which
  one follows from it, with the labels of `tasks.xcopa`. Questions with one number mean the same in
  every language.

All labels are the same in every language: train on one, as `synthetic_topics_alpha`, and test on
all. What is said in one split of a mixture is not said in another. Mixtures are of the core
languages (see tasks/synthetic.py), each as often as another.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import seqio
import tensorflow as tf

from tasks import labelled, text
from tasks.panx import LABELS as ENTITIES
from tasks.synthetic import CHUNK, CORE
from tasks.xcopa import LABELS as CHOICES
from xl_flax.data.synthetic.choices import choice_question
from xl_flax.data.synthetic.generator import Sentence, corpus_sentence, parallel_sentence
from xl_flax.data.synthetic.inference import LABELS, inference_pair
from xl_flax.data.synthetic.language import FAMILY, Language
from xl_flax.data.synthetic.topics import TOPICS, topic_sentence

SIZES = {"train": 20_000, "validation": 1000, "test": 1000}
# Of each sentence of a topic many others are drawn; published sets are small, too (SIB-200: 701).
TOPIC_SIZES = {"train": 3000, "validation": 500, "test": 500}
UPOS = ("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "NOUN", "NUM", "PART", "PROPN", "VERB")


def source(
    example: Callable[[str, int], dict[str, Any]],
    signature: Mapping[str, tf.TensorSpec],
    sizes: Mapping[str, int] = SIZES,
) -> seqio.FunctionDataSource:
    """Examples that are generated on the fly.

    Args:
      example: gives the example of a split and an index.
      signature: of one example.
      sizes: examples per split.
    """

    def dataset_fn(split: str, shuffle_files: bool = False, seed: int | None = None):
        del shuffle_files, seed  # an example follows from its index alone

        def chunks():
            for start in range(0, sizes[split], CHUNK):
                indices = range(start, min(start + CHUNK, sizes[split]))
                rows = [example(split, index) for index in indices]
                yield {key: [row[key] for row in rows] for key in signature}

        batched = {k: tf.TensorSpec((None, *s.shape), s.dtype) for k, s in signature.items()}
        return tf.data.Dataset.from_generator(chunks, output_signature=batched).unbatch()

    return seqio.FunctionDataSource(dataset_fn, splits=tuple(sizes), num_input_examples=dict(sizes))


def inference(language: Language, split: str, index: int) -> dict[str, Any]:
    """A premise and a hypothesis with their label."""
    pair = inference_pair(language, split, index)
    return {"text": (pair.premise.text, pair.hypothesis.text), "label": pair.label}


def sentence(language: Language, split: str, index: int, corpus: str) -> Sentence:
    """A sentence of a corpus; those of "test" mean the same in every language."""
    make = parallel_sentence if split == "test" else corpus_sentence
    return make(language, split, index, corpus=corpus)


def tagged(language: Language, split: str, index: int) -> dict[str, Any]:
    """A sentence, a line for each word: the word, a tab and its part of speech."""
    said = sentence(language, split, index, "pos")
    return {"text": "\n".join(map("\t".join, zip(said.words, said.upos, strict=True)))}


def named(language: Language, split: str, index: int) -> dict[str, Any]:
    """A sentence, a line for each word: the word, a tab and its tag in IOB2."""
    said = sentence(language, split, index, "entities")
    tags = ["O"] * len(said.words)
    for start, end, kind in said.entities:
        tags[start:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start - 1)
    return {"text": "\n".join(map("\t".join, zip(said.words, tags, strict=True)))}


def about(language: Language, split: str, index: int) -> dict[str, Any]:
    """A sentence with its topic."""
    said, topic = topic_sentence(language, split, index)
    return {"text": said.text, "label": topic}


def question(language: Language, split: str, index: int) -> dict[str, Any]:
    """A premise and two choices, with the right one as label."""
    asked = choice_question(language, split, index)
    texts = (asked.premise.text, *(choice.text for choice in asked.choices))
    return {"text": texts, "label": CHOICES[asked.label]}


STRING = tf.TensorSpec((), tf.string)
WORD_KINDS = {"pos": (tagged, UPOS), "entities": (named, ENTITIES)}
# Number of texts, a function, labels, sizes.
TEXT_KINDS = {
    "inference": (2, inference, LABELS, SIZES),
    "topics": (1, about, TOPICS, TOPIC_SIZES),
    "choices": (3, question, CHOICES, SIZES),
}

for _name in CORE:
    for _kind, (_number, _make, _labels, _sizes) in TEXT_KINDS.items():
        _texts = tf.TensorSpec((_number,), tf.string) if _number > 1 else STRING
        labelled.add_labelled_task(
            f"synthetic_{_kind}_{_name}",
            (_name,) * _number,
            source(
                functools.partial(_make, FAMILY[_name]),
                {"text": _texts, "label": STRING},
                _sizes,
            ),
            _labels,
        )
    for _kind, (_make, _labels) in WORD_KINDS.items():
        labelled.add_word_task(
            f"synthetic_{_kind}_{_name}",
            _name,
            source(functools.partial(_make, FAMILY[_name]), {"text": STRING}),
            _labels,
            preprocessors=[labelled.split_words],
        )

for _kind in (*TEXT_KINDS, *WORD_KINDS):
    text.add_language_mixture(
        f"synthetic_{_kind}", [f"synthetic_{_kind}_{name}" for name in CORE], exponent=0
    )
