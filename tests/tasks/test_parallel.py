"""Tasks on parallel text: what they yield, and what they say about files that cannot be used."""

import functools
import importlib
import itertools
import textwrap

import pytest
import seqio
import tensorflow as tf

from tasks import parallel, text
from xl_flax.errors import UserError

NAMES = (f"test_parallel_{i}" for i in itertools.count())


def texts(source: seqio.DataSource, split: str = "train") -> list[tuple[str, ...]]:
    dataset = source.get_dataset(split=split)
    return [tuple(t.decode() for t in e["text"]) for e in dataset.as_numpy_iterator()]


def examples(task: seqio.Task, split: str = "train") -> list[dict]:
    return list(task.get_dataset(None, split, shuffle=False))


@pytest.fixture
def pair(data_dir):
    """pair(german, english) writes x.de and x.en and is their source."""

    def write(german: bytes, english: bytes) -> parallel.ParallelFiles:
        (data_dir / "x.de").write_bytes(german)
        (data_dir / "x.en").write_bytes(english)
        return parallel.ParallelFiles({"train": ["x.de", "x.en"]})

    return write


@pytest.fixture
def table(data_dir):
    """table(content) writes x.tsv and is its source."""

    def write(content: str, **options) -> parallel.ParallelFiles:
        (data_dir / "x.tsv").write_bytes(content.encode())
        return parallel.ParallelFiles({"train": "x.tsv"}, **options)

    return write


def test_tasks_yield_a_row_of_ids_per_language(table, vocabulary):
    rows = [("abc äöü", "up and down", "起初"), ("zwei", "", "x"), ("a" * 900, "b", " c ")]
    source = table("".join("\t".join(row) + "\n" for row in rows))
    task = parallel.add_parallel_task(next(NAMES), ("deu", "eng", "zho"), source)
    found = examples(task)
    for example, row in zip(found, rows, strict=True):
        assert example.keys() == {"tokens", "language"}
        assert isinstance(example["tokens"], tf.RaggedTensor)
        assert example["tokens"].dtype == tf.int32 and example["tokens"].shape[0] == 3
        assert example["tokens"].to_list() == [vocabulary.encode(side) for side in row]
        assert example["language"].numpy().tolist() == [b"deu", b"eng", b"zho"]


def test_the_task_can_be_batched_as_the_cache_does(table, vocabulary):
    source = table("ab\tcd\n" * 5)
    task = parallel.add_parallel_task(next(NAMES), ("deu", "eng"), source)
    dataset = task.preprocess_precache(source.get_dataset("train"), seed=0)
    (batch,) = dataset.ragged_batch(8)
    assert batch["tokens"].to_list() == [[vocabulary.encode(s) for s in ("ab", "cd")]] * 5


def test_lines_are_joined_whatever_ends_them(pair):
    source = pair("\ufeffeins\r\nzwei\x85drei\r\n\r\nvier".encode(), b"one\ntwo\nthree\n\n")
    expected = [("eins", "one"), ("zwei\x85drei", "two"), ("", "three"), ("vier", "")]
    assert texts(source) == expected and source.num_input_examples("train") == 4
    assert [path[-4:] for path in source.list_shards("train")] == ["x.de", "x.en"]


def test_columns_are_kept_as_they_are(table):
    source = table('\ufeff"eins\tone"\r\n \t\r\n')
    assert texts(source) == [('"eins', 'one"'), (" ", "")]


def test_columns_can_be_chosen(table):
    read = functools.partial(parallel.read_columns, columns=(2, 1))
    assert texts(table("1.04\teins\tone\n1.03\tzwei\ttwo\n", read=read)) == [
        ("one", "eins"),
        ("two", "zwei"),
    ]
    with pytest.raises(UserError, match=r"x\.tsv, line 1 has 2 columns, not 3"):
        texts(table("eins\tone\n", read=read))


@pytest.mark.parametrize(
    ("german", "english", "message"),
    [
        (
            b"eins\nzwei\ndrei\n",
            b"one\ntwo\n",
            r"x\.de has 3, .*x\.en has 2 lines.*leave a line bl",
        ),
        (b"eins\n", b"one\n\n", r"x\.de has 1, .*x\.en has 2 lines"),
        (b"eins\nzwei\n", b"one\nt\xffo\n", r"x\.en, line 2: byte 2 \(0xff\).*iconv"),
        (b"eins\nzwei\0\n", b"one\ntwo\n", r"x\.de, line 2 holds a NUL byte"),
        (b"", b"", r"x\.de, .*x\.en: no examples for the split 'train'"),
    ],
)
def test_bad_pairs_of_files_are_named_before_the_first_example(pair, german, english, message):
    with pytest.raises(UserError, match=message):
        pair(german, english).get_dataset()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("eins\tone\nzwei two\n", r"x\.tsv, line 2 has 1 columns, not 2.*a tab between"),
        ("eins\tone\nzwei\ttwo\tdue\n", r"x\.tsv, line 2 has 3 columns, not 2.*no tab within"),
        ("eins\n", r"x\.tsv, line 1 has 1 columns, not 2"),
        ("eins\tone\n\n", r"x\.tsv, line 2 has 1 columns"),
    ],
)
def test_bad_rows_of_a_table_are_named(table, content, message):
    with pytest.raises(UserError, match=message):
        table(content).get_dataset()


