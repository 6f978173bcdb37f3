import itertools
import types

import numpy as np
import pytest
from fake_context import FakeContext
from hypothesis import given, settings
from hypothesis import strategies as st

from xl_flax.errors import UserError
from xl_flax.evaluation import mining
from xl_flax.evaluation.mining import (
    BitextMining,
    Half,
    evaluate_pairs,
    halves,
    mine,
    tune_threshold,
)
from xl_flax.evaluation.search import unit
from xl_flax.models.config import EncoderConfig


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def mined_by_hand(x, y, k):
    """As LASER's source reads, with loops and the whole matrix."""
    cos = x @ y.T
    near_x, near_y = np.argsort(-cos, axis=1)[:, :k], np.argsort(-cos, axis=0)[:k].T
    mean_x = [np.mean([cos[i, j] for j in near_x[i]]) for i in range(len(x))]
    mean_y = [np.mean([cos[i, j] for i in near_y[j]]) for j in range(len(y))]
    margin = lambda i, j: cos[i, j] / ((mean_x[i] + mean_y[j]) / 2)  # noqa: E731
    proposals = [max((margin(i, j), i, j) for j in near_x[i]) for i in range(len(x))]
    proposals += [max((margin(i, j), i, j) for i in near_y[j]) for j in range(len(y))]
    pairs, seen_x, seen_y = [], set(), set()
    for _, i, j in sorted(proposals, reverse=True):
        if i not in seen_x and j not in seen_y:
            seen_x.add(i), seen_y.add(j)
            pairs.append((i, j))
    return pairs


@settings(max_examples=30, deadline=None)
@given(n=st.integers(4, 50), m=st.integers(4, 50), noise=st.floats(0.1, 1.5), k=st.integers(1, 4))
def test_mined_pairs_are_those_of_the_whole_matrix(n, m, noise, k):
    x = normal(n, n, 8) + 0.7
    y = np.resize(x, (m, 8)) + noise * normal(100 + m, m, 8)
    x, y = unit(x), unit(y)
    found = mine(x, y, k)
    assert set(zip(found.x.tolist(), found.y.tolist(), strict=True)) == set(mined_by_hand(x, y, k))
    assert (np.diff(found.score) <= 0).all()
    assert len(set(found.x)) == len(set(found.y)) == len(found.x)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30),
    st.integers(0, 5),
)
def test_the_threshold_is_the_best_of_all(pairs, missed):
    pairs.sort(key=lambda pair: -pair[0])
    score = np.array([s for s, _ in pairs], float)
    right = np.array([r for _, r in pairs])
    gold = int(right.sum()) + missed + 1
    best = max(evaluate_pairs(right[score >= t], gold).f1 for t in score)
    threshold = tune_threshold(score, right, gold)
    assert evaluate_pairs(right[score >= threshold], gold).f1 == pytest.approx(best)


def test_precision_recall_and_f1_by_hand():
    right = np.array([True, True, False, True, False])
    assert evaluate_pairs(right, 6) == pytest.approx((3 / 5, 3 / 6, 2 * 0.3 / 1.1))
    assert evaluate_pairs(right[:0], 6) == (0, 0, 0)
    assert evaluate_pairs(np.array([False]), 6) == (0, 0, 0)


def test_the_threshold_lies_midway_below_the_last_accepted_score():
    score, right = np.array([1.5, 1.3, 1.1, 0.9]), np.array([True, True, False, False])
    assert tune_threshold(score, right, 2) == pytest.approx(1.2)
    assert tune_threshold(score, np.array([True] * 4), 4) == 0.9


def test_halves_are_what_they_say_and_depend_on_nothing_but_the_number():
    n, gold = 4000, 0.3
    dev, test = halves(np.ones(n, bool), gold)
    parts = [set(dev.x) | set(dev.y), set(test.x) | set(test.y)]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == n
    for half, part in zip((dev, test), parts, strict=True):
        assert len(part) == pytest.approx(n / 2, rel=0.1)
        assert half.gold == pytest.approx(gold * n / 2, rel=0.15)
        assert len(half.x) == pytest.approx(len(half.y), rel=0.1)
    shorter = halves(np.ones(100, bool), gold)
    for whole, start in zip((dev, test), shorter, strict=True):
        assert whole.x[whole.x < 100].tolist() == start.x.tolist()
    kept = np.arange(n) % 3 > 0
    fewer, _ = halves(kept, gold)
    assert fewer.y.tolist() == [i for i in dev.y if kept[i]]


def score(vectors, dev, test):
    both = vectors["a"], vectors["b"]
    numbers = mining.score_pair(("a", "b"), (dev, test), both, False)
    return {number.metric: number._asdict() for number in numbers}


def test_a_small_case_by_hand():
    # Numbers 0-5 are the dev half, 10-15 the test half; on test, 15 of b is a copy of 10 of a's
    # translation's neighbour, so that a wrong pair gets a score.
    base = np.eye(20, 12, dtype=np.float32) + 0.2
    base[10:16] = base[:6]
    a, b = base.copy(), base.copy()
    dev = Half(np.array([0, 1, 2, 3, 4]), np.array([0, 1, 2, 3, 5]))  # 4 gold; 4 and 5 alone
    test = Half(np.array([10, 11, 12, 13, 14]), np.array([10, 11, 12, 13, 15]))
    found = score({"a": a, "b": b}, dev, test)
    assert found["dev_f1"]["value"] == 1.0 and found["dev_f1"]["n"] == 4
    assert found["precision"]["value"] == found["recall"]["value"] == 1.0
    b[13] = base[4]  # now the distractor 14 of a finds 13 of b, as good as a translation
    found = score({"a": a, "b": b}, dev, test)
    assert found["precision"]["value"] == pytest.approx(3 / 4)
    assert found["recall"]["value"] == pytest.approx(3 / 4)
    assert found["f1"]["value"] == pytest.approx(3 / 4)
    assert found["dev_f1"]["value"] == 1.0


