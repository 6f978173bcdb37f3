"""Features of examples: from the cache to the batch, in every layout, and what is refused."""

import dataclasses
import functools
import itertools
import json
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xl_flax.data import shuffling
from xl_flax.data.build import read_examples
from xl_flax.data.features import (
    Example,
    FeatureSpec,
    check_example,
    from_json,
    size,
    spill,
    to_json,
)
from xl_flax.data.framing import Framer, join
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import read_manifest
from xl_flax.data.prepare import DatasetSpec, prepare
from xl_flax.data.stream import Rows, open_stream
from xl_flax.errors import UserError

SPECS = {
    "id": FeatureSpec("text", "string"),
    "label": FeatureSpec("example", labels=("no", "yes", "maybe")),
    "score": FeatureSpec("token", "float32"),
    "span": FeatureSpec("span"),
    "tag": FeatureSpec("token", labels=("A", "B")),
    "weight": FeatureSpec("example", "float32"),
}


def draw_examples(seed, count, num_texts, high=9):
    """Random examples with a feature of every kind; token t has the score t / 2."""
    rng, examples = np.random.default_rng(seed), []
    for number in range(count):
        sizes = rng.integers(1, high, num_texts)
        texts = tuple(rng.integers(4, 99, size).astype(np.int32) for size in sizes)
        first = int(rng.integers(-1, sizes[-1]))
        last = int(rng.integers(first, sizes[-1])) if first >= 0 else -1
        features = {
            "id": f"ñ{number}" * (number % 3),
            "label": int(rng.integers(-1, 3)),
            "score": tuple(text / 2 for text in texts),
            "span": (first, last),
            "tag": tuple(rng.integers(-1, 2, size) for size in sizes),
            "weight": float(number) / 4,
        }
        examples.append(Example(number, texts, features))
    return examples


