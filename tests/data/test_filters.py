"""What the cache command leaves out of train splits, counts, and notices when it changes."""

import pytest

from xl_flax import cli
from xl_flax.data.filtering import Filter
from xl_flax.data.manifest import Cache
from xl_flax.data.mixtures import read_mixture
from xl_flax.data.stream import Rows
from xl_flax.errors import UserError

CRAFTED = [
    "abc|cba",
    "|abc",  # empty sides
    "abc|",
    "|",
    "abc|cba",  # a duplicate
    "abc|cbb",  # equal on one side only
    "a|abcdefghijklm",  # 1 + 5 to 13 + 5: exactly 3, which is kept
    "a|abcdefghijklmn",  # beyond it
    "abcdefghijklmnop|abcdefghijklm",  # 33 tokens with their specials: too long
    "abcdefghijklmno|abcdefghijklm",  # 32
    "aaa|mmm",  # on one side in the test split of "held_out"
    "ppp|ooo",
]


def test_what_is_dropped_is_counted_by_its_reason(project, capsys):
    file = project.file(*CRAFTED)
    project.define(
        project.add("pair", "xx-yy", train=file, test=file),
        project.add(
            "held_out", "xx-yy", train=project.file("ppp|ooo"), test=project.file("ooo|mmm")
        ),
    )
    project.run("pair:train:32", "--gin.Filter.exclude=['held_out']", "--dataset=pair:test:32")
    manifest = project.manifest("pair")
    assert manifest.dropped == {
        "empty text": 3,
        "length ratio": 1,
        "excluded": 2,
        "duplicate": 1,
        "too long": 1,
    }
    assert manifest.examples == 4
    assert sorted(project.texts("pair")) == sorted(CRAFTED[i] for i in (0, 5, 6, 9))
    out = " ".join(capsys.readouterr().out.split())
    assert "duplicate 1, empty text 3, excluded 2, length ratio 1, too long 1" in out
    # Splits that are not trained on lose only what cannot be a group in a row.
    assert project.manifest("pair", "test").dropped == {"empty text": 3, "too long": 1}
    assert project.texts("pair", "test") == [CRAFTED[i] for i in (0, 4, 5, 6, 7, 9, 10, 11)]


def test_filters_can_be_loosened(project):
    project.define(project.add("pair", "xx-yy", train=project.file(*CRAFTED)))
    project.run("pair:train:32", "--gin.Filter.deduplicate=False", "--gin.Filter.max_ratio=100.0")
    assert project.manifest("pair").dropped == {"empty text": 3, "too long": 1}


def test_text_of_a_named_evaluation_never_trains(project, pairs):
    """Monolingual or parallel, named as a task or as a mixture, whichever side it stands on."""
    evaluation, other = pairs(30, 1), pairs(200, 2)
    halves = [[line.split("|")[side] for line in evaluation] for side in range(2)]
    mono = [line.split("|")[1] for line in other]
    project.define(
        project.add("pair", "xx-yy", train=project.file(*other, *evaluation)),
        # The same sentences with other translations, and on the other side.
        project.add(
            "turned", "xx-yy", train=project.file(*other[:9], *(f"{t}|abcd" for t in halves[1]))
        ),
        project.add("mono", "xx", train=project.file(*mono, *halves[0], *mono)),
        project.add("eval_xx", "xx", test=project.file(*halves[0])),
        project.add(
            "eval_yy", "yy", validation=project.file(*halves[1]), train=project.file(*mono)
        ),
        'seqio.MixtureRegistry.add("eval", ["eval_xx", "eval_yy"], default_rate=1.0)',
    )
    datasets = [f"--dataset={task}:train:32" for task in ("turned", "mono")]
    project.run("pair:train:32", *datasets)
    assert len(project.texts("pair")) == 230
    project.run("pair:train:32", *datasets, "--gin.Filter.exclude=['eval']")
    banned = {*halves[0], *halves[1]}
    for task in ("pair", "turned", "mono"):
        sides = {side for text in project.texts(task) for side in text.split("|")}
        assert not sides & banned, task
        assert project.manifest(task).dropped["excluded"] >= 30
    assert sorted(project.texts("pair")) == sorted(x for x in other if not banned & {*x.split("|")})
    kept = [text for text in mono if text not in banned]
    assert sorted(project.texts("mono")) == sorted(kept * 2)  # mono text is not deduplicated


