"""Parallel text through the cache command, and back from the stream."""

import re

import numpy as np
import pytest

from xl_flax.data.manifest import Cache
from xl_flax.data.stream import Rows
from xl_flax.errors import UserError


def decoded(vocabulary, batch, sides):
    """The groups of the rows of a batch as text, read from tokens, segments and positions."""
    found = []
    for tokens, ids, positions in zip(
        batch["tokens"], batch["segment_ids"], batch["positions"], strict=True
    ):
        texts = []
        for segment in range(1, ids.max() + 1):
            own = tokens[ids == segment]
            assert own[0] == 0 and own[-1] == 2
            assert positions[ids == segment].tolist() == list(range(len(own)))
            texts.append(vocabulary.decode(own[1:-1].tolist()))
        assert (tokens[ids == 0] == 1).all() and len(texts) % sides == 0
        found += ["|".join(texts[i : i + sides]) for i in range(0, len(texts), sides)]
    return found


@pytest.mark.parametrize("languages", ["xx-yy", "zz-xx-yy"])
def test_groups_come_back_from_the_stream_with_their_languages(
    project, pairs, capsys, languages, opened, held_out
):
    sides = languages.count("-") + 1
    lines = pairs(300, sides=sides)
    files = project.file(*lines), project.file(*lines[:40])
    project.define(project.add("pair", languages, train=files[0], validation=files[1]))
    project.run("pair:train:64", "--show=1", "--dataset=pair:validation:64")
    out = capsys.readouterr().out
    assert re.search(rf"pair \(({languages}|3 languages)\) +300 ", out)
    assert re.search(rf"pair, row 0 \[{languages}\]\n  1 {languages[:2]}: [a-p]+\n.*\n  1 ", out)
    stream = opened(Rows("pair", 64), project.cache, 0, project.vocabulary)
    manifest = project.manifest("pair", length=64)
    assert stream.num_texts == sides and stream.examples_per_row == manifest.examples_per_row
    assert stream.languages == tuple(sorted(languages.split("-")))
    batch = stream.rows(range(manifest.rows))
    assert sorted(decoded(project.vocabulary, batch, sides)) == sorted(lines)
    assert batch["segment_ids"].max() <= sides * stream.examples_per_row
    assert batch["languages"].dtype == np.int32 and batch["row_id"].tolist() == [
        *range(manifest.rows)
    ]
    names = [stream.languages.index(name) for name in languages.split("-")]
    assert batch["languages"].tolist() == [names] * manifest.rows
    rows = held_out("pair", "validation", 64, project.cache, project.vocabulary)
    assert (rows.num_texts, rows.examples_per_row > 0) == (sides, True)
    held_out = rows.rows(range(len(rows) + 2))
    assert decoded(project.vocabulary, held_out, sides) == lines[:40]  # in order
    assert held_out["languages"].shape == (len(rows) + 2, sides)
    assert held_out["row_id"].tolist() == [*range(len(rows)), -1, -1]


def test_unigrams_are_those_of_each_language(project, opened):
    project.define(
        project.add("one", "yy-xx", train=project.file("aab|cc", "a|cd")),
        project.add("two", "xx-zz", train=project.file("dd|eee")),
        'seqio.MixtureRegistry.add("both", ["one", "two"], default_rate=1.0)',
    )
    project.run("both:train:32")
    stream = opened(Rows("both", 32), project.cache, 0, project.vocabulary)
    counted = {
        language: {project.vocabulary.piece(i): int(n) for i, n in zip(*found, strict=True)}
        for language, found in stream.unigrams().items()
    }
    assert counted == {"xx": {"c": 3, "d": 3}, "yy": {"a": 3, "b": 1}, "zz": {"e": 3}}


def test_repacked_groups_stay_whole_and_what_was_lost_is_cached_anew(project, pairs, opened):
    lines = [*pairs(200), "abcdefghijklmnop|abcdefghijklmnop", "abcdefghi|abcdefghij"]
    project.define(project.add("pair", "xx-yy", train=project.file(*lines)))
    project.run("pair:train:48")
    build = Cache(project.cache.directory, project.cache.task_modules)
    opened(Rows("pair", 20), build, 0, project.vocabulary, ["--would=fail"])
    short = project.manifest("pair", length=20)
    assert short.repacked_from == "48" and short.dropped == {"too long": 2}
    assert sorted(project.texts("pair", length=20)) == sorted(lines[:200])
    assert short.examples_per_row < project.manifest("pair", length=48).examples_per_row
    opened(Rows("pair", 48), build, 0, project.vocabulary, ["--would=fail"])
    # The longest groups are not in these rows any more, so longer ones are not made from them.
    (project.folder("pair", "train", 48) / "manifest.json").unlink()
    with pytest.raises(UserError, match="building the cache failed"):
        opened(Rows("pair", 64), build, 0, project.vocabulary, ["--would=fail"])


BAD = {
    "mono and parallel": (
        [("one", "xx", "abc"), ("two", "xx-yy", "abc|d")],
        r"equally many texts in an example, but 'one' has 1, 'two' has 2",
    ),
    "pairs and rows of three": (
        [("one", "xx-yy", "abc|d"), ("two", "xx-yy-zz", "abc|d|e")],
        r"equally many texts in an example, but 'one' has 2, 'two' has 3",
    ),
    "nothing left": (
        [("one", "xx-yy", "abc|\na|abcdefghijklmnop\n|\nabcdefghijklmnop|abcdefghijklmnop")],
        r"'one', split 'train', language 'xx-yy': no example is left: empty text 2, length ratio "
        r"1, too long 1 were dropped",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_culprit_and_remedy(project, case):
    tasks, message = BAD[case]
    names = [name for name, _, _ in tasks]
    project.define(
        *(project.add(n, languages, train=project.file(text)) for n, languages, text in tasks),
        f'seqio.MixtureRegistry.add("both", {names}, default_rate=1.0)',
    )
    with pytest.raises(UserError, match=message):
        project.run("both:train:32")


def test_phases_of_a_stream_cannot_mix_mono_and_parallel_text(project, opened):
    project.define(
        project.add("pair", "xx-yy", train=project.file("abc|d")),
        project.add("mono", "xx", train=project.file("abc")),
    )
    project.run("pair:train:32", "--dataset=mono:train:32")
    with pytest.raises(UserError, match="'mono' has 1, 'pair' has 2"):
        opened(Rows([(0, "mono"), (8, "pair")], 32), project.cache, 0, project.vocabulary)
