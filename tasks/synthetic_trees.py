"""Dependency trees of the synthetic languages, generated from a seed.

The tasks `synthetic_trees_<language>`, and the mixture `synthetic_trees` of the core languages (see
tasks/synthetic.py), each as often as another. Sentence i of "test" is a translation of sentence i
of every other language.
"""

import functools
from typing import Any

import tensorflow as tf

from tasks import text, trees
from tasks.synthetic import CORE
from tasks.synthetic_labelled import source
from xl_flax.data.synthetic.generator import corpus_sentence, parallel_sentence
from xl_flax.data.synthetic.language import FAMILY, Language


def tree(language: Language, split: str, index: int) -> dict[str, Any]:
    """A sentence and its tree, as `trees.lines` writes them."""
    make = parallel_sentence if split == "test" else corpus_sentence
    sentence = make(language, split, index, corpus="trees")
    return {"text": trees.lines(sentence.words, sentence.heads, sentence.relations)}


for _name in CORE:
    _source = source(functools.partial(tree, FAMILY[_name]), {"text": tf.TensorSpec((), tf.string)})
    trees.add_tree_task(
        f"synthetic_trees_{_name}", _name, _source, preprocessors=[trees.split_trees]
    )

text.add_language_mixture(
    "synthetic_trees", [f"synthetic_trees_{name}" for name in CORE], exponent=0
)
