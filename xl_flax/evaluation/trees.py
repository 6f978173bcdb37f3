"""Dependency trees: what a head's scores say, what is counted, and trees without a model."""

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from xl_flax.data.features import Example
from xl_flax.evaluation.arborescence import best_tree


class Tree(NamedTuple):
    """The words of a sentence; int[n]."""

    heads: np.ndarray  # number of each word's head from 1, 0 for the root
    relations: np.ndarray  # number of each word's relation


def decode(arcs_NxH: np.ndarray, best_NxN: np.ndarray, root: int) -> Tree:
    """The tree that scores best, with the best relation of each word to its head.

    As in all treebanks the root, and no other word, has the relation "root".

    Args:
      arcs_NxH: scores of heads, see `best_tree`.
      best_NxN: int, the best relation of each word (row) to each other (column).
      root: number of the relation of roots.
    """
    heads = best_tree(arcs_NxH)
    relations = best_NxN[np.arange(len(heads)), np.maximum(heads - 1, 0)]
    return Tree(heads, np.where(heads == 0, root, relations))


def join(parts: Sequence[Tree], unknown: int) -> Tree:
    """The tree of a sentence of which each part was parsed as if it were one.

    The roots of later parts become dependents of the first part's.

    Args:
      parts: in their order; those without words count as nothing.
      unknown: number of the relation that these have, "dep" in Universal Dependencies.
    """
    heads, relations, above = [], [], 0
    for part in parts:
        offset = sum(map(len, heads))
        is_root = part.heads == 0
        heads.append(np.where(is_root, above, part.heads + offset))
        relations.append(np.where(is_root & (above > 0), unknown, part.relations))
        if not above and is_root.any():
            above = 1 + int(is_root.argmax())
    return Tree(np.concatenate(heads), np.concatenate(relations))


def counts(
    gold: Sequence[Tree], predicted: Sequence[Tree], cut: Sequence[int]
) -> dict[str, np.ndarray]:
    """What UAS and LAS are made of.

    With gold words they are shares of words, punctuation included, as the scorer of the CoNLL 2018
    shared task has them (conll18_ud_eval.py; relations without subtypes).

    Args:
      gold: of each sentence.
      predicted: of each sentence.
      cut: words of each sentence that are not in its first part.

    Returns:
      float64[sentences, 2], how many words are so, and words: "las" with the right head and
      relation, "uas" with the right head, "cut" cut off.
    """
    rows = {"las": [], "uas": [], "cut": []}
    for right, said, beyond in zip(gold, predicted, cut, strict=True):
        attached = right.heads == said.heads
        words = len(attached)
        rows["las"].append((np.sum(attached & (right.relations == said.relations)), words))
        rows["uas"].append((attached.sum(), words))
        rows["cut"].append((beyond, words))
    return {name: np.array(row, np.float64).reshape(-1, 2) for name, row in rows.items()}


def tree_of(example: Example) -> Tree:
    """The tree that the features "head" and "relation" hold."""
    (heads,), (relations,) = example.features["head"], example.features["relation"]
    return Tree(heads[heads >= 0], relations[heads >= 0])


class Neighbours:
    """Trees in which each word depends on the word before it, or each on the one behind it.

    The direction is the more frequent one, the relation the most frequent to this neighbour.
    """

    def __init__(self, trees: Iterable[Tree], root: int):
        found = {-1: collections.Counter(), 1: collections.Counter()}
        for heads, relations in trees:
            offsets = np.where(heads > 0, heads - np.arange(1, len(heads) + 1), 0)
            for side, counter in found.items():
                counter.update(relations[offsets == side].tolist())
        self._side = max(found, key=lambda side: found[side].total())
        most = found[self._side].most_common(1)
        self._relation, self._root = (most[0][0] if most else root), root

    def __call__(self, example: Example) -> Tree:
        """The tree of an example."""
        count = len(tree_of(example).heads)
        heads = np.arange(1, count + 1) + self._side
        heads = np.where(heads > count, 0, heads)
        return Tree(heads, np.where(heads == 0, self._root, self._relation))


class Lexicon:
    """Each word as it most often was in the training text: its head so far away, its relation.

    A word that was not seen there, or whose head would lie outside the sentence, is attached to a
    neighbour. What comes out need not be a tree.
    """

    def __init__(self, examples: Sequence[Example], root: int):
        self._else = Neighbours(map(tree_of, examples), root)
        found = collections.defaultdict(collections.Counter)
        for example in examples:
            tree = tree_of(example)
            for number, word in enumerate(_words(example)):
                head = int(tree.heads[number])
                offset = head - number - 1 if head else 0
                found[word][offset, int(tree.relations[number])] += 1
        self._most = {word: counter.most_common(1)[0][0] for word, counter in found.items()}

    def __call__(self, example: Example) -> Tree:
        """The heads and relations of an example's words."""
        heads, relations = self._else(example)
        for number, word in enumerate(_words(example)):
            if word not in self._most:
                continue
            offset, relation = self._most[word]
            if 0 <= number + offset < len(heads):
                heads[number] = number + 1 + offset if offset else 0
                relations[number] = relation
        return Tree(heads, relations)


def _words(example: Example) -> list[tuple[int, ...]]:
    """The pieces of each word."""
    (tokens,), (numbers,) = example.texts, example.features["word"]
    ends = np.flatnonzero(np.diff(numbers)) + 1
    return [tuple(part.tolist()) for part in np.split(tokens, ends)]
