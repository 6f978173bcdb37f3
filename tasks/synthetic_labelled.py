"""Labelled text in the synthetic languages, generated from a seed.

- `synthetic_inference_<language>`, mixture `synthetic_inference`: a premise and a hypothesis, and
  whether the second follows ("entailment"), may be ("neutral") or cannot be ("contradiction"); see
  xl_flax/data/synthetic/inference.py. Pairs with one number mean the same in every language.
- `synthetic_pos_<language>`, mixture `synthetic_pos`: words with their parts of speech. Sentence i
  of "test" is a translation of sentence i of every other language.

Both mixtures are of the core languages (see tasks/synthetic.py), each as often as another.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import seqio
import tensorflow as tf

from tasks import labelled, text
from tasks.synthetic import CHUNK, CORE
from xl_flax.data.synthetic.generator import corpus_sentence, parallel_sentence
from xl_flax.data.synthetic.inference import LABELS, inference_pair
from xl_flax.data.synthetic.language import FAMILY, Language

SIZES = {"train": 20_000, "validation": 1000, "test": 1000}
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


def tagged(language: Language, split: str, index: int) -> dict[str, Any]:
    """A sentence, a line for each word: the word, a tab and its part of speech."""
    make = parallel_sentence if split == "test" else corpus_sentence
    sentence = make(language, split, index, corpus="pos")
    words = zip(sentence.words, sentence.upos, strict=True)
    return {"text": "\n".join(map("\t".join, words))}


for _name in CORE:
    labelled.add_labelled_task(
        f"synthetic_inference_{_name}",
        (_name, _name),
        source(
            functools.partial(inference, FAMILY[_name]),
            {"text": tf.TensorSpec((2,), tf.string), "label": tf.TensorSpec((), tf.string)},
        ),
        LABELS,
    )
    labelled.add_word_task(
        f"synthetic_pos_{_name}",
        _name,
        source(functools.partial(tagged, FAMILY[_name]), {"text": tf.TensorSpec((), tf.string)}),
        UPOS,
        preprocessors=[labelled.split_words],
    )

for _kind in ("inference", "pos"):
    text.add_language_mixture(
        f"synthetic_{_kind}", [f"synthetic_{_kind}_{name}" for name in CORE], exponent=0
    )
