from xl_flax.text_table import fits, table

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
