"""The contrastive losses against sentence-transformers and against direct formulas."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xl_flax.data.stream import Rows
from xl_flax.errors import UserError
from xl_flax.objectives.base import Inputs
from xl_flax.objectives.contrastive import Contrastive

W, SCALE = 8, 7.0


def objective(**settings):
    return Contrastive(rows=Rows("pairs", 64), batch_size=6, **{"scale": SCALE} | settings)


def stream(sides=2, groups=3, languages=("de", "en", "fi", "sw")):
    return types.SimpleNamespace(
        num_texts=sides, examples_per_row=groups, tasks=("pairs",), languages=languages, features={}
    )


def raw_vectors(batch, sides, groups=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(len(batch["row_id"]), groups * sides, W)).astype(np.float32)


def normalised(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def evaluate(vectors, batch, sides=2, log_scale=None, bias=0.0, learnt=(), **settings):
    """Mean loss, sums, and gradients of the mean in raw vectors and learnt numbers."""
    contrastive = objective(**settings)
    rows = stream(sides)
    contrastive.check(rows)
    buffers = contrastive.buffers(None, rows, rows.languages)

    def loss(vectors, learnt):
        learnt = {"log_scale": log_scale, "bias": jnp.asarray(bias)} | learnt
        head = types.SimpleNamespace(**learnt)
        model = types.SimpleNamespace(heads={"contrastive": head})
        vectors /= jnp.linalg.norm(vectors, axis=-1, keepdims=True)
        total, sums, _ = contrastive.loss(
            model, batch, Inputs(None, rows, buffers, encoded=vectors)
        )
        return total / sums["count"], sums | {"loss": total}

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (mean, sums), grads = run(vectors, dict(learnt))
    return jax.device_get((mean, sums, *grads))


def sides_of(vectors, batch, sides):
    """Vectors [groups of the whole batch, K, W], those that exist."""
    count = batch["segment_ids"].max(axis=1)
    return np.concatenate(
        [v[:c].reshape(-1, sides, W) for v, c in zip(vectors, count, strict=True)]
    )


def log_sum_exp(s):
    return np.log(np.exp(s).sum())


def softmax_loss(x, y, counts=None, margin=0.0, decoupled=False):
    """Both directions by brute force; counts[i, j] says which j is a negative of i."""
    s = SCALE * normalised(x.astype(np.float64)) @ normalised(y.astype(np.float64)).T
    counts = ~np.eye(len(x), dtype=bool) if counts is None else counts
    losses = []
    anchors = zip((*s, *s.T), (*counts, *counts.T), 2 * list(np.diag(s)), strict=True)
    for similarity, negative, positive in anchors:
        positive -= SCALE * margin
        chosen = similarity[negative]
        if not decoupled:
            chosen = np.append(chosen, positive)
        losses.append(log_sum_exp(chosen) - positive)
    return np.mean(losses)


@pytest.fixture
def pairs(parallel_rows):
    batch, _ = parallel_rows([3] * 6, words=(4, 6))
    return batch, raw_vectors(batch, 2)


# ---- sentence-transformers


@pytest.fixture(scope="module")
def losses():
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses

    return losses


@pytest.fixture(scope="module")
def theirs(losses):
    """theirs(columns, cached) -> their loss and its gradient in each column of raw vectors."""
    import torch

    class Table(torch.nn.Module):
        """A model whose sentences are numbers, and their vectors a table's rows."""

        def __init__(self, table):
            super().__init__()
            self.table = torch.nn.Parameter(table)

        def __getitem__(self, i):
            return self

        def forward(self, features):
            return {"sentence_embedding": self.table[features["input_ids"][:, 0]]}

    def run(columns, cached=False, **kwargs):
        table = Table(torch.tensor(np.concatenate(columns)))
        if cached:
            name, kwargs = "CachedMultipleNegativesRankingLoss", {"mini_batch_size": 4} | kwargs
        else:
            name = "MultipleNegativesRankingLoss"
        loss = getattr(losses, name)(table, scale=SCALE, **kwargs)
        ids = torch.arange(len(table.table)).reshape(len(columns), -1, 1)
        features = [{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in ids]
        value = loss(features, torch.zeros(len(ids[0])))
        value.backward()
        return value.item(), table.table.grad.numpy().reshape(len(columns), -1, W)

    return run


@pytest.mark.parametrize("cached", [False, True])
def test_equals_sentence_transformers(pairs, theirs, cached):
    batch, vectors = pairs
    x, y = np.moveaxis(sides_of(vectors, batch, 2), 1, 0)
    loss, _, d_vectors, _ = evaluate(vectors, batch)
    there, back = theirs([x, y], cached), theirs([y, x], cached)
    np.testing.assert_allclose(loss, (there[0] + back[0]) / 2, rtol=1e-5)
    gradient = (there[1] + back[1][::-1]) / 2
    np.testing.assert_allclose(
        np.moveaxis(sides_of(d_vectors, batch, 2), 1, 0), gradient, rtol=1e-4, atol=1e-6
    )
    both = theirs(
        [x, y], cached, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )
    np.testing.assert_allclose(loss, both[0], rtol=1e-5)


@pytest.mark.parametrize("cached", [False, True])
def test_hard_negatives_are_a_third_column(parallel_rows, theirs, cached):
    batch, _ = parallel_rows([3] * 6, sides=3, words=(4, 6))
    vectors = raw_vectors(batch, 3)
    x, y, hard = np.moveaxis(sides_of(vectors, batch, 3), 1, 0)
    loss, sums, d_vectors, _ = evaluate(vectors, batch, 3, hard_negatives=1)
    there, back = theirs([x, y, hard], cached), theirs([y, x], cached)
    np.testing.assert_allclose(loss, (there[0] + back[0]) / 2, rtol=1e-5)
    gradient = there[1] / 2
    gradient[:2] += back[1][::-1] / 2
    np.testing.assert_allclose(
        np.moveaxis(sides_of(d_vectors, batch, 3), 1, 0), gradient, rtol=1e-4, atol=1e-6
    )
    assert sums["count"] == 2 * 18


def test_margin_is_that_of_labse(pairs):
    torch = pytest.importorskip("torch")
    batch, vectors = pairs
    loss, _, d_vectors, _ = evaluate(vectors, batch, margin=0.3)
    raw = torch.tensor(sides_of(vectors, batch, 2), requires_grad=True)
    x, y = torch.nn.functional.normalize(raw, dim=-1).unbind(1)
    logits = SCALE * (x @ y.T - 0.3 * torch.eye(len(x)))  # eq. 2, φ(x_i, y_i) - m
    answers = torch.arange(len(x))
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, answers) + cross_entropy(logits.T, answers)) / 2
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(
        sides_of(d_vectors, batch, 2), raw.grad.numpy(), rtol=1e-4, atol=1e-6
    )


