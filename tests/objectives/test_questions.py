"""The loss of answers in packed rows is that of each example read by itself."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xl_flax.data.batch_packing import pack_batch
from xl_flax.data.features import FeatureSpec
from xl_flax.data.stream import Rows
from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.objectives.base import Inputs
from xl_flax.objectives.questions import QuestionAnswering

V, SEP, CLS = 60, 3, 2
LANGUAGES = ("aaa", "bbb", "ccc")
# Question and context of each example of each row, in tokens.
SIZES = [[(2, 9), (4, 6), (3, 1)], [(5, 12)], [(1, 3), (2, 2)]]
# Of each example's context: first and last token of the answer, or none.
ANSWERS = [[(0, 8), (-1, -1), (0, 0)], [(3, 5)], [(2, 2), (0, 1)]]


@pytest.fixture(scope="module")
def model():
    config = EncoderConfig(
        vocab_size=V, num_layers=2, width=16, num_heads=2, mlp_width=32, max_positions=48,
        token_types=2, mlp_out_dropout=0.5,
    )  # fmt: skip
    settings = QuestionAnswering(Rows("m", 48), 4).heads(None)
    model = nnx.jit(lambda: build_model(config, settings, nnx.Rngs(0)))()
    head = model.heads["question"]  # scores that differ
    head.out[...] = jax.random.normal(jax.random.key(1), head.out[...].shape)
    return model


def examples():
    rng = np.random.default_rng(0)
    return [[tuple(rng.integers(5, V, n) for n in pair) for pair in row] for row in SIZES]


def packed(pack_rows, alone=False):
    """The examples in their rows, or each in one of its own."""
    rows, spans = examples(), ANSWERS
    if alone:
        rows, spans = ([[each] for row in own for each in row] for own in (rows, spans))
    batch = pack_rows([[text for pair in row for text in pair] for row in rows], 2, 48)
    places = max(map(len, rows))
    batch["example"] = np.full((len(rows), places), -1, np.int32)
    batch["answer"] = np.full((len(rows), places, 2), -1, np.int32)
    for r, row in enumerate(rows):
        at = 0
        for e, (question, context) in enumerate(row):
            batch["example"][r, e] = e
            begin = at + len(question) + 3  # [CLS] question [SEP] [CLS]
            if spans[r][e][0] >= 0:
                batch["answer"][r, e] = np.array(spans[r][e]) + begin
            at = begin + len(context) + 1
    return batch


def evaluate(model, batch, **settings):
    stream = types.SimpleNamespace(
        num_texts=2, examples_per_row=batch["example"].shape[1], languages=LANGUAGES, length=48
    )
    objective = QuestionAnswering(Rows("m", 48), 4, **settings)
    vocabulary = types.SimpleNamespace(special=types.SimpleNamespace(sep=SEP, pad=0))
    buffers = jax.tree.map(jnp.asarray, objective.buffers(vocabulary, stream, LANGUAGES))
    graph, state = nnx.split(model)

    @jax.jit
    def run(state, batch):
        inputs = Inputs(jax.random.key(0), stream, buffers, train=False)
        return objective.loss(nnx.merge(graph, state), batch, inputs)

    return run(state, batch)


@nnx.jit
def head_scores(model, tokens, segments, token_types):
    places = np.arange(48)[None]
    hidden = model.encoder(
        tokens[None], segment_ids=segments[None], positions=places, token_types=token_types[None]
    )[0]
    head = model.heads["question"]
    return hidden @ head.out[...] + head.bias[...]


def plain(model, question, context, answer, double):
    """Cross-entropies of start and end, and which of them have the highest score."""
    middle = [SEP, SEP] if double else [SEP]
    tokens = np.array([CLS, *question, *middle, *context, SEP])
    size, place = len(tokens), np.arange(48)
    kinds = (place >= len(question) + 2).astype(np.int32)  # </s> before it is the context's
    row = np.pad(tokens, (0, 48 - size)).astype(np.int32)
    scores = np.asarray(head_scores(model, row, (place < size).astype(np.int32), kinds))
    scores = scores[:size].astype(np.float64)
    begin = 1 + len(question) + len(middle)
    targets = [0, 0] if answer[0] < 0 else [begin + answer[0], begin + answer[1]]
    log_p = scores - np.log(np.exp(scores).sum(axis=0))
    losses = [-log_p[target, i] for i, target in enumerate(targets)]
    return losses, [scores[:, i].argmax() == target for i, target in enumerate(targets)]


@pytest.mark.parametrize("double", [False, True])
def test_packed_rows_have_the_loss_of_each_example_by_itself(model, pack_rows, double):
    batch = packed(pack_rows)
    loss = evaluate(model, batch, double_separator=double)
    every = [
        plain(model, *texts, answer, double)
        for row, answers in zip(examples(), ANSWERS, strict=True)
        for texts, answer in zip(row, answers, strict=True)
    ]
    losses, correct = (np.array([pair[i] for pair in every]) for i in (0, 1))
    assert loss.total == pytest.approx(losses.mean(axis=1).sum(), rel=1e-5)
    assert loss.sums["count"] == len(losses) == 6
    assert loss.sums["correct"] == correct.sum() and loss.sums["labels"] == 12
    # A row's examples are in the language of its contexts.
    by_row = np.split(losses.sum(axis=1), [3, 4])
    expected = np.zeros(3)
    for row, own in enumerate(by_row):
        expected[batch["languages"][row, 1]] += own.sum()
    np.testing.assert_allclose(loss.sums["language_loss"], expected, rtol=1e-5)


def test_windows_put_together_in_a_batch_have_the_same_loss(model, pack_rows):
    """As `Rows.packing = 'batch'` does."""
    alone = packed(pack_rows, alone=True)
    alone["languages"][:] = 0  # only examples of the same languages share a row
    alone["piece"] = np.zeros_like(alone["example"])
    together = pack_batch(alone, 2, {"answer": FeatureSpec("span")}, 0, 1)
    assert len(together["tokens"]) < len(alone["tokens"]) == 6
    losses = [evaluate(model, batch) for batch in (alone, together)]
    assert losses[1].sums["count"] == losses[0].sums["count"] == 6
    assert losses[1].total == pytest.approx(float(losses[0].total), rel=1e-5)


def test_weights_are_of_examples(model, pack_rows):
    batch = packed(pack_rows)
    pairs = zip(examples()[0], ANSWERS[0], strict=True)
    losses = [plain(model, *texts, answer, False)[0] for texts, answer in pairs]
    batch["weight"] = np.zeros(batch["example"].shape, np.float32)
    batch["weight"][0] = [1, 0, 3]
    loss = evaluate(model, batch)
    assert loss.sums["count"] == 4
    assert loss.total == pytest.approx(np.mean(losses[0]) + 3 * np.mean(losses[2]), rel=1e-5)


def test_padding_rows_count_nothing(model, pack_rows):
    batch = packed(pack_rows)
    for name in ("segment_ids", "positions"):
        batch[name][1] = 0
    loss = evaluate(model, batch)
    assert loss.sums["count"] == 5 and np.isfinite(loss.total)


def test_gradients_are_finite_where_a_row_is_not_full(model, pack_rows):
    batch = packed(pack_rows)
    graph, state = nnx.split(model)

    def total(state):
        return evaluate(nnx.merge(graph, state), batch).total

    gradient = jax.jit(jax.grad(total))(state)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_only_spans_are_answers():
    objective = QuestionAnswering(Rows("m", 48), 4)
    span, number = FeatureSpec("span"), FeatureSpec("example", labels=("a",))
    stream = types.SimpleNamespace(tasks=("nli",), features={"answer": span})
    objective.check(stream)
    stream.features = {"answer": number, "label": number}
    with pytest.raises(UserError, match=r"'answer'.*'span'.*answer \(example\), label"):
        objective.check(stream)
    assert objective.heads(stream)["question"]["labels"] == ["start", "end"]