def plain(value):
    """A feature or an example as lists."""
    if isinstance(value, Example):
        features = {key: plain(feature) for key, feature in value.features.items()}
        return value.number, plain(value.texts), features
    if isinstance(value, (tuple, list)):
        return [plain(each) for each in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def cached(cache, layout, split="train", task="xx"):
    folder = cache.folder(task, split, Layout.parse(layout))
    manifest = read_manifest(folder)
    return manifest, list(read_examples(folder, manifest))


def by_number(examples):
    return sorted(map(plain, examples), key=lambda example: example[0])


def languages_of(num_texts):
    return {"xx": ["xx"] * num_texts}


@pytest.mark.parametrize("num_texts", [1, 2])
@pytest.mark.parametrize("layout", ["64", "64-single", "32-cut", "32-single-window-3"])
def test_examples_survive_the_cache(make_cache, num_texts, layout):
    examples = draw_examples(0, 60, num_texts, 40 if num_texts == 1 else 20)
    languages = languages_of(num_texts)
    cache = make_cache({"xx": examples}, length=layout, languages=languages, features=SPECS)
    manifest, back = cached(cache, layout)
    assert manifest.features == SPECS and manifest.examples == 60 and not manifest.truncated
    lossless = manifest.lossless
    assert lossless == (layout.startswith("64"))
    expected, found = by_number(examples), by_number(back)
    for (n, texts, features), (m, other_texts, other_features) in zip(expected, found, strict=True):
        assert (n, texts) == (m, other_texts)
        if not lossless:  # a span may lie in no piece as a whole
            spans = features.pop("span"), other_features.pop("span")
            assert spans[1] in (spans[0], [-1, -1])
        assert features == other_features
    labels = [example.features["label"] for example in back]
    assert (manifest.cut > 0) == (not lossless) and labels != sorted(labels)


def check_batch(stream, batch, examples, pad_id=1):
    """Compares a batch with the examples that it says it holds; their numbers."""
    seen = []
    places = np.argwhere(batch["example"] >= 0)
    for row, place in places:
        example = examples[batch["example"][row, place]]
        features, k = example.features, stream.num_texts
        assert batch["label"][row, place] == features["label"]
        assert batch["weight"][row, place] == features["weight"]
        ids = batch["segment_ids"][row]
        parts = [ids == place * k + text + 1 for text in range(k)]
        tokens = [batch["tokens"][row][part][1:-1] for part in parts]
        for part, own in zip(parts, tokens, strict=True):
            assert batch["score"][row][part].tolist() == [0, *(own / 2), 0]
            assert batch["tag"][row][part][[0, -1]].tolist() == [-1, -1]
        first, last = batch["span"][row, place]
        if first >= 0:
            a, b = features["span"]
            expected = example.texts[-1][a : b + 1].tolist()
            assert batch["tokens"][row, first : last + 1].tolist() == expected
            assert parts[-1][first] and parts[-1][last]
        seen.append((example.number, int(batch["piece"][row, place])))
    empty = batch["segment_ids"] == 0
    assert not batch["score"][empty].any() and (batch["tag"][empty] == -1).all()
    for name in ("label", "piece"):
        assert (batch[name][batch["example"] < 0] == -1).all()
    assert not batch["weight"][batch["example"] < 0].any()
    return seen


@pytest.mark.parametrize("num_texts", [1, 2, 3])
@pytest.mark.parametrize("layout", ["64", "40-single", "40-window-2"])
def test_a_batch_holds_each_feature_beside_its_tokens(
    make_cache, tiny_vocabulary, opened, held_out, num_texts, layout
):
    examples = draw_examples(1, 70, num_texts, 60 if num_texts == 1 else 11)
    options = {"languages": languages_of(num_texts), "features": SPECS}
    cache = make_cache({"xx": examples}, length=layout, **options)
    manifest, _ = cached(cache, layout)
    at = Layout.parse(layout)
    rows = Rows("xx", at.length, packing=at.packing, too_long=at.too_long, stride=at.stride)
    stream = opened(rows, cache, 0, tiny_vocabulary)
    assert stream.features == SPECS and stream.examples_per_row == manifest.examples_per_row
    batch = stream.rows(range(manifest.rows))
    assert {"id", "language"}.isdisjoint(batch)
    assert {k: v.dtype for k, v in batch.items()} == {
        k: np.dtype(np.float32 if k in ("score", "weight") else np.int32) for k in batch
    }
    per_row = (manifest.rows, stream.examples_per_row)
    assert batch["label"].shape == batch["piece"].shape == per_row
    assert batch["span"].shape == (*per_row, 2) and batch["tag"].shape == (manifest.rows, at.length)
    seen = check_batch(stream, batch, examples)
    assert len(seen) == len(set(seen))
    dropped = manifest.dropped.get("too long", 0)
    assert len({number for number, _ in seen}) == manifest.examples == 70 - dropped
    if at.packing == "single":
        assert per_row[1] == 1
    make_cache({"xx": examples}, length=layout, split="test", **options)
    rows = held_out("xx", "test", layout, cache, tiny_vocabulary)
    batch = rows.rows(range(len(rows) + 3))
    assert batch["example"][-1].tolist() == [-1] * rows.examples_per_row
    numbers = [number for number, _ in check_batch(rows, batch, examples)]
    assert numbers == sorted(numbers)  # in order


def test_features_count_as_held(tmp_path):
    for example in (check_example("xx", e, SPECS) for e in draw_examples(0, 20, 2)):
        tokens = sum(map(len, example.texts))
        assert 4 * (size(example, SPECS) - tokens) == len(spill(example, SPECS))
    one = Example(0, (np.array([5]),), {"id": "x" * 4000})
    specs = {"id": SPECS["id"]}
    examples = shuffling.shuffled([one] * 3, tmp_path, 0, 900, specs)
    next(examples)
    assert list(tmp_path.iterdir())  # on disk, though there are but three tokens


@pytest.mark.parametrize("held", [10**6, 300])
def test_features_survive_a_shuffle_through_files(tmp_path, held):
    given_ = [check_example("t", e, SPECS) for e in draw_examples(2, 200, 2)]
    shuffled = list(shuffling.shuffled(iter(given_), tmp_path, 0, held, SPECS))
    assert [e.number for e in shuffled] != [e.number for e in given_]
    assert by_number(shuffled) == by_number(given_)
    assert not list(tmp_path.iterdir())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from(["cut", "window"]))
