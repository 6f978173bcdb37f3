import pytest

from xl_flax.text_table import WIDTH, count, fits, legend, shown, table


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


def test_columns_that_do_not_fit_follow_behind_the_first_again():
    rows = [("name", "a" * 40, "b" * 40, "c"), ("x", "1", "2", "3")]
    first, second = table(rows, in_blocks=True).split("\n\n")
    assert first.splitlines()[2].split() == ["x", "1"]
    assert second.splitlines()[0].split() == ["name", "b" * 40, "c"]
    assert table(rows).splitlines()[2].split() == ["x", "1", "2", "3"]
    wide = [("n" * 90, "a", "b"), ("x", "1", "2")]
    assert len(table(wide, in_blocks=True).split("\n\n")) == 2  # each with the first, all the same


def test_what_is_wide_or_long_does_not_fit():
    assert fits("x" * 80) and not fits("x" * 81) and not fits("x\n" * 50)


def test_long_tables_are_cut_and_say_where_they_are():
    long = "\n".join(map(str, range(100)))
    lines = shown(long, "runs/x/data-info.txt").split("\n")
    assert len(lines) == 46 and lines[-1] == "... and 55 more lines, see runs/x/data-info.txt"
    assert shown("short", "runs/x/data-info.txt") == "short"