def test_a_changed_filter_is_noticed_without_tensorflow(project, pairs, monkeypatch, opened):
    lines = pairs(50)
    project.define(
        project.add("pair", "xx-yy", train=project.file(*lines), test=project.file("ab|cd")),
        project.add("mono", "xx", train=project.file("abc", "d")),
    )
    for need in ("pair:train:32", "pair:test:32", "mono:train:32"):
        project.run(need)

    def read(mixture, split="train", **settings):
        cache = Cache(
            project.cache.directory,
            project.cache.task_modules,
            on_missing="stop",
            filter=Filter(**settings),
        )
        return opened(Rows(mixture, 32, split), cache, 0, project.vocabulary)

    for task, split in (("pair", "train"), ("pair", "test"), ("mono", "train")):
        read(task, split)
    with pytest.raises(UserError, match=r"Filter.max_ratio changed from 3.0 to 2.0"):
        read("pair", max_ratio=2.0)
    with pytest.raises(UserError, match=r"Filter.deduplicate changed from True to False"):
        read("pair", deduplicate=False)
    with pytest.raises(UserError, match=r"Filter.exclude changed from \[\] to \['pair'\]"):
        read("mono", exclude=["pair"])
    with pytest.raises(UserError, match=r"Filter.exclude_languages changed from \[\] to \['yy'\]"):
        read("pair", exclude_languages=["yy"])
    # What a filter does not touch stays fresh.
    read("mono", max_ratio=2.0, deduplicate=False)
    read("pair", "test", max_ratio=2.0, exclude=["mono"], exclude_languages=["xx"])


def test_changed_text_of_an_excluded_set_makes_training_text_stale(project, opened):
    held_out = project.file("abc|abd")
    project.define(
        project.add("pair", "xx-yy", train=project.file("abc|cba", "ddd|eee", "fff|ggg")),
        project.add("eval", "xx-yy", test=held_out),
    )
    project.run("pair:train:32", "--gin.Filter.exclude=['eval']")
    assert project.manifest("pair").dropped == {"excluded": 1}
    open(held_out, "a").write("hhh|ggg\n")
    cache = Cache(
        project.cache.directory, ["x"], on_missing="stop", filter=Filter(exclude=["eval"])
    )
    with pytest.raises(UserError, match=f"source file {held_out} changed"):
        opened(Rows("pair", 32), cache, 0, project.vocabulary)
    project.run("pair:train:32", "--gin.Filter.exclude=['eval']")
    assert project.manifest("pair").dropped == {"excluded": 2}


def test_tasks_of_excluded_languages_leave_every_mixture(project, pairs):
    project.define(
        project.add("xx_yy", "xx-yy", train=project.file(*pairs(20, 1)), test=project.file("a|b")),
        project.add("xx_zz", "xx-zz", train=project.file(*pairs(20, 2)), test=project.file("a|b")),
        'seqio.MixtureRegistry.add("all", ["xx_yy", "xx_zz"], default_rate=1.0)',
    )
    without = "--gin.Filter.exclude_languages=['zz']"
    project.run("all:train:32", without, "--dataset=all:test:32")
    assert read_mixture(project.cache, "all", "train").rates == {"xx_yy": 1.0}
    assert set(read_mixture(project.cache, "all", "test").rates) == {"xx_yy", "xx_zz"}
    with pytest.raises(UserError, match=r"'xx_zz' \(train\) has no task left.*\['zz'\]"):
        project.run("xx_zz:train:32", without)
    with pytest.raises(UserError, match=r"'all' \(train\) has no task left"):
        project.run("all:train:32", "--gin.Filter.exclude_languages=['xx']")


def test_an_excluded_set_must_exist_and_have_something_to_exclude(project):
    project.define(project.add("pair", "xx-yy", train=project.file("abc|d")))
    with pytest.raises(UserError, match="no task or mixture is called 'pear'; did you mean 'pair'"):
        project.run("pair:train:32", "--gin.Filter.exclude=['pear']")
    with pytest.raises(UserError, match="'pair' has no split but 'train' to exclude"):
        project.run("pair:train:32", "--gin.Filter.exclude=['pair']")
    with pytest.raises(UserError, match=r"Filter.exclude = 'pair': must be a list"):
        Filter(exclude="pair")


def test_the_filter_is_passed_on_to_the_process_that_builds(project, monkeypatch, opened):
    from xl_flax.data import prepare

    project.define(project.add("pair", "xx-yy", train=project.file(*CRAFTED)))
    rules = Filter(max_ratio=2.0, deduplicate=False, exclude_languages=["zz"])
    cache = Cache(project.cache.directory, project.cache.task_modules, filter=rules)
    said = []

    def stands_in(command, **_):
        said.extend(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare.subprocess, "Popen", stands_in)
    with pytest.raises(KeyboardInterrupt):
        opened(Rows("pair", 32), cache, 0, project.vocabulary)
    cli.load_gin([], [flag.removeprefix("--gin.") for flag in said if "Filter" in flag])
    assert Filter() == rules
