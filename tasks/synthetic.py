"""The synthetic family: one seqio task per language, and their mixtures.

``synthetic_<language>`` has text of its own to train on and to validate with, and a test split in
which line i is a translation of line i of every other language. No two languages share the meaning
of a training sentence, and no meaning to validate with or to test stands in any training text of
synthetic languages, be it parallel or labelled (xl_flax/data/synthetic/splits.py).

- ``synthetic``: all nine languages.
- ``synthetic_core``: a base language and what the literature varies, one factor each: another
  lexicon (beta), another word order (gamma), inverted order, shared words (anchored).
"""

import seqio
import tensorflow as tf

from tasks.text import add_language_mixture, add_text_task
from xl_flax.data.synthetic.generator import corpus_sentence, parallel_sentence
from xl_flax.data.synthetic.language import FAMILY, Language

CORE = ("alpha", "beta", "gamma", "inverted", "anchored")
CHUNK = 256  # sentences that cross to TensorFlow at once
SIZES = {"train": 20_000, "validation": 500, "test": 500}


def source(language: Language, sizes: dict[str, int] = SIZES) -> seqio.FunctionDataSource:
    """Sentences of a synthetic language as ``{"text": string}``, generated on the fly.

    Args:
      language: any settings, not only those of the family.
      sizes: sentences per split; the "test" split is parallel across languages.
    """

    def dataset_fn(split: str, shuffle_files: bool = False, seed: int | None = None):
        del shuffle_files, seed  # a sentence follows from its index alone
        sentence = parallel_sentence if split == "test" else corpus_sentence

        def chunks():  # one string at a time would take TensorFlow longer than it takes us
            for start in range(0, sizes[split], CHUNK):
                indices = range(start, min(start + CHUNK, sizes[split]))
                yield {"text": [sentence(language, split, index).text for index in indices]}

        signature = {"text": tf.TensorSpec((None,), tf.string)}
        return tf.data.Dataset.from_generator(chunks, output_signature=signature).unbatch()

    return seqio.FunctionDataSource(dataset_fn, splits=tuple(sizes), num_input_examples=sizes)


for _language in FAMILY.values():
    add_text_task(f"synthetic_{_language.name}", _language.name, source(_language))

add_language_mixture("synthetic", [f"synthetic_{name}" for name in FAMILY])
add_language_mixture("synthetic_core", [f"synthetic_{name}" for name in CORE])