# ---- Direct formulas


def test_sigmoid_is_algorithm_1_of_siglip(pairs):
    batch, vectors = pairs
    learnt = {"log_scale": jnp.log(5.0), "bias": jnp.float32(-2.0)}
    loss, _, d_vectors, d_learnt = evaluate(vectors, batch, loss_kind="sigmoid", learnt=learnt)

    def direct(raw_NxKxW, learnt):
        unit = raw_NxKxW / jnp.linalg.norm(raw_NxKxW, axis=-1, keepdims=True)
        logits = unit[:, 0] @ unit[:, 1].T * jnp.exp(learnt["log_scale"]) + learnt["bias"]
        labels = 2 * jnp.eye(len(unit)) - 1
        return -jax.nn.log_sigmoid(labels * logits).sum() / len(unit)

    raw = sides_of(vectors, batch, 2)
    expected, (d_raw, d_expected) = jax.value_and_grad(direct, (0, 1))(raw, learnt)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(sides_of(d_vectors, batch, 2), d_raw, rtol=1e-4, atol=1e-6)
    for name in learnt:
        np.testing.assert_allclose(d_learnt[name], d_expected[name], rtol=1e-4)


def test_a_learnt_scale_gets_its_gradient(pairs):
    batch, vectors = pairs
    learnt = {"log_scale": jnp.log(5.0)}
    loss, _, _, d_learnt = evaluate(vectors, batch, learn_scale=True, margin=0.2, learnt=learnt)

    def direct(log_scale):
        x, y = normalised(sides_of(vectors, batch, 2)).swapaxes(0, 1)
        s = jnp.exp(log_scale) * (x @ y.T - 0.2 * np.eye(len(x)))
        parts = (jax.nn.logsumexp(s, axis).mean() for axis in (0, 1))
        return sum(parts) / 2 - jnp.diag(s).mean()

    expected, gradient = jax.value_and_grad(direct)(learnt["log_scale"])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(d_learnt["log_scale"], gradient, rtol=1e-4)


