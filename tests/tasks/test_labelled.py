"""Labelled tasks, from files and generators through the cache command to batches."""

import functools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from tasks import labelled, sib200, text
from xl_flax.data.features import FeatureSpec
from xl_flax.data.prepare import DatasetSpec
from xl_flax.data.seqio_tasks import examples, task_features
from xl_flax.data.seqio_text import read_lines
from xl_flax.data.stream import Rows, open_held_out, open_stream
from xl_flax.errors import UserError

ANSWERS, TAGS = ("yes", "no"), ("NOUN", "VERB")

MODULE = """
from tasks import labelled, text

ANSWERS, TAGS = ("yes", "no"), ("NOUN", "VERB")
for language in ("aa", "bb"):
    table = labelled.LabelledFiles(
        {s: f"{language}.{s}.tsv" for s in ("train", "test")},
        labelled.columns(ANSWERS, texts=("first", "second"), label="answer", id="name"),
    )
    labelled.add_labelled_task(f"nli_{language}", (language,) * 2, table, ANSWERS, ids=True)
text.add_language_mixture("nli", ["nli_aa", "nli_bb"], exponent=0)
words = labelled.WordFiles({"train": "tags.txt"}, TAGS)
labelled.add_word_task("tagged", "aa", words, TAGS)
"""


