"""Attachment scores are those of the official scorer; cut sentences and controls give trees."""

import numpy as np
import pytest
from tree_rows import LABELS, draw_tree

from xl_flax.data.features import Example
from xl_flax.evaluation import trees
from xl_flax.evaluation.bootstrap import ratio
from xl_flax.evaluation.trees import Tree

ROOT, DEP = LABELS.index("root"), LABELS.index("dep")


def conllu(words, tree, relations):
    lines = [
        f"{i}\t{word}\t_\tX\t_\t_\t{head}\t{relations[relation]}\t_\t_"
        for i, (word, head, relation) in enumerate(zip(words, *tree, strict=True), 1)
    ]
    return "\n".join(lines) + "\n\n"


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_the_official_scorer(tmp_path, seed):
    """To the last digit, on drawn trees; the scorer ignores the gold relations' subtypes."""
    udeval = pytest.importorskip("udtools.udeval")
    rng = np.random.default_rng(seed)
    gold, predicted, files = [], [], {"gold": "", "system": ""}
    for _ in range(25):
        count = int(rng.integers(1, 12))
        right, said = (Tree(*draw_tree(rng, count)) for _ in range(2))
        if rng.random() < 0.5:  # half of them have the right heads, or nearly
            said = Tree(right.heads, np.where(right.heads == 0, ROOT, said.relations))
        gold.append(right)
        predicted.append(said)
        words = [f"w{rng.integers(50)}" for _ in range(count)]
        files["gold"] += conllu(words, right, [f"{label}:x" for label in LABELS])
        files["system"] += conllu(words, said, LABELS)
    loaded = []
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        loaded.append(udeval.load_conllu_file(str(tmp_path / name), {}))
    official = udeval.evaluate(*loaded)
    counts = trees.counts(gold, predicted, [0] * len(gold))
    for metric in ("uas", "las"):
        value = float(ratio(counts[metric].sum(axis=0)))
        assert value == official[metric.upper()].f1
        assert 0.1 < value < 0.9
    assert counts["cut"].sum(axis=0).tolist() == [0, counts["las"][:, 1].sum()]


def test_only_the_root_is_called_root():
    """Whatever relation scores best of the word that becomes the root."""
    arcs = np.array([[0.0, 0, 5, 0], [9, 0, 0, 0], [1, 0, 4, 0]])
    best = np.array([[1, 2, 3], [2, 1, 1], [3, 2, 2]])
    heads, relations = trees.decode(arcs, best, ROOT)
    assert heads.tolist() == [2, 0, 2] and relations.tolist() == [2, ROOT, 2]


def test_parts_of_a_sentence_hang_on_the_first_root():
    first = Tree(np.array([2, 0, 2]), np.array([1, ROOT, 2]))
    second = Tree(np.array([0, 1]), np.array([ROOT, 3]))
    empty = Tree(np.array([], int), np.array([], int))
    heads, relations = trees.join([first, empty, second, second], DEP)
    assert heads.tolist() == [2, 0, 2, 2, 4, 2, 6]
    assert relations.tolist() == [1, ROOT, 2, DEP, 3, DEP, 3]
    alone = trees.join([first], DEP)
    assert alone.heads.tolist() == first.heads.tolist()
    assert alone.relations.tolist() == first.relations.tolist()


def example(heads, relations, words):
    """An example whose words have two pieces each, the second one always 9."""
    tokens = np.ravel([(word, 9) for word in words])
    number = np.repeat(np.arange(len(words)), 2)
    at_first = [np.ravel([(value, -1) for value in values]) for values in (heads, relations)]
    features = {"word": (number,), "head": (at_first[0],), "relation": (at_first[1],)}
    return Example(0, (tokens,), features)


# Three words depend on the one behind them, two of them by relation 3, and one on that before it.
TRAIN = [
    example([2, 0, 2], [3, ROOT, 1], [11, 12, 13]),
    example([2, 3, 0], [3, 2, ROOT], [11, 14, 12]),
]


def test_neighbours_go_the_more_frequent_way():
    parse = trees.Neighbours(map(trees.tree_of, TRAIN), ROOT)
    heads, relations = parse(example([0, 1, 1, 1], [ROOT, 1, 1, 1], [7, 7, 7, 7]))
    assert heads.tolist() == [2, 3, 4, 0] and relations.tolist() == [3, 3, 3, ROOT]
    backwards = trees.Neighbours([Tree(np.array([0, 1]), np.array([ROOT, 2]))], ROOT)
    heads, relations = backwards(example([0, 1, 1], [ROOT, 1, 1], [7, 7, 7]))
    assert heads.tolist() == [0, 1, 2] and relations.tolist() == [ROOT, 2, 2]


def test_a_lexicon_knows_what_words_were():
    parse = trees.Lexicon(TRAIN, ROOT)
    heads, relations = parse(example([0, 1, 1, 1], [ROOT, 1, 1, 1], [12, 13, 7, 11]))
    # 12 was the root, 13 depends on the word before it, 7 is new, 11 has no word behind it.
    assert heads.tolist() == [0, 1, 4, 0] and relations.tolist() == [ROOT, 1, 3, ROOT]


def test_one_word_is_a_tree():
    one = example([0], [ROOT], [5])
    for parse in (trees.Neighbours(map(trees.tree_of, TRAIN), ROOT), trees.Lexicon(TRAIN, ROOT)):
        assert [x.tolist() for x in parse(one)] == [[0], [ROOT]]
