"""What the cache command prints."""

import types

import numpy as np
import pytest

from xl_flax.data.features import Example, FeatureSpec
from xl_flax.data.layout import Layout
from xl_flax.data.prepare import DatasetSpec, prepare
from xl_flax.data.report import print_report, show_rows

SPECS = {
    "answer": FeatureSpec("span"),
    "id": FeatureSpec("text", "string"),
    "label": FeatureSpec("example", labels=("no", "yes")),
    "tag": FeatureSpec("token"),
}


@pytest.fixture
def spelling(tiny_vocabulary):
    """Decodes ids as their numbers."""
    return types.SimpleNamespace(
        **vars(tiny_vocabulary),
        decode=lambda ids: " ".join(map(str, ids)),
        piece=lambda i: f"p{i}",
    )


def test_rows_are_shown_with_all_features_and_windows(make_cache, tiny_vocabulary, spelling):
    question, text = np.array([5, 6]), np.arange(10, 24)
    features = {"answer": [9, 10], "id": "q-1", "label": 1, "tag": (question, text)}
    languages, layout = {"qa": ["xx", "xx"]}, "16-single-window-2"
    cache = make_cache(
        {"qa": [Example(0, (question, text), features)]},
        length=layout,
        languages=languages,
        features=SPECS,
    )
    spec = DatasetSpec("qa", "train", Layout.parse(layout))
    shown = show_rows([prepare([spec], cache, tiny_vocabulary)[spec]] * 2, spelling, 5).split("\n")
    first, second = " ".join(map(str, text[:10])), " ".join(map(str, text[8:]))
    assert shown == [
        "",
        "qa, row 0 [xx-xx]",
        "  1 xx: 5 6",
        "    in pieces: p0 p5 p6 p2",
        f"  1 xx (window 1 of 2): {first}  answer=-  id=q-1  label=yes  tag={first}",
        f"    in pieces: p0 {' '.join(f'p{i}' for i in text[:10])} p2",
        "",
        "qa, row 1 [xx-xx]",
        "  1 xx: 5 6",
        f"  1 xx (window 2 of 2): {second}  answer=19 20  id=q-1  label=yes  tag={second}",
    ]


def test_every_task_of_all_mixtures_is_shown(
    make_cache, random_examples, tiny_vocabulary, spelling
):
    tasks = {name: random_examples(i, 40) for i, name in enumerate(("xx", "yy", "zz"))}
    cache = make_cache(tasks, {"a": {"xx": 1, "yy": 1}, "b": {"xx": 1, "yy": 1, "zz": 1}})
    specs = [DatasetSpec(name, "train", Layout(16)) for name in "ab"]
    shown = show_rows(list(prepare(specs, cache, tiny_vocabulary).values()), spelling, 2)
    heads = [line for line in shown.split("\n") if ", row" in line]
    assert heads == [f"{name}, row {row} [{name}]" for name in tasks for row in (0, 1)]


def test_long_tables_go_to_a_file_and_the_console_says_where(
    make_cache, random_examples, tiny_vocabulary, capsys
):
    names = [f"a_task_whose_name_has_no_end_and_then_some_more_{i:03d}" for i in range(70)]
    cache = make_cache(
        {name: random_examples(0, 4, 3, 30) for name in names},
        {"all": dict.fromkeys(names, 1.0)},
        languages=dict.fromkeys(names, "xx"),
    )
    spec = DatasetSpec("all", "train", Layout(16))
    cached = prepare([spec], cache, tiny_vocabulary)[spec]
    print_report(cache, spec, cached, 10**9, new=True)
    out = capsys.readouterr().out
    assert max(map(len, out.split("\n")[:-3])) == 80 and len(out.split("\n")) < 70
    assert "more lines, see" in out
    path = out.split()[-1]
    table = open(path).read()
    assert all(name[-3:] + " (xx)" in table for name in names)
    assert "cut into pieces, as longer than a row" in table and "epochs: passes" in table
    print_report(cache, spec, cached, 10**9, new=False)
    again = capsys.readouterr().out
    assert "there already, see" in again and path in again and again.count("\n") <= 2
