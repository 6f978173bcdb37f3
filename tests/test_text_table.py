import pytest

from xl_flax.text_table import WIDTH, count, fits, legend, table

ROWS = [("name", "one", "two", "three"), ("a", "1", "22", "333")]


def test_columns_are_aligned_under_a_heading():
    assert table(ROWS).splitlines() == [
        "name  one  two  three",
        "---------------------",
        "a       1   22    333",
    ]


def test_columns_that_do_not_fit_follow_behind_the_first_again():
    assert table(ROWS, width=15).splitlines() == [
        "name  one  two",
        "--------------",
        "a       1   22",
        "",
        "name  three",
        "-----------",
        "a       333",
    ]
    assert table(ROWS, width=3).count("name") == 3  # each with the first, however narrow


def test_what_is_wide_or_long_does_not_fit():
    assert fits("x" * 80) and not fits("x" * 81) and not fits("x\n" * 50)


def test_names_lose_their_middle_where_lines_would_be_too_long():
    rows = [["task", "rows", "on"], ["a" * 90 + "z", "1,000", "train"], ["short", "2", "test"]]
    lines = table(rows, left={0, 2}, shorten=0).split("\n")
    assert max(map(len, lines)) == WIDTH
    assert lines[2].startswith("aaa") and "aaz  1,000  train" in lines[2]
    assert lines[3].split() == ["short", "2", "test"]
    assert max(map(len, table(rows, left={0, 2}).split("\n"))) > WIDTH


def test_legends_fit_on_terminals():
    lines = legend({"fill": "share of the rows " * 9, "rate": "x"}).split("\n")
    assert max(map(len, lines)) <= WIDTH and lines[0].startswith("fill: share")


@pytest.mark.parametrize(
    ("number", "text"), [(999_999, "999,999"), (1_234_567, "1.23M"), (45_600_000_000, "45.6G")]
)
def test_numbers_are_short(number, text):
    assert count(number) == text
