"""`model.json`: what a checkpoint says of itself, all that evaluation and conversion read."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig

# 2: the checkpoint has a `checksums.json`, which those of format 1 lack.
FORMAT = 2
# How a model is computed, not what it is: these may change between runs of the same model.
RUNTIME_FIELDS = frozenset(
    {
        "dtype",
        "attention",
        "scan",
        "remat",
        "embedding_dropout",
        "attention_dropout",
        "attention_out_dropout",
        "mlp_out_dropout",
        "init_std",
        "scale_residual_init",
    }
)


@dataclasses.dataclass(frozen=True)
class Description:
    """A model: its encoder, heads, vocabulary and what it was trained on."""

    encoder: EncoderConfig
    heads: Mapping[str, Mapping[str, Any]]  # settings by name, see models/heads.py
    vocabulary: str  # sha256 of the vocabulary file
    languages: Mapping[str, tuple[str, ...]]  # by objective; language ids index these
    objectives: Mapping[str, Any]  # by name: what it was trained with
    step: int = 0
    # The metric by which it was the run's best when it was saved, or "last,patience:METRIC".
    chosen_by: str | None = None
    # Of heads that began as another checkpoint's: what they were trained on before ("trained"), and
    # in which "languages".
    heads_from: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    # The same of the encoder, if it was trained with labels before.
    encoder_from: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def all_languages(self) -> list[str]:
        """The languages of all objectives, sorted: the rows of the encoder's language table."""
        return sorted({language for names in self.languages.values() for language in names})

    def to_json(self) -> bytes:
        """The text of `model.json`."""
        fields = dataclasses.asdict(self) | {"format": FORMAT, "encoder": self.encoder.to_dict()}
        return (json.dumps(fields, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes, path: str) -> "Description":
        """Reads `model.json`.

        Raises:
          UserError: it is damaged or written by a newer version.
        """
        try:
            fields = json.loads(text)
            if fields.pop("format") not in range(1, FORMAT + 1):
                raise UserError(f"{path} was written by a newer version of XL-Flax; update it")
            encoder = EncoderConfig.from_dict(fields.pop("encoder"))
            if isinstance(fields["heads"], list):  # version 0.1 had no heads with settings
                fields["heads"] = {name: {} for name in fields["heads"]}
            if not all(isinstance(settings, dict) for settings in fields["heads"].values()):
                raise TypeError("heads are not settings by name")
            if not isinstance(fields.get("step", 0), int):
                raise TypeError("step is no number")
            fields["languages"] = {k: tuple(v) for k, v in fields["languages"].items()}
            return cls(encoder=encoder, **fields)
        except UserError as error:
            named = path in str(error)
            raise UserError(str(error) if named else f"{path}: {error}") from None
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({error}); choose another checkpoint") from error

    def differences(self, other: "Description") -> list[str]:
        """What keeps a run of `other` from going on from this model, one line each."""
        lines = []
        mine, theirs = self.encoder.to_dict(), other.encoder.to_dict()
        for name in mine:
            if name not in RUNTIME_FIELDS and mine[name] != theirs[name]:
                lines.append(f"EncoderConfig.{name} was {mine[name]} and is now {theirs[name]}")
        if self.vocabulary != other.vocabulary:
            lines.append(
                f"the vocabulary (run_vocabulary.path) was {self.vocabulary[:12]}… and is now "
                f"{other.vocabulary[:12]}…"
            )
        before, now = (json.loads(json.dumps(dict(d.heads))) for d in (self, other))
        if before != now:
            lines.append(_changed("set of heads", before, now))
        if set(self.objectives) != set(other.objectives):
            lines.append(
                _changed(
                    "TrainConfig.objectives", sorted(self.objectives), sorted(other.objectives)
                )
            )
        for name in sorted(set(self.objectives) & set(other.objectives)):
            before, now = (tuple(d.languages.get(name, ())) for d in (self, other))
            if before != now:
                lines.append(_changed(f"{name}'s list of languages", before, now))
            before, now = self.objectives[name], json.loads(json.dumps(other.objectives[name]))
            for key in sorted(set(before) | set(now)):
                if before.get(key) != now.get(key):
                    lines.append(_changed(f"{name}.{key}", before.get(key), now.get(key)))
        return lines


def trained_on(head: str, description: Description) -> str:
    """Mixture and split of a head's objective, as in "nli_eng/train", with "[shots]"."""
    objective = description.objectives.get(head)
    if objective is None or "mixture" not in objective:
        return "elsewhere"
    mixtures = "+".join(dict.fromkeys(name for _, name in objective["mixture"]))
    few = objective.get("shots")
    return f"{mixtures}/{objective.get('split', 'train')}" + (f"[{few}]" if few else "")


def _changed(what: str, before: Any, now: Any) -> str:
    return f"{what} was {before} and is now {now}"