def test_a_missing_file_is_named(data_dir, monkeypatch):
    (data_dir / "x.de").write_text("eins\n")
    source = parallel.ParallelFiles({"train": ["x.de", "x.en"]})
    with pytest.raises(UserError, match=r"x\.en is missing: .*; relative paths start at XL_FLAX"):
        source.get_dataset()
    monkeypatch.delenv("XL_FLAX_DATA_DIR")
    with pytest.raises(UserError, match=r"XL_FLAX_DATA_DIR is not set.*x\.de"):
        source.num_input_examples("train")


def test_languages_are_as_many_as_texts(table, vocabulary):
    task = parallel.add_parallel_task(next(NAMES), ("deu", "eng"), table("a\tb\tc\n"))
    with pytest.raises(UserError, match=rf"{task.name}' has 2 languages, deu, eng, .* 3 texts"):
        examples(task)
    mono = parallel.add_parallel_task(next(NAMES), ("deu", "eng"), text.TextFiles("x.tsv"))
    with pytest.raises(UserError, match=r"has 2 languages, deu, eng, .* yields one text per"):
        examples(mono)
    for languages in (["deu"], ["deu", "deu"]):
        with pytest.raises(UserError, match="two or more languages, each once"):
            parallel.add_parallel_task(next(NAMES), languages, table("a\tb\n"))


def test_a_task_without_texts_says_what_makes_them(vocabulary):
    def dataset_fn(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({"de": ["eins"], "en": ["one"]})

    source = seqio.FunctionDataSource(dataset_fn, splits=["train"])
    task = parallel.add_parallel_task(next(NAMES), ("deu", "eng"), source)
    with pytest.raises(UserError, match="have de, en, but no 'text'.*translation_texts"):
        examples(task)


def test_preprocessors_run_on_the_texts(table, vocabulary):
    task = parallel.add_parallel_task(
        next(NAMES),
        ("deu", "eng"),
        table("eins\tone\n\ttwo\n"),
        preprocessors=[lambda ds: ds.filter(lambda e: tf.reduce_all(e["text"] != ""))],
    )
    (example,) = examples(task)
    assert example["tokens"].to_list() == [vocabulary.encode("eins"), vocabulary.encode("one")]


@pytest.mark.parametrize("nested", [False, True])
def test_translations_of_tfds_are_put_in_order(nested):
    texts = {"de": ["eins", "zwei"], "en": ["one", "two"], "fr": ["un", "deux"]}
    dataset = tf.data.Dataset.from_tensor_slices({"translation": texts} if nested else texts)
    found = parallel.translation_texts(dataset, ("fr", "de"))
    assert [e["text"].tolist() for e in found.as_numpy_iterator()] == [
        [b"un", b"eins"],
        [b"deux", b"zwei"],
    ]
    with pytest.raises(UserError, match="no translation into it; the examples have de, en, fr"):
        parallel.translation_texts(dataset, ("it", "de"))


def test_examples_without_all_languages_are_left_out():
    talks = [{"de": "eins", "en": "one", "fr": "un"}, {"de": "zwei", "fr": "deux"}, {"de": "drei"}]

    def generate():
        for talk in talks:
            yield {"translations": {"language": list(talk), "translation": list(talk.values())}}

    strings = tf.TensorSpec((None,), tf.string)
    signature = {"translations": {"language": strings, "translation": strings}}
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)

    def found(*codes):
        texts = parallel.translation_texts(dataset, codes)
        return [tuple(t.decode() for t in e["text"]) for e in texts.as_numpy_iterator()]

    assert found("fr", "de") == [("un", "eins"), ("deux", "zwei")]
    assert found("de", "fr", "en") == [("eins", "un", "one")]


def test_the_module_that_the_documentation_shows_works(data_dir, vocabulary, monkeypatch):
    shown = [line for line in parallel.__doc__.splitlines() if line.startswith("    ")]
    assert len(shown) <= 10
    (data_dir / "my_pairs.py").write_text(textwrap.dedent("\n".join(shown)))
    (data_dir / "news").mkdir()
    for name, lines in {"train": 8, "dev": 2}.items():
        for language in ("bre", "fra"):
            (data_dir / f"news/{name}.{language}").write_text(f"{language}\n" * lines)
    (data_dir / "cym-eng.tsv").write_text("un\tone\ndau\ttwo\n")
    monkeypatch.syspath_prepend(data_dir)
    importlib.import_module("my_pairs")
    mixture = seqio.get_mixture_or_task("celtic_pairs")
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates["celtic_bre_fra"] / rates["celtic_cym_eng"] == pytest.approx(2)  # root of 8 / 2
    found = {task.name: examples(task) for task in mixture.tasks}
    assert found["celtic_cym_eng"][1]["tokens"].to_list() == [
        vocabulary.encode("dau"),
        vocabulary.encode("two"),
    ]
    task = seqio.TaskRegistry.get("celtic_bre_fra")
    assert len(found["celtic_bre_fra"]) == 8 and len(examples(task, "validation")) == 2
