"""The scores of choices in packed rows are those of each choice read by itself."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xl_flax.data.features import FeatureSpec
from xl_flax.data.stream import Rows
from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.objectives.base import Inputs
from xl_flax.objectives.choice import MultipleChoice

V, CLS, SEP = 60, 2, 3
LANGUAGES = ("aaa", "bbb", "ccc", "ddd", "eee")
# Tokens of the first text and of each choice, of each example of each row.
SIZES = [[(4, 2, 5), (1, 3, 1)], [(6, 6, 2)], [(2, 1, 1), (3, 2, 4)]]
LABELS = [[0, 1], [1], [-1, 0]]


@pytest.fixture(scope="module")
def model():
    config = EncoderConfig(
        vocab_size=V, num_layers=2, width=16, num_heads=2, mlp_width=32, max_positions=40,
        token_types=2, mlp_out_dropout=0.5, languages=5, init_std=0.3,
    )  # fmt: skip
    settings = MultipleChoice(Rows("m", 40), 4, dense="tanh").heads(None)
    return nnx.jit(lambda: build_model(config, settings, nnx.Rngs(0)))()


def draw(sizes):
    rng = np.random.default_rng(0)
    return [[tuple(rng.integers(5, V, n) for n in texts) for texts in row] for row in sizes]


def packed(pack_rows, rows, labels):
    sides = len(rows[0][0])
    batch = pack_rows([[text for texts in row for text in texts] for row in rows], sides, 40)
    places = max(map(len, rows))
    batch["label"] = np.full((len(rows), places), -1, np.int32)
    for r, own in enumerate(labels):
        batch["label"][r, : len(own)] = own
    return batch


def setting(batch, **settings):
    """The objective, and how it is called: loss(model, batch, train)."""
    objective = MultipleChoice(Rows("m", 40), 4, dense="tanh", **settings)
    stream = types.SimpleNamespace(
        num_texts=batch["languages"].shape[1], examples_per_row=batch["label"].shape[1],
        languages=LANGUAGES, length=40,
    )  # fmt: skip
    vocabulary = types.SimpleNamespace(special=types.SimpleNamespace(sep=SEP, pad=0))
    buffers = jax.tree.map(jnp.asarray, objective.buffers(vocabulary, stream, LANGUAGES))

    def loss(state, graph, batch, train=False):
        inputs = Inputs(jax.random.key(0), stream, buffers, train=train)
        return objective.loss(nnx.merge(graph, state), batch, inputs)

    return jax.jit(loss, static_argnums=(1, 3))


@nnx.jit
def score(model, tokens, segments, token_types, languages):
    hidden = model.encoder(
        tokens, segment_ids=segments, token_types=token_types, languages=languages
    )
    return model.heads["choice"](hidden, segments)[0, 0, 0]


def alone(model, texts, choice, languages, double):
    """The score of one choice in a row of its own."""
    first = [CLS, *texts[0], SEP]
    second = ([SEP] if double else []) + [*texts[choice], SEP]
    sides = [len(first), len(second)]
    columns = (
        first + second,
        [1] * sum(sides),
        np.repeat([0, 1], sides),
        np.repeat([languages[0], languages[choice]], sides),
    )
    padded = [jnp.array([[*column, *[0] * (40 - sum(sides))]]) for column in columns]
    return float(score(model, *padded))


@pytest.mark.parametrize(("choices", "double"), [(2, False), (3, True)])
def test_losses_are_those_of_each_choice_alone(model, pack_rows, choices, double):
    sizes = [[(*own, *own[1:])[: choices + 1] for own in row] for row in SIZES]
    rows = draw(sizes)
    batch = packed(pack_rows, rows, LABELS)
    graph, state = nnx.split(model)
    found = setting(batch, double_separator=double)(state, graph, batch)
    total, correct, count = 0.0, 0, 0
    by_language = np.zeros(len(LANGUAGES))
    for r, row in enumerate(rows):
        for texts, label in zip(row, LABELS[r], strict=True):
            spoken = batch["languages"][r]
            scores = [alone(model, texts, c, spoken, double) for c in range(1, choices + 1)]
            if label < 0:
                continue
            loss = np.log(np.exp(scores).sum()) - scores[label]
            total, count = total + loss, count + 1
            correct += int(np.argmax(scores)) == label
            by_language[spoken[0]] += loss
    assert abs(total - count * np.log(choices)) > 0.1  # scores differ
    assert float(found.total) == pytest.approx(total, rel=1e-5)
    assert (found.sums["count"], found.sums["correct"]) == (count, correct)
    np.testing.assert_allclose(found.sums["language_loss"], by_language, rtol=1e-5)


def test_dropout_differs_between_choices_and_rows_keep_theirs(model, pack_rows):
    texts = np.arange(5, 9), np.arange(9, 12), np.arange(9, 12)  # two choices that are equal
    graph, state = nnx.split(model)
    batch = packed(pack_rows, [[texts]] * 4, [[0]] * 4)
    batch["languages"][:] = 0
    loss = setting(batch)
    assert float(loss(state, graph, batch).total) == pytest.approx(4 * np.log(2), rel=1e-5)
    dropped = float(loss(state, graph, batch, True).total)
    assert dropped != pytest.approx(4 * np.log(2), rel=1e-3)
    order = np.array([2, 0, 3, 1])
    shuffled = {name: value[order] for name, value in batch.items()}
    assert float(loss(state, graph, shuffled, True).total) == pytest.approx(dropped, rel=1e-5)


def test_gradients_reach_encoder_and_head(model, pack_rows):
    batch = packed(pack_rows, draw(SIZES), LABELS)
    graph, state = nnx.split(model)
    loss = setting(batch)
    gradient = jax.grad(lambda state: loss(state, graph, batch).total)(state)
    sizes = {str(k): float(jnp.abs(v).max()) for k, v in nnx.to_flat_state(gradient)}
    assert max(v for k, v in sizes.items() if "encoder" in k) > 0
    assert max(v for k, v in sizes.items() if "choice" in k) > 0


def test_only_texts_with_choices_and_labels_can_be_read():
    objective = MultipleChoice(Rows("m", 40), 4)

    def stream(texts, labels):
        features = {"label": FeatureSpec("example", labels=labels)}
        return types.SimpleNamespace(tasks=["t"], num_texts=texts, features=features)

    objective.check(stream(3, ("a", "b")))
    objective.check(stream(5, ("a", "b", "c", "d")))
    for texts, labels in ((2, ("a",)), (2, ("a", "b")), (3, ("a", "b", "c")), (1, ("a", "b"))):
        with pytest.raises(UserError, match="MultipleChoice.feature = 'label': t has .* needed"):
            objective.check(stream(texts, labels))
    assert objective.heads(None) == {
        "choice": {"kind": "classification", "dense": None, "labels": ["score"], "pooling": "cls"}
    }


def test_each_choice_costs_an_encoding():
    config = EncoderConfig(vocab_size=V, num_layers=2, width=16, num_heads=2, mlp_width=32)
    costs = [
        MultipleChoice(Rows("m", 40), 4).flops(
            config, types.SimpleNamespace(num_texts=texts, length=40), False
        )
        for texts in (3, 5)
    ]
    assert costs[0] and all(costs[1][part] == 2 * cost for part, cost in costs[0].items())
