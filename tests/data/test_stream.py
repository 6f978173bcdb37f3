import dataclasses
import itertools

import numpy as np
import pytest

from xl_flax.data import build
from xl_flax.data.layout import Layout
from xl_flax.data.mixing import Mixing, block_counts, block_pattern
from xl_flax.data.mixtures import read_mixture, write_mixture
from xl_flax.data.stream import Rows
from xl_flax.errors import UserError


def pick(stream, count, start=0):
    return stream.rows(range(start, start + count))


def test_rows_hold_the_examples_with_their_specials(
    make_cache, tiny_vocabulary, random_examples, opened
):
    examples = random_examples(0, 200)
    cache = make_cache({"xx": examples})
    stream = opened(Rows("xx", 16), cache, 0, tiny_vocabulary)
    batch = pick(stream, round(1 / stream.epochs(1)["xx"]))
    found = []
    for tokens, ids, positions in zip(
        batch["tokens"], batch["segment_ids"], batch["positions"], strict=True
    ):
        for segment in range(1, ids.max() + 1):
            ids_of = tokens[ids == segment]
            assert ids_of[0] == 0 and ids_of[-1] == 2
            assert positions[ids == segment].tolist() == list(range(len(ids_of)))
            found.append(ids_of[1:-1].tolist())
        assert (tokens[ids == 0] == 1).all()
    assert sorted(found) == sorted(e.tolist() for e in examples)


def test_the_index_alone_says_which_row(make_cache, tiny_vocabulary, random_examples, opened):
    cache = make_cache(
        {"xx": random_examples(0, 300), "yy": random_examples(1, 90)}, {"both": {"xx": 1, "yy": 2}}
    )
    rows = Rows([(0, "both"), (50, "xx"), (90, "both")], 16)
    whole = pick(opened(rows, cache, 0, tiny_vocabulary), 200)
    stream = opened(rows, cache, 0, tiny_vocabulary)
    # Backwards, in odd batches, from another instance: resuming is opening and asking.
    for first in reversed(range(0, 200, 25)):
        part = pick(stream, 25, first)
        for name, array in part.items():
            assert np.array_equal(array, whole[name][first : first + 25]), name
    other = pick(opened(rows, cache, 1, tiny_vocabulary), 200)
    assert not np.array_equal(other["tokens"], whole["tokens"])


def test_rates_over_a_long_stream_are_those_asked_for_across_phases():
    rng = np.random.default_rng(0)
    tasks = [f"t{i}" for i in range(20)]
    phases = [(0, rng.random(20) ** 3), (70_001, rng.random(20) ** 3), (123_456, np.eye(20)[3])]
    phases[0][1][5] = 0.0  # this one joins later
    mixing = Mixing(phases, 0, None, tasks)
    chosen = np.array([mixing[i][0] for i in range(130_000)])
    for (first, rates), last in zip(phases, [70_001, 123_456, 130_000], strict=True):
        shares = np.bincount(chosen[first:last], minlength=20) / (last - first)
        assert np.allclose(shares, rates / rates.sum(), atol=2e-4)
        # And any window of it is close, too.
        window = np.bincount(chosen[first + 1000 : first + 2000], minlength=20) / 1000
        assert np.allclose(window, rates / rates.sum(), atol=5e-3)
    assert np.array_equal(mixing.used(100_000), np.bincount(chosen[:100_000], minlength=20))


def test_each_task_is_read_without_gaps_or_repetitions_across_phases():
    phases = [(0, [0.2, 0.8]), (777, [1.0, 0.0]), (1500, [0.5, 0.5])]
    mixing = Mixing(phases, 3, None, ["a", "b"])
    taken = [mixing[i] for i in range(4000)]
    for task in range(2):
        positions = [p for t, p in taken if t == task]
        assert sorted(positions) == list(range(len(positions)))


def test_tiny_rates_are_not_rounded_away():
    counts = block_counts(np.array([1.0, 1e-3, 1e-9, 0.0]))
    assert counts[2] == 1 and counts[3] == 0
    assert counts[1] / counts.sum() == pytest.approx(1e-3, rel=1e-2)
    tasks, ranks = block_pattern(np.array([3, 0, 5]), [0])
    assert np.bincount(tasks).tolist() == [3, 0, 5]
    assert ranks[tasks == 2].tolist() == [0, 1, 2, 3, 4]


