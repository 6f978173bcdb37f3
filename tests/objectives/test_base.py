"""What all objectives share: settings, keys, descriptions, and what they say they compute."""

import json
import types

import jax
import numpy as np
import pytest

from xl_flax.data.features import FeatureSpec
from xl_flax.data.stream import Rows
from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.flops import encoder_flops
from xl_flax.objectives.base import Objective, objective_key
from xl_flax.objectives.classification import SequenceClassification, TokenClassification
from xl_flax.objectives.contrastive import Contrastive
from xl_flax.objectives.mlm import MaskedLM
from xl_flax.objectives.momentum import MomentumContrastive
from xl_flax.objectives.tlm import TranslationLM

ROWS, LENGTH = Rows("text", 64), 64
COMMON = {"rows": ROWS, "batch_size": 8}
ALL = (
    MaskedLM(**COMMON),
    TranslationLM(**COMMON),
    Contrastive(**COMMON),
    MomentumContrastive(**COMMON, queue_size=64),
    SequenceClassification(**COMMON),
    TokenClassification(**COMMON),
)
ENCODER = EncoderConfig(vocab_size=100, num_layers=4, width=16, num_heads=2, mlp_width=32)
STREAM = types.SimpleNamespace(length=LENGTH)


def total(objective, two_passes=False):
    return sum(objective.flops(ENCODER, STREAM, two_passes).values())


@pytest.mark.parametrize("objective", ALL, ids=lambda o: o.name)
def test_every_objective_keeps_the_contract(objective):
    assert isinstance(objective, Objective) and objective.metrics["loss"].numerator == "loss"
    description = objective.description()
    assert json.loads(json.dumps(description))["kind"] == type(objective).__name__
    assert description["mixture"] == [[0, "text"]] and description["weight"] == 1.0
    # What may change when a run goes on; a queue has a place for each row of a batch.
    assert not {"microbatches", "name", "rows"} & set(description)
    assert ("batch_size" in description) == (objective.name == "momentum")
    assert total(objective) > 0


@pytest.mark.parametrize("sizes", [8, [(0, 4), (10, 8), (11, 6), (40, 16)]])
def test_the_rows_that_steps_will_read_are_known_beforehand(sizes):
    objective = MaskedLM(ROWS, sizes)
    for start in (0, 12, 20):
        row = start
        for steps in range(8):
            assert objective.row_after(start, steps) == row
            row += objective.batch_at(row)


def test_a_queue_has_places_for_one_size_of_batches():
    with pytest.raises(UserError, match=r"MomentumContrastive\.batch_size = \[.*: must be a whole"):
        MomentumContrastive(ROWS, [(0, 8), (80, 16)], queue_size=64)


@pytest.mark.parametrize("objective", ALL, ids=lambda o: o.name)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, r"batch_size = 0: must be a whole number"),
        ({"batch_size": [(0, 8), (0, 16)]}, r"batch_size = \[.*: must be a whole number"),
        ({"microbatches": 0.5}, r"microbatches = 0\.5: must be a whole number"),
        ({"weight": 0}, r"weight = 0: .* leave the objective out"),
        ({"name": "step"}, r"name = 'step': must be letters"),
        ({"name": "a/b"}, r"name = 'a/b': must be letters"),
    ],
)
def test_shared_settings_are_checked_in_one_place(objective, settings, message):
    kind = type(objective)
    own = {"queue_size": 64} if kind is MomentumContrastive else {}
    with pytest.raises(UserError, match=rf"{kind.__name__}\.{message}"):
        kind(**COMMON | own | settings)


def test_names_of_objectives_are_unique_by_default():
    assert len({objective.name for objective in ALL}) == len(ALL)


def test_keys_follow_from_names():
    key = jax.random.key(3)
    keys = {name: jax.random.key_data(objective_key(key, name)) for name in ("mlm", "tlm")}
    assert (keys["mlm"] != keys["tlm"]).any()
    np.testing.assert_array_equal(keys["mlm"], jax.random.key_data(objective_key(key, "mlm")))


def test_flops_count_the_layers_that_run():
    whole = sum(encoder_flops(ENCODER, LENGTH).values())
    assert total(Contrastive(**COMMON)) == pytest.approx(whole)
    assert total(Contrastive(**COMMON, layer=2)) == pytest.approx(whole / 2)


def test_flops_count_the_second_encoding():
    for layer, share in ((-1, 1), (1, 0.25)):
        one, two = (total(Contrastive(**COMMON, layer=layer), passes) for passes in (False, True))
        assert two - one == pytest.approx(share * sum(encoder_flops(ENCODER, LENGTH).values()) / 3)


def test_flops_count_the_momentum_encoder_once():
    whole = sum(encoder_flops(ENCODER, LENGTH).values())
    momentum = MomentumContrastive(**COMMON, queue_size=64)
    assert total(momentum) == pytest.approx(whole * 4 / 3)
    # The second encoding is of the queries only: keys have no gradient.
    assert total(momentum, True) == pytest.approx(whole * 5 / 3)


@pytest.mark.parametrize("settings", [{}, {"whole_words": True}])
def test_flops_count_the_targets_of_the_highest_rate_not_their_slots(settings):
    whole = sum(encoder_flops(ENCODER, LENGTH).values())
    head = 6 * ENCODER.width * (ENCODER.vocab_size + ENCODER.width)
    for rate in (0.1, 0.4, [(0, 0.4), (10, 0.1)]):
        targets = rate if isinstance(rate, float) else 0.4
        assert total(MaskedLM(**COMMON, **settings, rate=rate)) == pytest.approx(
            whole + targets * head
        )


@pytest.mark.parametrize(
    ("objective", "features", "message"),
    [
        (TranslationLM(**COMMON), {"label": FeatureSpec("example", labels=("a", "b"))}, "'label'"),
        (
            Contrastive(**COMMON),
            {"label": FeatureSpec("example", labels=("a", "b"))},
            "paraphrases",
        ),
        (SequenceClassification(**COMMON), {}, "'label', labels of kind 'example'.*are: none"),
        (
            TokenClassification(**COMMON),
            {
                "label": FeatureSpec("token", labels=("a",)),
                "weight": FeatureSpec("token", "float32"),
            },
            "'weight' of pairs is of kind 'token'",
        ),
    ],
)
def test_examples_that_do_not_suit_are_named(objective, features, message):
    stream = types.SimpleNamespace(
        num_texts=2, examples_per_row=4, tasks=("pairs",), features=features
    )
    with pytest.raises(UserError, match=f"'{objective.name}'.*{message}"):
        objective.check(stream)


def test_a_pooling_that_does_not_exist_is_named():
    with pytest.raises(
        UserError, match=r"SequenceClassification\.pooling = 'tokens': must be 'cls'"
    ):
        SequenceClassification(**COMMON, pooling="tokens")
