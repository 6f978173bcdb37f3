"""What tasks of dependency trees are made of.

    from tasks import trees

    trees.add_tree_task("trees_bre", "bre", trees.TreeFiles({"train": "bre.conllu"}))

Batches then hold "word", the number of each token's word in its sentence, from 0; and at the first
piece of each word "head", the number of its head word from 1 (0: it is the root), and "relation",
the number of its relation among `RELATIONS`; -1 elsewhere.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from tasks import conllu, labelled, text
from xl_flax.data import vocabulary
from xl_flax.errors import UserError

# The universal relations (de Marneffe et al. 2021, Universal Dependencies, table 4;
# https://universaldependencies.org/u/dep). Subtypes, as in "nsubj:pass", belong to languages; what
# follows the colon is cut, as by the scorer of the CoNLL 2018 shared task (Zeman et al. 2018, §5).
RELATIONS = (
    *("acl", "advcl", "advmod", "amod", "appos", "aux", "case", "cc", "ccomp", "clf", "compound"),
    *("conj", "cop", "csubj", "dep", "det", "discourse", "dislocated", "expl", "fixed", "flat"),
    *("goeswith", "iobj", "list", "mark", "nmod", "nsubj", "nummod", "obj", "obl", "orphan"),
    *("parataxis", "punct", "reparandum", "root", "vocative", "xcomp"),
)
FEATURES = ("tokens", "word", "head", "relation")


def universal(relation: str) -> str:
    """A relation without its subtype."""
    return relation.partition(":")[0]


def add_tree_task(
    name: str,
    language: str,
    source: seqio.DataSource,
    *,
    preprocessors: Sequence[Callable[[tf.data.Dataset], tf.data.Dataset]] = (),
) -> seqio.Task:
    """Registers a task of sentences with their dependency trees.

    Words are tokenised one by one, as by `labelled.add_word_task`.

    Args:
      name: the task's name, unique among all tasks.
      language: what the language is called.
      source: yields {"words": string [n], "heads": int32 [n], the number of the head word from 1, 0
        for the root, "relations": string [n]}; `TreeFiles`, or any seqio source.
      preprocessors: seqio preprocessors that rewrite or drop examples; their results must have what
        a source yields.

    Returns:
      The task, whose examples are {"tokens": int32 [t], "language": string, "word", "head" and
      "relation": int32 [t]}.
    """
    features = {key: labelled.Feature(kind="token", rank=1) for key in ("word", "head")}
    features["relation"] = labelled.Feature(kind="token", rank=1, labels=RELATIONS)
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            *preprocessors,
            functools.partial(tokenize_trees, language=language),
            seqio.CacheDatasetPlaceholder(),
        ],
        output_features={
            "tokens": seqio.Feature(text.RunVocabulary(), add_eos=False),
            **features,
        },
    )


def tokenize_trees(dataset: tf.data.Dataset, language: str) -> tf.data.Dataset:
    """A preprocessor: the pieces of the words as "tokens", and what belongs to each piece."""

    def convert(example):
        given = [example[key] for key in ("words", "heads", "relations")]
        arrays = tf.numpy_function(_pieces, given, [tf.int32] * len(FEATURES))
        features = {k: tf.ensure_shape(v, [None]) for k, v in zip(FEATURES, arrays, strict=True)}
        return features | {"language": tf.constant(language)}

    return dataset.map(convert)


def _pieces(words: np.ndarray, heads: np.ndarray, relations: np.ndarray) -> tuple[np.ndarray, ...]:
    if not len(words) == len(heads) == len(relations):
        raise UserError(
            f"{len(words)} words, {len(heads)} heads and {len(relations)} relations: each word has "
            "one of each"
        )
    names = [universal(relation.decode()) for relation in relations]
    if unknown := [name for name in names if name not in RELATIONS]:
        raise UserError(f"relation {unknown[0]!r} is none of the universal ones")
    pieces = labelled.encode_words(vocabulary.run_vocabulary(), [word.decode() for word in words])
    sizes = [len(ids) for ids in pieces]
    firsts = np.cumsum([0, *sizes[:-1]])
    head, relation = np.full((2, sum(sizes)), -1, np.int32)
    head[firsts], relation[firsts] = heads, [RELATIONS.index(name) for name in names]
    tokens = np.array([i for ids in pieces for i in ids], np.int32)
    return tokens, np.repeat(np.arange(len(sizes), dtype=np.int32), sizes), head, relation


class TreeFiles(text.Files):
    """CoNLL-U files: {"words": string [n], "heads": int32 [n], "relations": string [n]}."""

    def __init__(self, paths: Mapping[str, str | Sequence[str]]):
        """The source.

        Args:
          paths: the files of each split. Paths that are not absolute start at XL_FLAX_DATA_DIR,
            which is looked up when the files are read.
        """
        super().__init__(paths, read_trees)

    def get_dataset(self, *args, **options) -> tf.data.Dataset:
        """A dataset of the sentences, in the order of the files."""
        return split_trees(super().get_dataset(*args, **options))


def read_trees(paths: Sequence[str], split: str) -> Iterator[str]:
    """Yields sentences as `lines` writes them.

    Raises:
      UserError: not CoNLL-U, not a tree, or a relation that is not universal; names file and line.
    """
    del split
    for path in paths:
        for sentence in conllu.read_sentences(path):
            conllu.check_tree(path, sentence)
            for word in sentence:
                if universal(word.relation) not in RELATIONS:
                    raise UserError(
                        f"{path}, line {word.line}: {universal(word.relation)!r} is none of the "
                        f"universal relations {', '.join(RELATIONS)}"
                    )
            yield lines(*zip(*((w.form, w.head, w.relation) for w in sentence), strict=True))


def lines(words: Sequence[str], heads: Sequence[int], relations: Sequence[str]) -> str:
    """A sentence as one string, a line for each word: form, head and relation between tabs."""
    rows = zip(words, heads, relations, strict=True)
    return "\n".join(f"{word}\t{head}\t{relation}" for word, head, relation in rows)


def split_trees(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """A preprocessor: {"text": what `lines` wrote} as words, heads and relations."""

    def convert(example):
        cells = tf.strings.split(tf.strings.split(example["text"], "\n"), "\t")
        cells = cells.to_tensor(shape=[None, 3])
        heads = tf.strings.to_number(cells[:, 1], tf.int32)
        return {"words": cells[:, 0], "heads": heads, "relations": cells[:, 2]}

    return dataset.map(convert)
