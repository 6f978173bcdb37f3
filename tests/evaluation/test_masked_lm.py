import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xl_flax.evaluation import ahead
from xl_flax.evaluation.masked_lm import make_score, score_rows, unigram_scores
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import mlm_prediction
from xl_flax.parallel.mesh import MeshConfig, make_partitioning

V, LENGTH, PAD, CLS, SEP, MASK = 40, 16, 1, 0, 2, 39
ORDINARY = np.array([4 <= i < 39 for i in range(V)])


class FakeRows:
    """30 rows of two sentences and padding, in two languages."""

    languages, length = ("aaa", "bbb"), LENGTH

    def __init__(self, n=30):
        rng = np.random.default_rng(0)
        self.batch = {
            "tokens": np.full((n, LENGTH), PAD, np.int32),
            "segment_ids": np.zeros((n, LENGTH), np.int32),
            "positions": np.zeros((n, LENGTH), np.int32),
        }
        for row in range(n):
            end = 0
            for segment, size in enumerate(rng.integers(1, 6, 2), 1):
                ids = [CLS, *rng.integers(4, 39, size), SEP]
                span = slice(end, end + len(ids))
                self.batch["tokens"][row, span] = ids
                self.batch["segment_ids"][row, span] = segment
                self.batch["positions"][row, span] = range(len(ids))
                end += len(ids)
        self.batch["languages"] = (np.arange(n)[:, None] >= 20).astype(np.int32)
        self.batch["row_id"] = np.arange(n, dtype=np.int32)

    def __len__(self):
        return len(self.batch["row_id"])

    def rows(self, indices):
        indices = np.array(indices)
        inside = indices < len(self)
        rows = {k: x[np.minimum(indices, len(self) - 1)].copy() for k, x in self.batch.items()}
        rows["segment_ids"][~inside] = 0
        rows["row_id"][~inside] = -1
        return rows


@pytest.fixture(scope="module")
def model(small_model):
    config = EncoderConfig(
        vocab_size=V, num_layers=1, width=16, num_heads=2, mlp_width=32, max_positions=LENGTH,
        mlp_out_dropout=0.5,
    )  # fmt: skip
    return small_model(config, {"mlm": {}})


@pytest.fixture(scope="module")
def vocabulary():
    return types.SimpleNamespace(
        special=types.SimpleNamespace(mask=MASK), special_mask=lambda: ~ORDINARY
    )


def scores_on(model, vocabulary, devices, rate=0.3):
    partitioning = make_partitioning(MeshConfig(), jax.devices()[:devices])
    graph, state = nnx.split(model)
    score = make_score(graph, vocabulary, rate, partitioning)
    return score, score_rows(score, nnx.to_pure_dict(state), FakeRows(), partitioning)


@nnx.jit
def plain_logits(model, batch, hidden):
    tokens = jnp.where(hidden, MASK, batch["tokens"])
    places = {name: batch[name] for name in ("segment_ids", "positions")}
    head, table_VxD, bias_V = mlm_prediction(model)
    return head.features(model.encoder(tokens, **places)) @ table_VxD.T + bias_V


@pytest.mark.parametrize("devices, tokens", [(1, 8192), (1, 64), (8, 16)])
def test_loss_and_accuracy_are_those_of_the_plain_softmax(
    model, vocabulary, monkeypatch, devices, tokens
):
    monkeypatch.setattr(ahead, "CPU_TOKENS", tokens)
    score, found = scores_on(model, vocabulary, devices)
    rows = FakeRows()
    batch = rows.rows(range(len(rows)))
    _, state = nnx.split(model)
    if devices == 1:
        hidden = np.asarray(score(nnx.to_pure_dict(state), batch)["hidden"])
    else:  # the masks must not depend on the devices
        one = make_partitioning(MeshConfig(), jax.devices()[:1])
        plain = make_score(nnx.split(model)[0], vocabulary, 0.3, one)
        hidden = np.asarray(plain(nnx.to_pure_dict(state), batch)["hidden"])

    logits = np.asarray(plain_logits(model, batch, hidden), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -np.take_along_axis(log_p, batch["tokens"][..., None], -1)[..., 0]
    correct = logits.argmax(-1) == batch["tokens"]
    for i, language in enumerate(rows.languages):
        mine = hidden & (batch["languages"] == i)
        assert found[language].count == mine.sum() > 10
        assert found[language].loss == pytest.approx(loss[mine].mean(), rel=1e-5)
        assert found[language].accuracy == pytest.approx(correct[mine].mean())


def test_only_ordinary_tokens_are_hidden_at_the_rate_asked_for(model, vocabulary):
    rows = FakeRows(2000)
    batch = rows.rows(range(2000))
    score, _ = scores_on(model, vocabulary, 1)
    hidden = np.asarray(score(nnx.to_pure_dict(nnx.split(model)[1]), batch)["hidden"])
    ordinary = ORDINARY[batch["tokens"]]
    assert not hidden[~ordinary].any()
    assert hidden[ordinary].mean() == pytest.approx(0.3, abs=0.01)


def test_unigram_baseline_by_hand():
    # Token 5 six times, 6 three times, 7 once: a tenth of the mass (one of 11, with the one that
    # is to come) goes to the 32 ordinary tokens that were never seen.
    ids, counts = np.array([5, 6, 7]), np.array([6, 3, 1])
    loss, accuracy = unigram_scores(np.array([5, 5, 6, 20]), ids, counts, ORDINARY)
    p = [0.6 * 10 / 11, 0.6 * 10 / 11, 0.3 * 10 / 11, 1 / 11 / 32]
    assert loss == pytest.approx(-np.mean(np.log(p)))
    assert accuracy == 0.5


def test_unigram_probabilities_sum_to_one():
    every = np.flatnonzero(ORDINARY)
    for seen in (every, every[:10]):
        counts = np.arange(1, len(seen) + 1)
        losses = [unigram_scores(np.array([i]), seen, counts, ORDINARY)[0] for i in every]
        assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1)


def test_unigram_baseline_ignores_special_tokens():
    loss, accuracy = unigram_scores(
        np.array([5, 5]), np.array([3, 5]), np.array([100, 1]), ORDINARY
    )
    assert accuracy == 1 and loss < 1