def test_pieces_hold_the_other_texts_whole_and_join_again(seed, num_texts, policy):
    stride = 3 if policy == "window" else 0
    specs = {"tag": SPECS["tag"], "label": SPECS["label"]}
    sizes = [*np.random.default_rng(seed).integers(1, 6, num_texts - 1), 50 + seed % 40]
    texts = tuple(np.arange(size) for size in sizes)
    features = {"label": 1, "tag": tuple(text % 2 for text in texts)}
    long = check_example("t", Example(7, texts, features), specs)
    layout = Layout(30, too_long=policy, stride=stride)
    special = types.SimpleNamespace(cls=0, sep=2)
    parts = Framer("t", layout, num_texts, specs, special).parts(long)
    assert len(parts) > 1 and all(part.size <= 30 for part in parts)
    assert [part.piece for part in parts] == [(7, i, len(parts)) for i in range(len(parts))]
    for part in parts:
        assert part.features["label"] == 1 and len(part.features["tag"]) == part.size
        others = [ids[1:-1].tolist() for ids in part.segments[:-1]]
        assert others == [text.tolist() for text in texts[:-1]]
    ends = [part.segments[-1][1:-1] for part in parts]
    for a, b in itertools.pairwise(ends):
        assert a[len(a) - stride :].tolist() == b[:stride].tolist()
        assert len(b) > stride
    (back,) = join(reversed(parts), stride, specs)
    assert plain(back) == plain(long)


def test_truncation_takes_from_the_longest_text_and_is_counted(make_cache):
    specs = {"tag": SPECS["tag"], "span": SPECS["span"]}

    def example(number, sizes, span):
        texts = tuple(np.arange(4, 4 + n) for n in sizes)
        return Example(number, texts, {"tag": tuple(t % 2 for t in texts), "span": span})

    examples = [
        example(0, (20, 3), (0, 2)),
        example(1, (15, 15), (4, 9)),
        example(2, (2, 9), (8, 8)),
    ]
    cache = make_cache(
        {"xx": examples},
        length="16-truncate",
        split="test",
        languages=languages_of(2),
        features=specs,
    )
    manifest, back = cached(cache, "16-truncate", "test")
    assert manifest.truncated == 2 and not manifest.dropped and not manifest.lossless
    assert [[len(text) for text in e.texts] for e in back] == [[9, 3], [6, 6], [2, 9]]
    assert [plain(e.features["span"]) for e in back] == [[0, 2], [-1, -1], [8, 8]]
    assert all(plain(e.features["tag"]) == [(t % 2).tolist() for t in e.texts] for e in back)


def test_rows_are_remade_in_other_layouts_as_long_as_nothing_is_lost(make_cache, tiny_vocabulary):
    specs = {"label": SPECS["label"], "tag": SPECS["tag"], "id": SPECS["id"]}
    examples = draw_examples(3, 50, 2, 12)
    cache = make_cache(
        {"xx": examples}, length="20-window-1", languages=languages_of(2), features=specs
    )
    cache = dataclasses.replace(cache, on_missing="build")
    before = by_number(cached(cache, "20-window-1")[1])
    for layout in ("40-single", "64", "18-cut", "128-truncate"):
        spec = DatasetSpec("xx", "train", Layout.parse(layout))
        # A flag that the cache command does not know: it is not run.
        prepare([spec], cache, tiny_vocabulary, ["--would=fail"])
        manifest, back = cached(cache, layout)
        assert manifest.repacked_from and by_number(back) == before
    for name in ("20-window-1", "40-single", "64", "18-cut", "128-truncate"):
        folder = cache.folder("xx", "train", Layout.parse(name))
        if name != "64":
            (folder / "manifest.json").unlink()
    # Those too long for 24 tokens are gone, as they are from 20, but not from 64.
    prepare([DatasetSpec("xx", "train", Layout(24))], cache, tiny_vocabulary, ["--would=fail"])
    assert cached(cache, "24")[0].dropped["too long"] > 0
    (cache.folder("xx", "train", Layout(64)) / "manifest.json").unlink()
    prepare([DatasetSpec("xx", "train", Layout(20))], cache, tiny_vocabulary, ["--would=fail"])
    with pytest.raises(UserError, match="building the cache failed"):
        prepare([DatasetSpec("xx", "train", Layout(64))], cache, tiny_vocabulary, ["--would=fail"])


