"""Encoder configurations: the published ones have their published sizes, wrong ones say why."""

import json
import pathlib

import gin
import pytest

from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig

ROOT = pathlib.Path(__file__).parents[2]
SIZES = {"vocab_size": 61, "num_layers": 3, "width": 32, "num_heads": 2, "mlp_width": 48}

# Millions of parameters of the published encoders, without pooler and head.
PUBLISHED = {
    "bert_base": 108.9,
    "mbert_base": 177.3,
    "roberta_base": 124.1,
    "xlmr_base": 277.5,
    "xlmr_large": 558.8,
    "modernbert_base": 149.0,
    "modernbert_large": 394.8,
    "mmbert_base": 306.9,
    "mmbert_small": 140.5,
}


@pytest.fixture(autouse=True)
def clean_gin():
    gin.clear_config()
    gin.add_config_file_search_path(str(ROOT))
    yield
    gin.clear_config()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_size(name):
    gin.parse_config_file(f"gin/models/{name}.gin")
    config = gin.get_configurable(EncoderConfig)()
    assert config.num_params / 1e6 == pytest.approx(PUBLISHED[name], abs=0.2)
    assert config.vocab_size > 30_000


def test_every_gin_file_is_a_model_once_it_has_its_sizes():
    for path in sorted((ROOT / "gin" / "models").glob("*.gin")):
        gin.clear_config()
        gin.parse_config_file(str(path))
        bound = {name: size for name, size in SIZES.items() if not gin_binds(name)}
        assert gin.get_configurable(EncoderConfig)(**bound).num_params > 0, path


def gin_binds(name):
    try:
        gin.query_parameter(f"EncoderConfig.{name}")
    except ValueError:
        return False
    return True


def test_dict_round_trip_through_json_ignores_gin():
    config = EncoderConfig(**SIZES, positions="rotary", local_window=16)
    gin.bind_parameter("EncoderConfig.norm_eps", 0.5)
    gin.bind_parameter("EncoderConfig.pre_norm", True)
    values = json.loads(json.dumps(config.to_dict()))
    assert EncoderConfig.from_dict(values) == config
    del values["pre_norm"], values["attention"]  # an older version's: the default, not Gin's value
    assert EncoderConfig.from_dict(values) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_heads": 5}, "width = 32 is not divisible by num_heads = 5"),
        ({"vocab_size": 0}, "vocab_size = 0: must be a whole number, at least 1"),
        ({"num_layers": 2.0}, "num_layers = 2.0: must be a whole number"),
        ({"dtype": "float16"}, "dtype = 'float16': must be 'float32' or 'bfloat16'"),
        ({"scan": True}, "scan = True: must be 'scan' or"),
        ({"local_window": 7}, "local_window = 7: must be .* a multiple of 2"),
        ({"attention_dropout": 1.0}, "attention_dropout = 1.0: must be .* less than 1"),
        ({"first_attention_norm": False}, "only with pre_norm = True"),
        ({"positions": "rotary", "num_heads": 32}, "positions = .rotary. needs an even head size"),
    ],
)
def test_values_that_make_no_encoder_are_named(values, message):
    with pytest.raises(UserError, match=message):
        EncoderConfig(**SIZES | values)


def test_unknown_and_missing_fields_of_a_dict_are_named():
    with pytest.raises(UserError, match="unknown fields wings"):
        EncoderConfig.from_dict(SIZES | {"wings": 2})
    with pytest.raises(UserError, match="missing fields vocab_size"):
        EncoderConfig.from_dict({k: v for k, v in SIZES.items() if k != "vocab_size"})


def test_local_layers_attend_to_their_window():
    config = EncoderConfig(**SIZES, local_window=16)
    assert [config.attended_span(i, 512) for i in range(4)] == [512, 17, 17, 512]
    assert config.attended_span(1, 8) == 8
