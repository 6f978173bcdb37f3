"""Translations between the synthetic languages.

Tasks `synthetic_<a>_<b>`, as in `synthetic_alpha_beta`, for each pair of the core languages (see
tasks/synthetic.py), and `synthetic_multiway`, every sentence in all five; mixture
`synthetic_pairs`, all ten pairs.

The split "test" is the text that retrieval is scored on, the "test" of the tasks of one language.
No sentence of "train" reads like one of "validation" or "test" in any of its languages, nor one of
"validation" like one of "test". That takes leaving some out, as meanings do recur: of 500 sentences
to test, 28 would be among 20,000 to train.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import seqio
import tensorflow as tf

from tasks import parallel, text
from tasks.synthetic import CHUNK, CORE, SIZES
from xl_flax.data.synthetic.generator import parallel_sentence
from xl_flax.data.synthetic.language import FAMILY, Language

SEEDS = {"train": "pairs-train", "validation": "pairs-validation", "test": "test"}
HELD_OUT = {"train": ("validation", "test"), "validation": ("test",), "test": ()}


def source(languages: Sequence[Language], sizes: Mapping[str, int] = SIZES) -> seqio.DataSource:
    """Sentences in K synthetic languages as ``{"text": string [K]}``, generated on the fly.

    Args:
      languages: any settings, not only those of the family.
      sizes: sentences per split.
    """
    languages, sizes = tuple(languages), {**SIZES, **sizes}

    def dataset_fn(split: str, shuffle_files: bool = False, seed: int | None = None):
        del shuffle_files, seed  # the sentences follow from the languages and the split alone
        sentences = functools.partial(translations, languages, split, sizes)

        def chunks():
            left = sentences()
            while chunk := list(itertools.islice(left, CHUNK)):
                yield {"text": chunk}

        signature = {"text": tf.TensorSpec((None, len(languages)), tf.string)}
        return tf.data.Dataset.from_generator(chunks, output_signature=signature).unbatch()

    return seqio.FunctionDataSource(dataset_fn, splits=tuple(sizes), num_input_examples=sizes)


def translations(
    languages: Sequence[Language], split: str, sizes: Mapping[str, int]
) -> Iterator[tuple[str, ...]]:
    """Yields the sentences of a split, those left out that another split holds out."""
    held_out, corpora = [], []
    for language in languages:
        corpora.append(_texts(language, SEEDS[split], itertools.count()))
        held_out.append(set())
        for other in HELD_OUT[split]:
            held_out[-1].update(_texts(language, SEEDS[other], range(sizes[other])))
    sentences = zip(*corpora, strict=True)
    fresh = (each for each in sentences if not any(map(set.__contains__, held_out, each)))
    return itertools.islice(fresh, sizes[split])


def _texts(language: Language, seed: str, indices: Iterable[int]) -> Iterator[str]:
    for index in indices:
        yield parallel_sentence(language, seed, index).text


PAIRS = {f"synthetic_{a}_{b}": (a, b) for a, b in itertools.combinations(sorted(CORE), 2)}
for _name, _languages in {**PAIRS, "synthetic_multiway": CORE}.items():
    _source = source([FAMILY[language] for language in _languages])
    parallel.add_parallel_task(_name, _languages, _source)

text.add_language_mixture("synthetic_pairs", list(PAIRS))