def test_tasks_of_a_mixture_need_the_same_features(make_cache, tiny_vocabulary, opened):
    labels = FeatureSpec("example", labels=("no", "yes"))
    specs = {"a": {"label": SPECS["label"]}, "b": {"label": labels}, "c": {}}
    examples = [Example(0, (np.array([5, 6]),), {"label": 1})]
    mixtures = {"ab": {"a": 1, "b": 1}, "ac": {"a": 1, "c": 1}}
    cache = make_cache(dict.fromkeys("abc", examples), mixtures, features=specs)
    with pytest.raises(UserError, match=r"'label' is .*labels no, yes, maybe\) in 'a' and .*'b'"):
        opened(Rows("ab", 16), cache, 0, tiny_vocabulary)
    with pytest.raises(UserError, match=r"feature 'label' is of kind .* in 'a' and missing in 'c'"):
        opened(Rows("ac", 16), cache, 0, tiny_vocabulary)


def test_examples_of_several_texts_in_one_language_are_no_translations(make_cache):
    pair = (np.array([5]), np.arange(4, 34))
    cache = make_cache({"xx": [pair, pair]}, length=64, languages=languages_of(2))
    assert cached(cache, "64")[0].examples == 2
    cache = make_cache({"xx-yy": [pair, pair[::-1], pair[:1] * 2]}, length=64)
    assert cached(cache, "64", task="xx-yy")[0].dropped == {"length ratio": 2}


@pytest.mark.parametrize(("layout", "least"), [("20-cut", 16), ("20-window-3", 13)])
def test_windows_need_room_beside_the_other_texts(make_cache, layout, least):
    examples = [(np.arange(4, 4 + first), np.arange(4, 40)) for first in (least - 1, least)]
    make = functools.partial(make_cache, length=layout, split="test", languages=languages_of(2))
    manifest, (kept,) = cached(make({"xx": examples}), layout, "test")
    assert manifest.dropped == {"too long": 1} and manifest.examples == manifest.cut == 1
    assert plain(kept.texts) == plain(examples[0])
    with pytest.raises(UserError, match="'xx', split 'test', .*no example is left: too long 1"):
        make({"xx": examples[1:]})


def test_rows_need_room_for_every_text(make_cache):
    examples = [(np.arange(4, 20), np.arange(4, 40))]
    with pytest.raises(UserError, match=r"rows of 5 tokens have no room for 2 texts: raise"):
        make_cache({"xx": examples}, length="5", split="test", languages=languages_of(2))


def test_a_feature_survives_its_manifest():
    assert from_json(json.loads(json.dumps(to_json(SPECS)))) == SPECS
    with pytest.raises(UserError, match="kind 'label'"):
        FeatureSpec("label")


LAYOUTS = {
    "64": Layout(64),
    "64-single": Layout(64, "single"),
    "128-truncate": Layout(128, too_long="truncate"),
    "384-single-window-128": Layout(384, "single", "window", 128),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_known_by_its_name(name):
    assert str(LAYOUTS[name]) == name and Layout.parse(name) == LAYOUTS[name]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"packing": "tight"}, r"Rows.packing = 'tight': must be 'packed', 'single' or 'batch'"),
        ({"too_long": "split"}, r"Rows.too_long = 'split': must be 'cut', .* or None"),
        ({"stride": 3}, r"Rows.stride = 3 has no effect.*set Rows.too_long = 'window'"),
        ({"too_long": "window", "stride": 30}, r"Rows.stride = 30 leaves nothing new"),
        ({"length": 2}, r"Rows.length = 2: must be a whole number from 3 to 65535"),
    ],
)
def test_settings_of_rows_are_checked(settings, message):
    with pytest.raises(UserError, match=message):
        Rows("m", **({"length": 32} | settings))


@pytest.mark.parametrize("name", ["packed", "64-tight", "64-window-x", "64-packed", "064"])
def test_what_is_no_layout_is_refused(name):
    with pytest.raises(UserError, match="is no layout|must be 'cut'"):
        Layout.parse(name)


def test_a_run_knows_its_layout_and_old_runs_know_theirs():
    assert "layout" not in Rows("m", 64).description()
    assert Rows("m", 64, packing="single").description()["layout"] == "64-single"


def test_what_was_not_prepared_is_named(make_cache, tiny_vocabulary):
    cache = make_cache({"xx": [np.array([5])]})
    rows, other = Rows("xx", 16), Rows("xx", 16, packing="single")
    caches = prepare(rows.datasets, cache, tiny_vocabulary)
    assert list(caches) == rows.datasets and rows.datasets[0] in caches
    with pytest.raises(
        KeyError, match="xx:train:16-single was not prepared .there are xx:train:16"
    ):
        open_stream(other, caches, 0, tiny_vocabulary)
