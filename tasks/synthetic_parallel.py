"""Translations between the synthetic languages.

Tasks `synthetic_<a>_<b>`, as in `synthetic_alpha_beta`, for each pair of the core languages (see
tasks/synthetic.py), and `synthetic_multiway`, every sentence in all five; mixture
`synthetic_pairs`, all ten pairs.

The split "test" is the text that retrieval is scored on, the "test" of the tasks of one language.
No meaning of one split is in another, nor in the training text of one language
(xl_flax/data/synthetic/splits.py).
"""

import itertools
from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

from tasks import parallel, text
from tasks.synthetic import CHUNK, CORE, SIZES
from xl_flax.data.synthetic.generator import parallel_sentence
from xl_flax.data.synthetic.language import FAMILY, Language


def source(languages: Sequence[Language], sizes: Mapping[str, int] = SIZES) -> seqio.DataSource:
    """Sentences in K synthetic languages as ``{"text": string [K]}``, generated on the fly.

    Args:
      languages: any settings, not only those of the family.
      sizes: sentences per split.
    """
    languages, sizes = tuple(languages), {**SIZES, **sizes}

    def dataset_fn(split: str, shuffle_files: bool = False, seed: int | None = None):
        del shuffle_files, seed  # the sentences follow from the split and their index alone

        def chunks():
            for start in range(0, sizes[split], CHUNK):
                indices = range(start, min(start + CHUNK, sizes[split]))
                yield {"text": [translations(languages, split, index) for index in indices]}

        signature = {"text": tf.TensorSpec((None, len(languages)), tf.string)}
        return tf.data.Dataset.from_generator(chunks, output_signature=signature).unbatch()

    return seqio.FunctionDataSource(dataset_fn, splits=tuple(sizes), num_input_examples=sizes)


def translations(languages: Sequence[Language], split: str, index: int) -> list[str]:
    """A sentence in each of the languages."""
    return [parallel_sentence(language, split, index).text for language in languages]


PAIRS = {f"synthetic_{a}_{b}": (a, b) for a, b in itertools.combinations(sorted(CORE), 2)}
for _name, _languages in {**PAIRS, "synthetic_multiway": CORE}.items():
    _source = source([FAMILY[language] for language in _languages])
    parallel.add_parallel_task(_name, _languages, _source)

text.add_language_mixture("synthetic_pairs", list(PAIRS))
