"""Tasks on text files: what they yield, and what they say about files that cannot be used."""

import itertools

import pytest
import seqio

from tasks import text
from xl_flax.errors import UserError

NAMES = (f"test_text_{i}" for i in itertools.count())


def texts(source: seqio.DataSource, split: str = "train") -> list[str]:
    dataset = source.get_dataset(split=split)
    return [example["text"].decode() for example in dataset.as_numpy_iterator()]


def test_tasks_yield_the_ids_that_the_vocabulary_gives(data_dir, vocabulary):
    lines = [
        "abc äöü",
        "  zwei  Wörter\tund mehr ",
        "<s> <mask> 起初神 ﬁ ½ 🙂",
        "a" * 3000,
        "ｗｉｄｅ",
    ]
    (data_dir / "deu.txt").write_text("\n".join(lines))
    task = text.add_text_task(next(NAMES), "deu", text.TextFiles("deu.txt"))
    examples = list(task.get_dataset(None, "train", shuffle=False).as_numpy_iterator())
    assert [list(e["tokens"]) for e in examples] == [vocabulary.encode(line) for line in lines]
    assert {e["language"] for e in examples} == {b"deu"}
    assert examples[0].keys() == {"tokens", "language"}
    features = task.output_features["tokens"].vocabulary
    assert features.decode(list(examples[0]["tokens"])) == lines[0]
    assert features.vocab_size == vocabulary.size and features.pad_id == vocabulary.special.pad


def test_one_line_is_one_example_whatever_ends_it(data_dir):
    (data_dir / "a.txt").write_bytes("\ufeffeins\r\n\r\nzwei\x85drei\n \nvier".encode())
    source = text.TextFiles({"test": ["a.txt", "a.txt"]})
    assert texts(source, "test") == ["eins", "zwei\x85drei", "vier"] * 2
    assert source.num_input_examples("test") == 6
    assert source.files("test") == [str(data_dir / "a.txt")] * 2 == source.list_shards("test")


def test_preprocessors_run_on_the_text(data_dir, vocabulary):
    (data_dir / "a.txt").write_text("keep this\ndrop\nkeep that\n")
    task = text.add_text_task(
        next(NAMES),
        "eng",
        text.TextFiles("a.txt"),
        preprocessors=[lambda ds: ds.filter(lambda e: e["text"] != "drop")],
    )
    examples = task.get_dataset(None, "train", shuffle=False).as_numpy_iterator()
    assert [vocabulary.decode(e["tokens"]) for e in examples] == ["keep this", "keep that"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"gut\nsch\xf6n\n", r"a\.txt, line 2: byte 4 \(0xf6\) is not valid UTF-8.*iconv"),
        (b"gut\n\nu\0t\0f\n", r"a\.txt, line 3 holds a NUL byte"),
        (b"", r"a\.txt: no examples for the split 'train'"),
        (b"\n \r\n", r"a\.txt: no examples"),
        (None, r"a\.txt is missing: .*; relative paths start at XL_FLAX_DATA_DIR"),
    ],
)
def test_bad_files_are_named_with_the_line(data_dir, content, message):
    if content is not None:
        (data_dir / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        text.TextFiles("a.txt").get_dataset()


def test_a_file_that_was_mended_is_read_again(data_dir):
    source = text.TextFiles("a.txt")
    (data_dir / "a.txt").write_bytes(b"\xff\n")
    with pytest.raises(UserError):
        source.num_input_examples("train")
    (data_dir / "a.txt").write_text("one\ntwo\n")
    assert source.num_input_examples("train") == 2


def test_without_a_data_folder_the_error_says_what_to_set(monkeypatch):
    monkeypatch.delenv("XL_FLAX_DATA_DIR", raising=False)
    task = text.add_text_task(next(NAMES), "deu", text.TextFiles("mine/deu.txt"))
    with pytest.raises(UserError, match=r"XL_FLAX_DATA_DIR is not set.*mine/deu\.txt"):
        task.num_input_examples("train")
    monkeypatch.setenv("XL_FLAX_DATA_DIR", "gs://bucket/text")
    with pytest.raises(UserError, match="XL_FLAX_DATA_DIR = 'gs://bucket/text': must be a local"):
        task.num_input_examples("train")


def test_absolute_paths_need_no_data_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("XL_FLAX_DATA_DIR", raising=False)
    (tmp_path / "a.txt").write_text("one\n")
    assert texts(text.TextFiles(str(tmp_path / "a.txt"))) == ["one"]


def test_an_unknown_split_is_named(data_dir):
    with pytest.raises(UserError, match="no split 'dev'; there are train"):
        text.TextFiles("a.txt").num_input_examples("dev")


def add_sizes(data_dir, **sizes: int) -> dict[str, str]:
    names = {}
    for language, size in sizes.items():
        (data_dir / f"{language}.txt").write_text("line\n" * size)
        names[language] = next(NAMES)
        text.add_text_task(names[language], language, text.TextFiles(f"{language}.txt"))
    return names


@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.0])
def test_rates_follow_the_exponent(data_dir, exponent):
    names = add_sizes(data_dir, deu=1600, bre=100)
    mixture = text.add_language_mixture(next(NAMES), list(names.values()), exponent=exponent)
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates[names["deu"]] / rates[names["bre"]] == pytest.approx(16**exponent)


def test_rates_of_your_own(data_dir):
    names = add_sizes(data_dir, deu=16, bre=1)
    rates = {names["deu"]: 3, names["bre"]: 1}
    mixture = text.add_language_mixture(next(NAMES), list(rates), rates=rates)
    assert {task.name: mixture.get_rate(task) for task in mixture.tasks} == rates
    with pytest.raises(UserError, match="rates without a task: fra"):
        text.add_language_mixture(next(NAMES), list(rates), rates={**rates, "fra": 1})


def test_an_unknown_unit_of_rates_is_named(data_dir):
    with pytest.raises(UserError, match="by='characters'; choose from examples, tokens"):
        text.add_language_mixture(next(NAMES), [], by="characters")


def test_aligned_files_become_one_mixture(data_dir):
    (data_dir / "x.de").write_text("eins\r\nzwei\r\n")
    (data_dir / "x.en").write_text("one\ntwo\n")
    name = next(NAMES)
    mixture = text.add_aligned_tasks(name, {"de": "x.de", "en": "x.en"}, languages={"de": "deu"})
    tasks = {task.name: task for task in mixture.tasks}
    assert tasks.keys() == {f"{name}_de", f"{name}_en"}
    assert texts(tasks[f"{name}_de"].source, "test") == ["eins", "zwei"]
    assert texts(tasks[f"{name}_en"].source, "test") == ["one", "two"]


@pytest.mark.parametrize(
    ("english", "message"),
    [
        ("one\n", r"x\.en has 1 examples, but .*x\.de has 2"),
        ("one\n\n", r"x\.en, line 2 is blank"),
    ],
)
def test_files_that_are_not_aligned_are_refused(data_dir, english, message):
    (data_dir / "x.de").write_text("eins\nzwei\n")
    (data_dir / "x.en").write_text(english)
    mixture = text.add_aligned_tasks(next(NAMES), {"de": "x.de", "en": "x.en"})
    with pytest.raises(UserError, match=message):
        [task.source.get_dataset(split="test") for task in mixture.tasks]