def test_a_learnt_scale_grows_to_100_and_comes_back(pairs):
    """Above it the gradient is that at 100 if it makes the scale smaller, and 0 otherwise."""
    batch, drawn = pairs
    alike = drawn.copy()
    alike[:, 1::2] = alike[:, ::2]  # translations are equal: a larger scale is always better
    for vectors, shrinks in ((drawn, True), (alike, False)):
        at = {}
        for scale in (99.0, 101.0, 200.0):
            learnt = {"log_scale": jnp.log(scale)}
            loss, _, _, d_learnt = evaluate(vectors, batch, learn_scale=True, learnt=learnt)
            at[scale] = loss, d_learnt["log_scale"]
        np.testing.assert_allclose(at[101.0][0], at[200.0][0], rtol=1e-6)
        np.testing.assert_allclose(at[101.0][1], at[200.0][1], rtol=1e-6)
        assert (at[99.0][1] > 0) == (at[101.0][1] > 0) == shrinks
        assert shrinks or at[101.0][1] == 0 > at[99.0][1]


@pytest.mark.parametrize("settings", [{"margin": 0.25}, {"decoupled": True}])
def test_many_ways_are_all_ordered_pairs(parallel_rows, settings):
    batch, _ = parallel_rows([3, 2, 3, 1, 0, 3], sides=4, words=(4, 6))
    vectors = raw_vectors(batch, 4)
    loss, sums, *_ = evaluate(vectors, batch, 4, **settings)
    sides = np.moveaxis(sides_of(vectors, batch, 4), 1, 0)
    expected = [
        softmax_loss(sides[a], sides[b], **settings) for a in range(4) for b in range(4) if a != b
    ]
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
    assert sums["pairs"] == 12 and sums["count"] == 12 * 4 * 3


def test_places_without_a_group_count_for_nothing(parallel_rows):
    batch, _ = parallel_rows([3, 1, 2, 3, 0, 2], words=(4, 6))
    vectors = raw_vectors(batch, 2)
    loss, sums, d_vectors, _ = evaluate(vectors, batch)
    x, y = np.moveaxis(sides_of(vectors, batch, 2), 1, 0)
    np.testing.assert_allclose(loss, softmax_loss(x, y), rtol=1e-5)
    assert sums["pairs"] == 11 and sums["count"] == 22
    assert sums["tokens"] == (batch["segment_ids"] != 0).sum()
    for row, count in enumerate(batch["segment_ids"].max(axis=1)):
        assert d_vectors[row, :count].any() == (count > 0)
        assert not d_vectors[row, count:].any()


def test_copies_of_a_text_are_no_negatives(pack_rows):
    """Wherever they stand; nor are the translations of copies."""
    rng = np.random.default_rng(1)
    text = [rng.integers(5, 96, 5) for _ in range(12)]
    text[2] = text[0]  # groups 0 and 1 share their first side
    text[7] = text[5]  # groups 2 and 3 their second
    text[9] = text[0]  # group 4 has it as its second
    batch = pack_rows([text[:6], text[6:]])
    vectors = raw_vectors(batch, 2)
    loss, *_ = evaluate(vectors, batch)
    related = np.eye(6, dtype=bool)
    for group in ([0, 1, 4], [2, 3]):
        related[np.ix_(group, group)] = True
    x, y = np.moveaxis(sides_of(vectors, batch, 2), 1, 0)
    np.testing.assert_allclose(loss, softmax_loss(x, y, ~related), rtol=1e-5)
    assert abs(loss - softmax_loss(x, y)) > 1e-3


