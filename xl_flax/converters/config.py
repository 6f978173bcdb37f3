"""What reading and writing the families' `config.json` shares."""

from collections.abc import Mapping, Sequence
from typing import Any

from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import HeadSettings

Config = Mapping[str, Any]  # the content of a config.json
Heads = Mapping[str, HeadSettings]

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
THEIR_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}


MOST_LABELS = 1_000_000
CHOICE_LABELS = ["score"]  # of the head "choice"; `config.json` says nothing of them


def activation(config: Config, key: str) -> str:
    """Our name of an activation.

    Raises:
      UserError: there is none of that name.
    """
    name = config.get(key, "gelu")
    if name not in ACTIVATIONS:
        raise UserError(f"config.json: {key} = {name!r} is none of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def require(config: Config, reason: str, **values: Any) -> None:
    """Raises UserError unless these keys, where they are set, have these values."""
    for key, value in values.items():
        if config.get(key, value) != value:
            raise UserError(
                f"config.json: {key} = {config[key]!r} cannot be converted, only {value!r}: "
                + reason
            )


def labels(config: Config) -> list[str]:
    """Names of the labels of a classification head, in order."""
    count = config.get("num_labels", 2)
    if not isinstance(count, int) or not 0 < count <= MOST_LABELS:
        raise UserError(f"config.json: num_labels = {count!r} is not a number of labels")
    names = config.get("id2label") or {i: f"LABEL_{i}" for i in range(count)}
    if not all(isinstance(name, str) for name in names.values()):
        raise UserError("config.json: id2label has labels that are no text")
    return [names[key] for key in sorted(names, key=int)]


def write_labels(heads: Heads) -> dict[str, Any]:
    """`id2label` and `label2id` of the classification head, if there is one."""
    for name, settings in heads.items():
        if (names := settings.get("labels")) and name != "choice":
            return {
                "id2label": {str(i): name for i, name in enumerate(names)},
                "label2id": {name: i for i, name in enumerate(names)},
            }
    return {}


def classification(config: Config, pooling: str, **settings: Any) -> dict[str, Any]:
    """Settings of a classification head."""
    return {
        "kind": "classification",
        "labels": labels(config),
        "pooling": pooling,
        **settings,
    }


def is_choice(config: Config) -> bool:
    """Whether the folder's classifier scores choices."""
    return architecture(config).endswith("ForMultipleChoice")


def choice(pooling: str, **settings: Any) -> dict[str, Any]:
    """Settings of the head that scores choices, which has no labels of its own."""
    return {"kind": "classification", "labels": CHOICE_LABELS, "pooling": pooling, **settings}


def architecture(config: Config) -> str:
    """The class that the folder was saved from, "" if it does not say."""
    return (config.get("architectures") or [""])[0]


def architectures(heads: Heads, base: str, names: Mapping[str, str]) -> list[str]:
    """The class that opens a folder with these heads.

    Args:
      heads: of the model.
      base: class without a head.
      names: class by name of a head; the first that is there wins.
    """
    return [next((names[name] for name in names if name in heads), base)]


def missing_keys(config: Config, keys: Sequence[str]) -> None:
    """Raises UserError if one is not there."""
    if missing := [key for key in keys if key not in config]:
        raise UserError(f"config.json has no {', '.join(missing)}: is it of this model?")


def dropouts(rate: float, attention: float) -> dict[str, float]:
    """Our rates, from BERT's two."""
    return {
        "embedding_dropout": rate,
        "attention_dropout": attention,
        "attention_out_dropout": rate,
        "mlp_out_dropout": rate,
    }


def write_dropouts(encoder: EncoderConfig) -> dict[str, float]:
    """BERT's two rates."""
    return {
        "hidden_dropout_prob": encoder.mlp_out_dropout,
        "attention_probs_dropout_prob": encoder.attention_dropout,
    }
