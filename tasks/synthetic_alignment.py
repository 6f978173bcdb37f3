"""Translations between the synthetic languages with links of their words.

Tasks `synthetic_alignment_<a>_<b>`, as in `synthetic_alignment_alpha_beta`, for each pair of the
core languages (see tasks/synthetic.py), and the mixture `synthetic_alignment` of all ten. Words are
linked that express the same part of the meaning. The sentences are those of the splits "validation"
and "test" of `synthetic_<a>_<b>`.
"""

import functools
import itertools
from typing import Any

import tensorflow as tf

from tasks import alignment, text
from tasks.synthetic import CORE, SIZES
from tasks.synthetic_labelled import source
from xl_flax.data.links import write_links
from xl_flax.data.synthetic.generator import align, parallel_sentence
from xl_flax.data.synthetic.language import FAMILY, Language

HELD_OUT = {split: SIZES[split] for split in ("validation", "test")}


def linked(a: Language, b: Language, split: str, index: int) -> dict[str, Any]:
    """A sentence in two languages, in words, and their links."""
    sides = [parallel_sentence(language, split, index) for language in (a, b)]
    return {"text": (*(" ".join(side.words) for side in sides), write_links(align(*sides)))}


PAIRS = {f"synthetic_alignment_{a}_{b}": (a, b) for a, b in itertools.combinations(sorted(CORE), 2)}
for _name, (_a, _b) in PAIRS.items():
    _example = functools.partial(linked, FAMILY[_a], FAMILY[_b])
    _signature = {"text": tf.TensorSpec((3,), tf.string)}
    alignment.add_alignment_task(_name, (_a, _b), source(_example, _signature, HELD_OUT))

text.add_language_mixture("synthetic_alignment", list(PAIRS), exponent=0)