def test_max_epochs_is_exact_and_the_rest_keep_their_proportions():
    limits = np.array([100, 10_000, 10_000])
    mixing = Mixing([(0, [0.5, 0.3, 0.2])], 0, limits, ["small", "b", "c"])
    chosen = np.array([mixing[i][0] for i in range(5000)])
    assert (chosen == 0).sum() == 100
    after = chosen[np.flatnonzero(chosen == 0)[-1] + 1 :]
    assert (after == 1).mean() == pytest.approx(0.6, abs=2e-3)
    # A function of the index only: another instance asked in the middle agrees.
    assert Mixing([(0, [0.5, 0.3, 0.2])], 0, limits, ["s", "b", "c"])[4321] == mixing[4321]
    assert mixing.used(20_100).tolist() == [100, 10_000, 10_000]
    with pytest.raises(UserError, match=r"runs out of rows at row 20,100.*max_epochs"):
        mixing[20_100]


def test_a_run_that_needs_more_rows_than_max_epochs_gives_learns_it_early(
    make_cache, tiny_vocabulary, random_examples, opened
):
    cache = make_cache({"xx": random_examples(0, 100)})
    stream = opened(Rows("xx", 16, max_epochs=2), cache, 0, tiny_vocabulary)
    available = round(2 / stream.epochs(1)["xx"])
    assert stream.epochs(available)["xx"] == 2
    with pytest.raises(UserError, match="max_epochs"):
        stream.epochs(available + 1)


def test_rates_are_per_example_as_seqio_means_them(
    make_cache, tiny_vocabulary, random_examples, opened
):
    cache = make_cache(
        {"long": random_examples(0, 200, 10, 12), "short": random_examples(1, 200, 1, 3)},
        {"both": {"long": 1.0, "short": 1.0}},
    )
    stream = opened(Rows("both", 16), cache, 0, tiny_vocabulary)
    batch = pick(stream, 1000)
    segments = batch["segment_ids"].max(axis=1)
    examples = np.bincount(batch["languages"][:, 0], weights=segments)
    assert examples[0] == pytest.approx(examples[1], rel=0.03)