def test_a_hard_negative_that_is_a_translation_does_not_count(pack_rows):
    """Of the anchor in another example; the others count, those of its own example too."""
    rng = np.random.default_rng(4)
    text = [rng.integers(5, 96, 5) for _ in range(9)]
    text[5] = text[1]  # the hard negative of group 1 is the translation in group 0
    text[8] = text[0]  # that of group 2 the anchor of group 0
    batch = pack_rows([text], sides=3)
    vectors = raw_vectors(batch, 3)
    loss, *_ = evaluate(vectors, batch, 3, hard_negatives=1)
    x, y, hard = np.moveaxis(normalised(sides_of(vectors, batch, 3)), 1, 0)
    candidates = SCALE * x @ np.concatenate([y, hard]).T
    candidates[0, [4, 5]] = -np.inf
    there = np.mean([log_sum_exp(s) - s[i] for i, s in enumerate(candidates)])
    back = np.mean([log_sum_exp(s) - s[i] for i, s in enumerate(SCALE * y @ x.T)])
    np.testing.assert_allclose(loss, (there + back) / 2, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"decoupled": True}, {"loss_kind": "sigmoid"}])
def test_a_batch_of_copies_teaches_nothing_that_is_not_finite(pack_rows, settings):
    text = np.array([7, 8, 9])
    batch = pack_rows([[text] * 6] * 2)
    vectors = np.ones((2, 6, W), np.float32)
    learnt = {"log_scale": jnp.log(5.0)}
    loss, _, d_vectors, d_learnt = evaluate(vectors, batch, learnt=learnt, **settings)
    assert np.isfinite(d_vectors).all() and np.isfinite(d_learnt["log_scale"])
    if not settings.get("loss_kind"):
        assert loss == 0 and not d_vectors.any()


def test_languages_and_correct_answers(parallel_rows):
    batch, _ = parallel_rows([3] * 6, words=(4, 6))
    vectors = raw_vectors(batch, 2)
    vectors[:, 1::2] = vectors[:, ::2]  # translations are equal
    vectors[0, 3] = -vectors[0, 2]  # but for these
    _, sums, *_ = evaluate(vectors, batch)
    np.testing.assert_array_equal(
        sums["language_count"], 3 * np.bincount(batch["languages"].ravel(), minlength=4)
    )
    np.testing.assert_allclose(sums["language_loss"].sum(), sums["loss"], rtol=1e-5)
    wrong = sums["language_count"] - sums["language_correct"]
    assert sums["count"] - sums["correct"] == 2
    assert wrong[batch["languages"][0]].sum() == 2


# ---- Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_kind": "triplet"}, r"Contrastive\.loss_kind = 'triplet'"),
        ({"loss_kind": "sigmoid", "margin": 0.3}, "margin.*'softmax'"),
        ({"scale": 0.0}, r"Contrastive\.scale = 0"),
        ({"scale": 101.0, "learn_scale": True}, r"Contrastive\.scale = 101\.0 .* above 100"),
        ({"hard_negatives": -1}, r"Contrastive\.hard_negatives = -1"),
        ({"microbatches": 0}, r"Contrastive\.microbatches = 0"),
        ({"microbatches": 1.5}, r"Contrastive\.microbatches = 1\.5"),
    ],
)
def test_settings_without_a_meaning_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        objective(**settings)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (stream(sides=1, groups=0), {}, "'contrastive'.*pairs holds text of one language"),
        (stream(sides=2), {"hard_negatives": 1}, "3 texts .*, but pairs holds examples of 2"),
        (stream(groups=1), {}, "'contrastive': a batch of 1 row .* no negatives.*batch_size"),
    ],
)
def test_rows_that_cannot_be_compared_are_named(rows, settings, message):
    contrastive = Contrastive(rows=Rows("pairs", 64), batch_size=1, **settings)
    with pytest.raises(UserError, match=message):
        contrastive.check(rows)
