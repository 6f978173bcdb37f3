"""Tasks of trees: from CoNLL-U to features of tokens; the published treebanks by name."""

import os

import numpy as np
import pytest
import seqio
from tree_rows import SENTENCES

from tasks import synthetic_trees, trees, ud
from xl_flax.data.features import FeatureSpec
from xl_flax.data.seqio_tasks import examples, task_features
from xl_flax.data.seqio_text import read_lines
from xl_flax.data.synthetic.generator import corpus_sentence
from xl_flax.data.synthetic.language import FAMILY
from xl_flax.errors import UserError


def write(data_dir, folder, name, text):
    (data_dir / "ud" / folder).mkdir(parents=True, exist_ok=True)
    (data_dir / "ud" / folder / name).write_text(text, encoding="utf-8")


def words_of(vocabulary, example):
    """The text of each word, with head and relation at its first piece."""
    (tokens,), (numbers,) = example.texts, example.features["word"]
    (heads,), (relations,) = example.features["head"], example.features["relation"]
    for number in range(numbers[-1] + 1):
        (at,) = np.nonzero(numbers == number)
        assert (heads[at[1:]] == -1).all() and (relations[at[1:]] == -1).all()
        label = trees.RELATIONS[relations[at[0]]]
        yield vocabulary.decode(tokens[at].tolist()), int(heads[at[0]]), label


def test_a_treebank_becomes_features_of_tokens(data_dir, vocabulary):
    write(data_dir, "UD_German-GSD", "de_gsd-ud-dev.conllu", SENTENCES.replace("thời gian", "a be"))
    task = seqio.TaskRegistry.get("ud_trees_de_gsd")
    assert task_features(task) == {
        "word": FeatureSpec("token"),
        "head": FeatureSpec("token"),
        "relation": FeatureSpec("token", labels=trees.RELATIONS),
    }
    ((batch, languages),) = examples(task, "validation")
    assert languages == [("deu",)] * 2
    first, second = (list(words_of(vocabulary, example)) for example in batch)
    assert first[:2] == [("in", 3, "case"), ("dem", 3, "det")]
    assert [word[1:] for word in first[2:]] == [(0, "root"), (3, "punct")]
    assert second[0] == ("a be", 0, "root") and second[1][1:] == (1, "nsubj")


def test_a_relation_that_is_not_universal_is_named(data_dir, vocabulary):
    text = SENTENCES.replace("\tcase\t", "\tprep\t")
    write(data_dir, "UD_German-GSD", "de_gsd-ud-train.conllu", text)
    with pytest.raises(UserError, match="train.conllu, line 4: 'prep' is none of the universal"):
        list(examples(seqio.TaskRegistry.get("ud_trees_de_gsd"), "train"))


def test_trees_have_no_text_for_a_vocabulary(data_dir):
    write(data_dir, "UD_German-GSD", "de_gsd-ud-train.conllu", SENTENCES)
    task = seqio.TaskRegistry.get("ud_trees_de_gsd")
    with pytest.raises(UserError, match="'ud_trees_de_gsd' has no text to train a vocabulary on"):
        list(read_lines(task, "train"))


def test_treebanks_are_known_by_their_published_names():
    known = ud.TREEBANKS
    assert len({t.prefix for t in known.values()}) == len(known) > 300
    assert known["UD_Classical_Chinese-Kyoto"][1:] == ("lzh_kyoto", "lzh")
    assert known["UD_English-LinES"].prefix == "en_lines"
    assert known["UD_Norwegian-Nynorsk"][1:] == ("no_nynorsk", "nor")
    assert {len(t.language) for t in known.values()} == {3}
    pud = seqio.MixtureRegistry.get("ud_trees_pud")
    assert len(pud.tasks) >= 20 and all(set(task.splits) == {"test"} for task in pud.tasks)


def test_the_treebanks_of_the_data_folder_are_trees():
    """The smallest file of each treebank, if real data are here."""
    folder = os.path.join(os.environ.get("XL_FLAX_DATA_DIR", ""), "ud")
    if not os.path.isdir(folder):
        pytest.skip("XL_FLAX_DATA_DIR has no treebanks")
    for name in sorted(os.listdir(folder)):
        files = list(os.scandir(os.path.join(folder, name)))
        smallest = min(files, key=lambda entry: entry.stat().st_size)
        assert smallest.name.startswith(f"{ud.TREEBANKS[name].prefix}-ud-")
        sentences = list(trees.read_trees([smallest.path], "test"))
        assert len(sentences) >= 500 and max(s.count("\n") for s in sentences) > 20


def test_synthetic_sentences_have_trees(vocabulary):
    sentence = corpus_sentence(FAMILY["alpha"], "train", 2, corpus="trees")
    (batch, _) = next(examples(seqio.TaskRegistry.get("synthetic_trees_alpha"), "train"))
    found = list(words_of(vocabulary, batch[2]))
    expected = zip(sentence.words, sentence.heads, sentence.relations, strict=True)
    assert [word[1:] for word in found] == [word[1:] for word in expected]
    mixture = seqio.MixtureRegistry.get("synthetic_trees")
    assert len(mixture.tasks) == len(synthetic_trees.CORE)


def test_every_synthetic_relation_is_universal():
    for name in synthetic_trees.CORE:
        for index in range(200):
            lines = synthetic_trees.tree(FAMILY[name], "test", index)["text"].split("\n")
            assert {line.split("\t")[2] for line in lines} <= set(trees.RELATIONS)