@pytest.mark.parametrize("exponent", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("packing", ["packed", "single"])
def test_rates_over_tokens_give_tokens_in_this_proportion(
    make_cache, tiny_vocabulary, random_examples, opened, exponent, packing
):
    """Whatever the lengths of the examples, and however full the rows are."""
    texts = {"a": random_examples(0, 800, 1, 8), "b": random_examples(1, 40, 20, 60)}
    rows = Rows("both", 64, packing=packing)
    cache = make_cache(texts, {"both": {"a": 1, "b": 1}}, length=rows.layout)
    mixture = read_mixture(cache, "both", "train")
    write_mixture(cache, "train", dataclasses.replace(mixture, exponent=exponent))
    batch = pick(opened(rows, cache, 0, tiny_vocabulary), 4000)
    tokens = np.bincount(batch["languages"][:, 0], (batch["segment_ids"] > 0).sum(axis=1))
    sizes = [sum(len(text) + 2 for text in texts[task]) for task in texts]
    assert tokens[0] / tokens[1] == pytest.approx((sizes[0] / sizes[1]) ** exponent, rel=0.03)


def test_equal_tasks_are_not_visited_in_lockstep(make_cache, tiny_vocabulary, opened):
    # Row i of every task says i: aligned corpora, cached in the same order.
    rows = [np.array([4 + i // 80, 4 + i % 80] + [9] * 8) for i in range(400)]
    names = ["aa", "bb", "cc", "dd"]
    cache = make_cache(dict.fromkeys(names, rows), {"all": dict.fromkeys(names, 1.0)}, length=12)
    stream = opened(Rows("all", 12), cache, 0, tiny_vocabulary)
    batch = pick(stream, 1600)
    said = (batch["tokens"][:, 1] - 4) * 80 + batch["tokens"][:, 2] - 4
    order = {t: said[batch["languages"][:, 0] == i][:390] for i, t in enumerate(stream.tasks)}
    for a, b in itertools.combinations(names, 2):
        assert np.mean(order[a] == order[b]) < 0.02
        assert abs(np.corrcoef(order[a], order[b])[0, 1]) < 0.2
    # Nor do translations come close to each other in the stream.
    near = [len(set(window)) for window in said.reshape(-1, 32)]
    assert np.mean(near) > 29


def test_epochs_differ_in_order_and_cover_the_task(
    make_cache, tiny_vocabulary, random_examples, opened
):
    cache = make_cache({"xx": random_examples(0, 200)})
    stream = opened(Rows("xx", 16), cache, 0, tiny_vocabulary)
    n = round(1 / stream.epochs(1)["xx"])
    first, second = (pick(stream, n, k * n)["tokens"] for k in range(2))
    assert not np.array_equal(first, second)
    assert sorted(map(tuple, first)) == sorted(map(tuple, second))


def test_held_out_rows_come_in_order_and_end_in_padding(
    make_cache, tiny_vocabulary, random_examples, read_back, held_out
):
    tasks = {"xx": random_examples(0, 30, 0), "yy": random_examples(1, 20, 1, 60)}
    cache = make_cache(tasks, {"both": {"xx": 1, "yy": 1}}, split="test", languages={"yy": "aa"})
    for task, examples in tasks.items():
        back = read_back(cache, task, "test", 16)
        assert back == [[e.tolist()] for e in examples]
    rows = held_out("both", "test", 16, cache, tiny_vocabulary, rows_per_task=3)
    assert len(rows) == 6 and rows.languages == ("aa", "xx")
    batch = rows.rows(range(8))
    assert batch["row_id"].tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert batch["languages"][:, 0].tolist()[:6] == [1, 1, 1, 0, 0, 0]
    assert not batch["segment_ids"][6:].any() and (batch["tokens"][6:] == 1).all()
    named = held_out("both", "test", 16, cache, tiny_vocabulary, languages=("zz", "xx", "aa"))
    assert named.rows([0])["languages"].tolist() == [[1]]


@pytest.mark.parametrize("split", ["train", "test"])
def test_repacking_keeps_every_example_whole(make_cache, random_examples, read_back, split):
    examples = random_examples(0, 300, 0, 70)
    cache = dataclasses.replace(make_cache({"xx": examples}, split=split), on_missing="build")
    for length in (48, 10, 100):
        back = read_back(cache, "xx", split, length)
        kept = [[e.tolist()] for e in examples if len(e) or split != "train"]
        assert (back == kept) if split == "test" else (sorted(back) == sorted(kept))
        manifest = build.read_manifest(cache.folder("xx", split, Layout(length)))
        assert manifest.repacked_from and manifest.layout == Layout(length)


def test_unigrams_count_the_tokens_of_a_language(
    make_cache, tiny_vocabulary, random_examples, opened
):
    a, b, c = (random_examples(i, 50, 1, 40) for i in range(3))
    cache = make_cache(
        {"a": a, "b": b, "c": c},
        {"all": {"a": 1, "b": 1, "c": 1}},
        languages={"a": "xx", "b": "yy", "c": "xx"},
    )
    stream = opened(Rows("all", 16), cache, 0, tiny_vocabulary)
    assert stream.languages == ("xx", "yy")
    ids, counts = stream.unigrams()["xx"]
    expected = np.bincount(np.concatenate([*a, *c]), minlength=100)
    assert ids.tolist() == np.flatnonzero(expected).tolist()
    assert counts.tolist() == expected[ids].tolist()
    assert "yy" in stream.table(100)


@pytest.mark.parametrize("phases", [[(1, "xx")], [(0, "xx"), (0, "xx")], []])
def test_phases_must_begin_at_zero_and_ascend(phases):
    with pytest.raises(UserError, match="begin at row 0 and ascend"):
        Rows(phases, 16)


def test_reading_does_not_import_tensorflow():
    import subprocess
    import sys

    code = (
        "import sys, xl_flax.data.stream, xl_flax.data.batches, xl_flax.data.required\n"
        "print([m for m in ('tensorflow', 'seqio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