def test_the_threshold_is_tuned_on_dev_only():
    x = normal(0, 400, 16) + 0.5
    y = x + 0.5 * normal(1, 400, 16)
    dev, test = halves(np.ones(400, bool), 0.5)
    before = score({"a": x, "b": y}, dev, test)
    y = y.copy()
    gone = np.setdiff1d(test.y, dev.y)
    y[gone] = normal(2, len(gone), 16)
    after = score({"a": x, "b": y}, dev, test)
    assert after["threshold"] == before["threshold"] and after["dev_f1"] == before["dev_f1"]
    assert after["f1"]["value"] < 0.1 < before["f1"]["value"]


def collections(examples, **settings):
    evaluation = BitextMining("m", **settings)
    return evaluation._halves(evaluation.datasets[0], FakeContext(examples))


def sentences(n, seed=0):
    return list(np.random.default_rng(seed).integers(5, 1000, (n, 6)))


def test_empty_and_repeated_sentences_are_left_out_and_counted(capsys):
    eng, deu, fra = sentences(300), sentences(300, 1), sentences(300, 2)
    deu[7], deu[200] = deu[7][:0], deu[100]
    found = collections({"deu": deu, "eng": eng, "fra": fra})
    used = lambda pair: set(itertools.chain(*(np.union1d(h.x, h.y) for h in found[pair])))  # noqa: E731
    assert used(("deu", "eng")) == set(range(300)) - {7, 200}
    assert used(("eng", "fra")) == set(range(300))
    out = capsys.readouterr().out
    assert "m, deu-eng: 2 empty or repeated" in out and "eng-fra" not in out


def test_a_pivot_chooses_pairs():
    three = {name: sentences(100, i) for i, name in enumerate(("deu", "eng", "fra"))}
    assert list(collections(three, pivot="eng")) == [("deu", "eng"), ("eng", "fra")]
    assert len(collections(three)) == 3
    assert list(collections(three, languages=["fra", "deu"])) == [("deu", "fra")]
    with pytest.raises(UserError, match="'spa' is no language of m: deu, eng, fra"):
        collections(three, pivot="spa")


@pytest.mark.parametrize(
    "n, gold, message",
    [
        (4, 0.5, "m, deu-eng: the dev half has . and . sentences; mining takes 4 or more|no sent"),
        (60, 0.0001, "m, deu-eng: no sentence of the dev half has its translation present"),
    ],
)
def test_too_little_to_mine_is_an_error(n, gold, message):
    with pytest.raises(UserError, match=message):
        collections({"deu": sentences(n), "eng": sentences(n, 1)}, gold=gold)


def test_signatures_differ_where_any_setting_does():
    config = EncoderConfig(
        vocab_size=50, num_layers=2, width=16, num_heads=2, mlp_width=32, max_positions=64
    )
    description = types.SimpleNamespace(encoder=config, heads={"sentence": {}})
    settings = [
        {}, {"mixture": "other"}, {"gold": 0.6}, {"pivot": "eng"}, {"center": True},
        {"layers": [1]}, {"pooling": "cls"}, {"head": "sentence"}, {"length": 32},
    ]  # fmt: skip
    context = FakeContext({"deu": sentences(100), "eng": sentences(100, 1)})
    made = [
        BitextMining(**{"mixture": "m", "layers": [2]} | changed).signatures(description, context)
        for changed in settings
    ]
    assert len({sign for (sign,) in made}) == len(settings)


def test_pieces_in_common_and_lengths_mine_without_a_model():
    config = EncoderConfig(
        vocab_size=50, num_layers=2, width=16, num_heads=2, mlp_width=32, max_positions=64
    )
    description = types.SimpleNamespace(encoder=config, heads={})
    eng = sentences(100)
    context = FakeContext({"deu": [s + 1 for s in eng], "eng": eng, "fra": [s[::-1] for s in eng]})
    for center in (False, True):
        evaluation = BitextMining("m", pivot="eng", center=center)
        by_name = {b.name: b for b in evaluation.baselines(description, context)}
        assert list(by_name) == ["tf-idf", "length"]
        made = by_name["tf-idf"].measure()
        f1 = {r.languages: r.value for r in made if r.metric == "f1"}
        assert f1["eng", "fra"] > 0.9 and f1["deu", "eng"] < 0.5
        (sign,) = by_name["tf-idf"].signatures
        assert {(r.signature, r.model, r.layer) for r in made} == {(sign, "tf-idf", None)}
        assert "|length:64|model:tf-idf#v|" in sign and "center" not in sign
        assert {r.model for r in by_name["length"].measure()} == {"length"}


def test_nothing_but_empty_sentences_is_an_error():
    empty = [np.zeros(0, int)] * 60
    with pytest.raises(UserError, match="no sentence of the dev half"):
        collections({"deu": empty, "eng": sentences(60)})
