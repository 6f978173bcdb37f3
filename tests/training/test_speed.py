"""Tokens and FLOPs per second: each step counts as its phase does."""

import types

import pytest

from xl_flax.data.stream import Rows
from xl_flax.models.config import EncoderConfig
from xl_flax.objectives.mlm import MaskedLM
from xl_flax.training.feeds import Feed
from xl_flax.training.speed import Speed

ENCODER = EncoderConfig(
    vocab_size=1000, num_layers=2, width=8, num_heads=1, mlp_width=16, max_positions=64
)


def speed(rate):
    feed = Feed.__new__(Feed)
    feed.rows, feed.size = 0, 4
    feed.objective = MaskedLM(rows=Rows("m", 64), batch_size=4, rate=rate)
    feed.stream = types.SimpleNamespace(length=64)
    return Speed(ENCODER, {"mlm": feed}, 1)


def test_a_step_counts_the_flops_of_its_phase():
    phased, low, high = speed([(0, 0.1), (8, 0.4)]), speed(0.1), speed(0.4)
    counted = []
    for made, phases in ((phased, (0.1, 0.4)), (low, (0.1, 0.1)), (high, (0.4, 0.4))):
        made.stepped([phases[0]])  # compiles
        for phase in phases:
            made.stepped([phase])
        values = made.values()
        assert values["tokens_per_second"] > 0
        counted.append(values["model_tflops_per_second"] / values["tokens_per_second"])
    assert counted[0] == pytest.approx((counted[1] + counted[2]) / 2)
    assert counted[1] < 0.7 * counted[2]


def test_the_formula_fits_the_console_and_says_what_frozen_parameters_count():
    text = speed(0.15).formula(frozen=True)
    assert "FLOPs per token" in text.replace("\n  ", " ") and "frozen parameters count" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "frozen" not in speed(0.15).formula(frozen=False)
