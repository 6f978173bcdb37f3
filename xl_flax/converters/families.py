"""The families of models that can be read and written, and how one is found.

A family is a module: the names in its `config.json` and of its tensors, read both ways.
docs/architecture.md lists what it holds.
"""

import dataclasses
from collections.abc import Collection
from types import ModuleType
from typing import Any

from xl_flax.checkpoints.description import RUNTIME_FIELDS
from xl_flax.converters import bert, eurobert, modernbert, roberta, xlm, xlm_roberta_xl
from xl_flax.converters.config import Config, Heads
from xl_flax.converters.weights import Weight
from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import MLM_HEAD

# In the order in which they are tried for a checkpoint; modules outside the package add themselves.
FAMILIES: list[ModuleType] = [bert, roberta, xlm_roberta_xl, xlm, modernbert, eurobert]

# Heads that Transformers has classes for; a sentence head belongs to sentence-transformers.
HEADS = (MLM_HEAD, "pooler", "sequence", "tokens", "question", "choice")


def for_config(config: Config, path: str) -> ModuleType:
    """The family that a `config.json` names.

    Raises:
      UserError: none, or one that is not known.
    """
    known = {model_type: family for family in FAMILIES for model_type in family.MODEL_TYPES}
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in known:
        raise UserError(
            f"{path}: model_type = {model_type!r} cannot be converted; there are "
            + ", ".join(sorted(known))
            + "; --module_import of xl_flax.convert names the module of another one"
        )
    return known[model_type]


def for_encoder(encoder: EncoderConfig, heads: Heads) -> tuple[ModuleType, dict[str, Any]]:
    """The family whose `config.json` describes this encoder fully, and that file's content.

    Raises:
      UserError: none does; says what keeps the closest from it.
    """
    closest: list[str] | None = None
    for family in FAMILIES:
        try:
            config = family.write_config(encoder, heads)
            theirs = family.read_config(config)
            if not encoder.token_types and theirs.token_types == 1:  # a row of zeros, see write.py
                theirs = dataclasses.replace(theirs, token_types=0)
            lost = differences(encoder, theirs)
        except (UserError, KeyError):
            continue
        if not lost:
            return family, config
        if closest is None or len(lost) < len(closest):
            closest = [f"{line} in {family.MODEL_TYPES[0]}" for line in lost]
    raise UserError("no family of Hugging Face has this encoder: " + "; ".join(closest or []))


def differences(ours: EncoderConfig, theirs: EncoderConfig) -> list[str]:
    """Fields that differ in what a model is, not in how it is trained or run."""
    windows = [[c.window(i) for i in range(c.num_layers)] for c in (ours, theirs)]
    same = set(RUNTIME_FIELDS)
    if windows[0] == windows[1]:  # however that is said
        same |= {"local_window", "global_every"}
        same |= set() if any(windows[0]) else {"local_rotary_base"}
    return [
        f"EncoderConfig.{field.name} = {getattr(ours, field.name)!r} would be "
        f"{getattr(theirs, field.name)!r}"
        for field in dataclasses.fields(EncoderConfig)
        if field.name not in same and getattr(ours, field.name) != getattr(theirs, field.name)
    ]


def weights(family: ModuleType, encoder: EncoderConfig, prefixed: bool = True) -> list[Weight]:
    """A family's table of names; a folder without any head has no prefix before its body's."""
    prefix = family.PREFIX if prefixed else ""
    body = [w._replace(theirs=tuple(prefix + name for name in w.theirs)) for w in family.BODY]
    untied = {} if encoder.tie_head else family.UNTIED
    # Those that count come last.
    more = [
        w._replace(theirs=(untied[name],))
        for w in family.HEADS
        for name in w.theirs
        if name in untied
    ]
    return body + family.HEADS + more


def is_prefixed(family: ModuleType, names: Collection[str]) -> bool:
    """Whether the names of a folder's tensors have the family's prefix."""
    return any(name.startswith(family.PREFIX) for name in names)