@pytest.fixture
def run(run_cache, data_dir, monkeypatch, registry):
    """run(dataset, ...) -> the caches of datasets of MODULE, made by the command."""
    (data_dir / "labelled_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(data_dir)
    monkeypatch.delitem(__import__("sys").modules, "labelled_module", raising=False)
    return functools.partial(run_cache, ["labelled_module"])


def write_pairs(folder, language, count):
    """Pairs of words; those with an even number are answered "yes"."""
    for split in ("train", "test"):
        lines = ["name\tanswer\tfirst\tsecond\tmore"]
        lines += [
            f"{language}-{i}\t{ANSWERS[i % 2]}\t{'ab' * (1 + i % 3)} {i}\tbe be\t-"
            for i in range(count)
        ]
        (folder / f"{language}.{split}.tsv").write_text("\n".join(lines) + "\n\n")


def texts_of(vocabulary, batch, row, place):
    ids = batch["segment_ids"][row]
    parts = [batch["tokens"][row][ids == 2 * place + k] for k in (1, 2)]
    return [vocabulary.decode(part[1:-1].tolist()) for part in parts]


def test_labels_go_from_files_to_batches(run, data_dir, vocabulary, capsys):
    for language in ("aa", "bb"):
        write_pairs(data_dir, language, 30)
    datasets = ("nli:train:64", "nli:train:32-single-truncate", "nli:test:32-single-truncate")
    caches = run(*datasets)
    assert "label=yes" in capsys.readouterr().out
    packed = Rows("nli", 64)
    single = Rows("nli", 32, packing="single", too_long="truncate")
    for rows in (packed, single):
        stream = open_stream(rows, caches, 0, vocabulary)
        assert stream.features["label"] == FeatureSpec("example", labels=ANSWERS)
        assert stream.num_texts == 2 and (stream.examples_per_row == 1) == (rows is single)
        batch = stream.rows(range(20))
        for row, place in np.argwhere(batch["example"] >= 0):
            number = batch["example"][row, place]
            assert batch["label"][row, place] == number % 2
            first, second = texts_of(vocabulary, batch, row, place)
            assert first.split()[-1] == str(number) and second == "be be"
        assert set(batch["languages"].flat) == {0, 1}
    held_out = open_held_out(
        [DatasetSpec("nli", "test", single.layout)], caches, vocabulary, rows_per_task=5
    )
    batch = held_out.rows(range(10))
    assert batch["example"][:, 0].tolist() == [*range(5), *range(5)]
    assert batch["label"][:, 0].tolist() == [0, 1, 0, 1, 0] * 2


def test_words_carry_their_labels_at_their_first_piece(run, data_dir, vocabulary):
    sentences = [["abcde", "be", "zzz"], ["be"], ["gle", "cymcym"]]
    tags = [["NOUN", "VERB", "NOUN"], ["VERB"], ["VERB", "NOUN"]]
    lines = [
        "".join(f"{w} x {t}\n" for w, t in zip(words, own, strict=True))
        for words, own in zip(sentences, tags, strict=True)
    ]
    (data_dir / "tags.txt").write_text("\n\n".join(lines))
    caches = run("tagged:train:64-single")
    stream = open_stream(Rows("tagged", 64, packing="single"), caches, 0, vocabulary)
    batch = stream.rows(range(3))
    assert sorted(batch["example"][:, 0]) == [0, 1, 2]
    for row, number in enumerate(batch["example"][:, 0]):
        expected = [vocabulary.encode(word) for word in sentences[number]]
        inside = batch["word"][row] >= 0
        tokens = batch["tokens"][row][inside].tolist()
        assert tokens == [i for ids in expected for i in ids]
        words = [n for n, ids in enumerate(expected) for _ in ids]
        assert batch["word"][row][inside].tolist() == words
        labels = batch["label"][row]
        assert [TAGS[i] for i in labels[labels >= 0]] == tags[number]
        firsts = [i for i, n in enumerate(words) if i == 0 or n != words[i - 1]]
        assert np.flatnonzero(labels[inside] >= 0).tolist() == firsts
        assert (labels[~inside] == -1).all() and inside.sum() == len(tokens)


def rows_of(source, split="train"):
    return list(source.get_dataset(split=split).as_numpy_iterator())


BAD_TABLES = {
    "unknown": ("a\tb\tmaybe\n", r"t.tsv, line 1: label 'maybe' is none of yes, no"),
    "missing": ("a\tb\tyes\n\na\tb\t\n", r"t.tsv, line 3: there is no label; known: yes, no"),
    "short": ("a\tb\n", r"t.tsv, line 1 has 2 columns .* expected 3 at least"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_line_of_a_table_is_named(data_dir, case):
    content, message = BAD_TABLES[case]
    (data_dir / "t.tsv").write_text(content)
    read = labelled.columns(ANSWERS, texts=(0, 1), label=2)
    with pytest.raises(UserError, match=message):
        rows_of(labelled.LabelledFiles({"train": "t.tsv"}, read))


def test_a_line_that_is_no_csv_is_named(data_dir):
    (data_dir / "t.tsv").write_bytes(b"a\tb\tyes\nx\ry\tb\tyes\n")
    read = labelled.columns(ANSWERS, texts=(0, 1), label=2, quoted=True)
    with pytest.raises(UserError, match=r"t.tsv, line 2 has no cells set apart by tabs"):
        rows_of(labelled.LabelledFiles({"train": "t.tsv"}, read))


def test_a_missing_column_is_named(data_dir):
    (data_dir / "t.tsv").write_text("text\tlabel\nab\tyes\n")
    read = labelled.columns(ANSWERS, texts=("text",), label="answer")
    with pytest.raises(UserError, match="t.tsv, line 1: there is no column 'answer' among text, l"):
        rows_of(labelled.LabelledFiles({"train": "t.tsv"}, read))


@pytest.mark.parametrize(
    "content, message",
    [
        ("ab\tNOUN\n\ncd\tADJ\n", r"t.txt, line 3: label 'ADJ' is none of NOUN, VERB"),
        ("ab\tNOUN\ncd\t\n", r"t.txt, line 2: there is no label"),
        ("ab\n", r"t.txt, line 1 has 1 column, but the word is expected in column 0"),
    ],
)
def test_a_bad_line_of_words_is_named(data_dir, content, message):
    (data_dir / "t.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        rows_of(labelled.WordFiles({"train": "t.txt"}, TAGS))


def test_columns_of_words_may_be_chosen(data_dir):
    (data_dir / "t.txt").write_text("1\tab\tNOUN\t_\n2\tc d\tVERB\t_\n\n\n1\te\tNOUN\t_\n")
    source = labelled.WordFiles({"train": "t.txt"}, TAGS, word=1, label=2)
    first, second = rows_of(source)
    assert first["words"].tolist() == [b"ab", b"c d"] and second["labels"].tolist() == [b"NOUN"]


def source_of(arrays):
    return seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(arrays),
        splits=("train",),
    )


def a_task(name, output=None, /, **arrays):
    """A task on the rows of some arrays, which has two labels."""
    source = source_of(arrays)
    if output is None:
        return labelled.add_labelled_task(name, "aa", source, ANSWERS)
    tokens = seqio.Feature(text.RunVocabulary(), add_eos=False)
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[functools.partial(text.set_language, language="aa")],
        output_features={"tokens": tokens, **output},
    )


def test_labels_may_be_names_or_numbers_of_any_source(vocabulary, registry):
    for values in (["no", "yes"], [1, 0]):
        task = a_task(f"t{values[0]}", text=["ab", "be"], label=values)
        ((batch, languages),) = examples(task, "train")
        assert [e.features["label"] for e in batch] == [1, 0] and languages == [("aa",)] * 2
        assert [vocabulary.decode(e.texts[0].tolist()) for e in batch] == ["ab", "be"]
    with pytest.raises(UserError, match="task 'bad', split 'train': label 'x' is none of yes, no"):
        list(examples(a_task("bad", text=["ab"], label=["x"]), "train"))
    with pytest.raises(UserError, match="'none': its examples have text, but no 'label'"):
        list(examples(a_task("none", text=["ab"]), "train"))


def test_a_task_says_what_its_features_are(vocabulary, registry):
    number = functools.partial(seqio.Feature, seqio.PassThroughVocabulary(0), add_eos=False)
    good = {
        "name": number(rank=0, dtype=tf.string),
        "score": number(rank=1, dtype=tf.float32),
        "span": labelled.Feature(kind="span", rank=1),
        "weight": number(rank=0, dtype=tf.float32),
        "flag": number(rank=0, dtype=tf.bool),
    }
    task = a_task(
        "good",
        good,
        tokens=[[5, 6], [7, 8]],
        name=["a", "ñ"],
        score=[[0.5, 1], [2, 3]],
        span=[[0, 1], [-1, -1]],
        weight=[1.0, 2.0],
        flag=[True, False],
    )
    assert task_features(task) == {
        "flag": FeatureSpec("example"),
        "name": FeatureSpec("text", "string"),
        "score": FeatureSpec("token", "float32"),
        "span": FeatureSpec("span"),
        "weight": FeatureSpec("example", "float32"),
    }
    ((batch, _),) = examples(task, "train")
    last = batch[1].features
    assert (last["flag"], last["name"], last["weight"], list(last["span"])) == (0, "ñ", 2, [-1, -1])
    assert [array.tolist() for array in last["score"]] == [[2, 3]]
    with pytest.raises(UserError, match="'odd', feature 'x' has rank 3"):
        task_features(a_task("odd", {"x": number(rank=3)}))
    with pytest.raises(UserError, match="'taken', feature 'piece': batches use this name"):
        task_features(a_task("taken", {"piece": number(rank=0)}))
    with pytest.raises(UserError, match="yields no feature 'weight'.*declared in output_features"):
        list(examples(a_task("lacks", {"weight": good["weight"]}, tokens=[[5]]), "train"))


def test_tokens_of_several_texts_carry_features_too(vocabulary, registry):
    pairs = tf.ragged.constant([[[5, 6], [7]], [[8], [9, 10, 11]]])
    even = tf.ragged.constant([[[5, 6], [7, 8]], [[8, 9], [10, 11]]]).to_tensor()
    for name, tokens in (("ragged", pairs), ("even", even)):
        arrays = {"tokens": tokens, "twice": tokens * 2, "language": [["aa", "aa"]] * 2}
        source = source_of(arrays)
        features = {
            "tokens": seqio.Feature(text.RunVocabulary(), add_eos=False, rank=2),
            "twice": labelled.Feature(kind="token", rank=2),
        }
        task = seqio.TaskRegistry.add(
            name, source=source, preprocessors=[], output_features=features
        )
        ((batch, languages),) = examples(task, "train")
        assert languages == [("aa", "aa")] * 2
        as_lists = tokens.to_list() if name == "ragged" else tokens.numpy().tolist()
        assert [[x.tolist() for x in e.texts] for e in batch] == as_lists
        for example in batch:
            for own, twice in zip(example.texts, example.features["twice"], strict=True):
                assert (2 * own).tolist() == twice.tolist()


def test_sib200_has_topics(data_dir, vocabulary):
    folder = data_dir / "sib200/deu_Latn"
    folder.mkdir(parents=True)
    rows = 'index_id\tcategory\ttext\n7\tsports\tPlain, "so".\n8\ttravel\t"""Ja,"" he said."\n'
    (folder / "dev.tsv").write_text(rows)
    task = seqio.TaskRegistry.get("sib200_topics_deu_Latn")
    ((batch, languages),) = examples(task, "validation")
    topics = [sib200.TOPICS[e.features["label"]] for e in batch]
    assert topics == ["sports", "travel"] and languages == [("deu",)] * 2
    assert [e.features["id"] for e in batch] == ["7", "8"]
    assert list(read_lines(task, "validation")) == ['Plain, "so".', '"Ja," he said.']
    (folder / "dev.tsv").write_text(rows.replace("travel", "trips"))
    with pytest.raises(UserError, match="dev.tsv, line 3: label 'trips' is none of entertainment"):
        list(examples(task, "validation"))
