"""Lines of millions of characters, whatever they hold."""

import itertools
import time

import pytest

from tasks import parallel, text
from xl_flax.data.long_texts import encode, parts
from xl_flax.errors import UserError

NAMES = (f"test_long_{i}" for i in itertools.count())


def tokens(task):
    return [e["tokens"] for e in task.get_dataset(None, "train", shuffle=False).as_numpy_iterator()]


def test_parts_are_cut_before_spaces_and_their_pieces_are_those_of_the_whole(vocabulary):
    line = " ".join(["abc", "defgh", "ijklm nop"] * 40)
    for most in (12, 50, 1000):
        found = list(parts(line, most))
        assert "".join(found) == line and max(map(len, found)) <= most
        ids = [i for part in found for i in vocabulary.encode(part)]
        assert ids == vocabulary.encode(line) == encode(vocabulary, line).tolist()
    assert list(parts("a" * 25, 10)) == ["a" * 10, "a" * 10, "a" * 5]
    assert list(parts("")) == [""] and encode(vocabulary, "").tolist() == []


@pytest.mark.parametrize("character", ["🙂", "a", "神", "ab "])
def test_five_megabytes_on_a_line_take_seconds(data_dir, vocabulary, character):
    size = 5_000_000 // len(character.encode())
    lines = ["abc def", character * size, "fed cba"]
    (data_dir / "a.txt").write_text("\n".join(lines))
    task = text.add_text_task(next(NAMES), "deu", text.TextFiles("a.txt"))
    begin = time.monotonic()
    found = tokens(task)
    assert time.monotonic() - begin < 30  # a run of unknown characters took an hour
    assert [list(found[0]), list(found[2])] == [vocabulary.encode(lines[i]) for i in (0, 2)]
    assert len(found[1]) == len(encode(vocabulary, lines[1]))


def test_long_texts_of_pairs(data_dir, vocabulary):
    lines = ["abc\tdef", f"{'abc def ' * 4000}\tgh", "i\tjk"]
    (data_dir / "a.tsv").write_text("\n".join(lines))
    source = parallel.ParallelFiles({"train": "a.tsv"})
    found = tokens(parallel.add_parallel_task(next(NAMES), ("xx", "yy"), source))
    expected = [[vocabulary.encode(side) for side in line.split("\t")] for line in lines]
    assert [[list(side) for side in example] for example in found] == expected


def test_what_is_no_line_of_text_is_an_error(data_dir, monkeypatch):
    monkeypatch.setattr(text, "LINE_BYTES", 100)
    (data_dir / "a.txt").write_text("short\n" + "a" * 100 + "\n")
    with pytest.raises(UserError, match=r"a\.txt, line 2 has more than .* write one example a li"):
        text.TextFiles("a.txt").num_input_examples("train")
