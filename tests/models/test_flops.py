"""FLOPs per token: the published encoders' numbers, and what fewer layers or no backward save."""

import pathlib

import gin
import pytest

from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.flops import describe, encoder_flops, mlm_head_flops

ROOT = pathlib.Path(__file__).parents[2]
LENGTH, RATE = 512, 0.15


@pytest.fixture
def published():
    """published(name) -> the config of `gin/models/name.gin`."""

    def read(name):
        gin.clear_config()
        gin.add_config_file_search_path(str(ROOT))
        gin.parse_config_file(f"gin/models/{name}.gin")
        return gin.get_configurable(EncoderConfig)()

    yield read
    gin.clear_config()


@pytest.mark.parametrize(
    ("name", "body", "attention", "projection"),
    [
        ("xlmr_base", 510_326_784, 56_623_104, 172_801_382),
        ("modernbert_base", 661_980_672, 54_392_832, 34_814_362),
    ],
)
def test_masked_lm_of_published_encoders(published, name, body, attention, projection):
    config = published(name)
    parts = encoder_flops(config, LENGTH) | mlm_head_flops(config, RATE)
    expected = {"body": body, "attention": attention, "projection": projection, "head": 530_842}
    assert parts == pytest.approx(expected, abs=1)
    text = describe(parts)
    assert f"body {body / 1e6:,.2f}M + attention" in text
    assert text.endswith(f"= {sum(expected.values()) / 1e6:,.2f}M")


@pytest.mark.parametrize("name", ["xlmr_base", "modernbert_base"])
def test_the_forward_pass_is_a_third(published, name):
    config = published(name)
    forward = encoder_flops(config, LENGTH, backward=False)
    both = encoder_flops(config, LENGTH)
    assert {part: 3 * value for part, value in forward.items()} == pytest.approx(both)


def test_only_layers_that_are_run_count(published):
    config = published("xlmr_base")
    full = encoder_flops(config, LENGTH)
    for layers, depth in ((-1,), 12), ((8,), 8), ((4, 8), 8), ((-5, 0), 8), ((0,), 0):
        part = encoder_flops(config, LENGTH, layers)
        assert part == {name: pytest.approx(value * depth / 12) for name, value in full.items()}
    with pytest.raises(UserError, match="there is no layer 13"):
        encoder_flops(config, LENGTH, (13,))


def test_local_layers_and_a_missing_norm_count_for_less(published):
    config = published("modernbert_base")  # layers 0, 3, … are global, and 0 lacks a norm
    spans = [512, 129, 129, 512]
    for depth in range(5):
        part = encoder_flops(config, LENGTH, (depth,), backward=False)
        assert part["attention"] == 4 * config.width * sum(spans[:depth])
    sizes = [config.body_params(depth) for depth in range(4)]
    assert sizes[0] == 0 and sizes[3] - sizes[2] == sizes[2] - sizes[1] == sizes[1] + config.width
    assert config.body_params(config.num_layers) == config.body_params()
