"""Tasks of linked words: readers, tokens with their words, and gold links."""

import os
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf

from tasks import alignment, synthetic_alignment, word_alignments
from xl_flax.data.links import read_links
from xl_flax.data.seqio_tasks import examples, task_features
from xl_flax.data.synthetic.generator import align, parallel_sentence
from xl_flax.data.synthetic.language import FAMILY
from xl_flax.errors import UserError

REAL = Path(os.environ.get("XL_FLAX_DATA_DIR", "/nonexistent"))


def every(task, split):
    return [e for batch, _ in examples(seqio.TaskRegistry.get(task), split) for e in batch]


@pytest.fixture
def task(data_dir, vocabulary):
    """task(lines) -> the examples of a TSV."""
    name = "alignment_of_this_test"

    def make(*lines):
        (data_dir / "own.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if name not in seqio.TaskRegistry.names():
            files = alignment.AlignedFiles({"test": "own.tsv"})
            alignment.add_alignment_task(name, ("aa", "bb"), files)
        return every(name, "test")

    yield make
    seqio.TaskRegistry.remove(name)


def test_pieces_know_their_words(task, vocabulary):
    (first, second) = task("be  abcab .\tcab be\t0-1 1-0", "be\tabc abc abc\t0-0\t0-0 0-2")
    for example, sentences in ((first, ("be abcab .", "cab be")), (second, ("be", "abc abc abc"))):
        for tokens, word, sentence in zip(
            example.texts, example.features["word"], sentences, strict=True
        ):
            assert len(tokens) == len(word)
            for number, expected in enumerate(sentence.split()):
                pieces = tokens[word == number].tolist()
                assert pieces and vocabulary.decode(pieces) == expected
    assert first.features["links"] == "0-1 1-0" and second.features["links"] == "0-0 0p2"
    specs = task_features(seqio.TaskRegistry.get("alignment_of_this_test"))
    assert (specs["word"].kind, specs["links"].kind) == ("token", "text")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a\tb", "line 2 has 2 columns"),
        ("a\t \t0-0", "line 2: a sentence or its translation has no words"),
        ("a\tb\t0-1", "line 2: the link 0-1 names a word that is not there"),
        ("a\tb\t0-0\t1-0", "line 2: the link 1-0 names a word"),
        ("a\tb\t0:0", "line 2: '0:0' is no link between two words"),
    ],
)
def test_wrong_lines_are_named(task, line, message):
    with pytest.raises(UserError, match=f"own.tsv, {message}"):
        task("a\tb\t0-0", line)


def test_files_in_simaligns_format(data_dir, vocabulary):
    for name, lines in {
        "a": ["7\tone two", "9\tthree"],
        "b": ["9\tdrei", "7\teins zwei vier"],
        "gold": ["9\t0-0", "7\t1p1 0-0"],
    }.items():
        (data_dir / name).write_text("\n".join(lines) + "\n")
    paths = [str(data_dir / name) for name in ("a", "b", "gold")]
    pairs = [*alignment.read_numbered(paths, "test")]
    assert pairs == [("three", "drei", "0-0"), ("one two", "eins zwei vier", "0-0 1p1")]
    (data_dir / "gold").write_text("8\t0-0\n")
    with pytest.raises(UserError, match="gold, line 1: there is no pair '8'"):
        [*alignment.read_numbered(paths, "test")]
    (data_dir / "b").write_text("9\tdrei\n9\tvier\n")
    with pytest.raises(UserError, match="b, line 2: expected a number of its own"):
        [*alignment.read_numbered(paths, "test")]


def test_a_source_without_links_is_named(vocabulary):
    dataset = tf.data.Dataset.from_tensors({"text": ["be", "cab"]})
    with pytest.raises(UserError, match="task 't': its examples need 'text', three strings"):
        alignment.tokenize_words(dataset, "t", ("aa", "bb"))


def test_text_that_was_decoded_as_latin_1_is_mended():
    for word in ("même", "à", "voilà", "cœur", "«", "plain", "1867"):
        broken = word.encode().decode("latin-1").strip()
        assert word_alignments.mended(broken) == word
        assert word_alignments.mended(word) == word
    assert word_alignments.mended("наш") == "наш"


def test_synthetic_links_are_those_of_meanings(vocabulary):
    assert len(synthetic_alignment.PAIRS) == 10
    found = every("synthetic_alignment_alpha_gamma", "validation")[:5]
    for index, example in enumerate(found):
        sides = [parallel_sentence(FAMILY[x], "validation", index) for x in ("alpha", "gamma")]
        sizes = [1 + word.max() for word in example.features["word"]]
        assert sizes == [len(side.words) for side in sides]
        links = read_links(example.features["links"], *sizes)
        assert links.sure == links.possible == {*align(*sides)}
    assert any(i != j for e in found for i, j in read_links(e.features["links"], 99, 99).sure)


@pytest.mark.skipif(
    not (REAL / word_alignments.XLWA).is_dir(), reason="needs XL_FLAX_DATA_DIR with XL-WA"
)
def test_real_alignments(vocabulary, monkeypatch):
    monkeypatch.setenv("XL_FLAX_DATA_DIR", str(REAL))
    sizes = {"alignment_hansards_eng_fra": 447, "alignment_simalign_eng_deu": 5}
    sizes |= {"alignment_golden_eng_por": 100, "alignment_xlwa_eng_bul": 245}
    for name, size in sizes.items():
        found = every(name, "test")
        assert len(found) == size
        marks = np.array(["p" in e.features["links"] for e in found])
        assert marks.any() == (name.split("_")[1] in ("hansards", "simalign"))
    source = seqio.TaskRegistry.get("alignment_hansards_eng_fra").source
    french = " ".join(
        e["text"][1].decode() for e in source.get_dataset("validation").as_numpy_iterator()
    )
    assert "même" in french and "Ã" not in french
