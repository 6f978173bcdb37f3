"""Dependency parsing: the head of each word, and its relation to it.

Shapes: Batch, Length, W places for words of a row, H = 1 + W heads, C relations.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import gin
import jax.numpy as jnp
import numpy as np
import optax

from xl_flax.data.features import Features, FeatureSpec
from xl_flax.data.stream import Stream
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.flops import biaffine_flops
from xl_flax.models.heads import HeadSettings, Model
from xl_flax.models.parsing import parse_rows
from xl_flax.objectives.base import Batch, Inputs, LogName, Loss, Mean, Objective, row_keys
from xl_flax.ops.languages import language_rows, language_sums
from xl_flax.settings import Count, Fraction

KINDS = {"head": "token", "relation": "token"}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class DependencyParsing(Objective):
    """A biaffine head, named as the objective (Dozat and Manning 2017, arXiv:1611.01734).

    The loss of a word is the cross-entropy of its head among the words of its sentence and the
    root, and that of its relation to the right head. Sentences are read from rows with several of
    them. One that is longer than a row is dropped, since a part of a sentence is no tree: the heads
    of its words may lie outside. The cache's tables say how many were dropped.

    Raises:
      UserError: a setting that makes no sense.
    """

    arc_width: Count = 500  # of what heads are scored with
    relation_width: Count = 100  # of what relations are scored with
    dropout: Fraction = 0.33  # of both
    name: LogName = "parsing"

    # As scores, but that each word takes the head it likes best: they need not make a tree.
    metrics: ClassVar[Mapping[str, Mean]] = {
        "loss": Mean("loss", by_language=True),
        "uas": Mean("attached", by_language=True),
        "las": Mean("labelled", by_language=True),
        "fill": Mean("tokens", "positions", on_console=False),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.rows.too_long not in (None, "drop"):
            self.fail(
                f"rows: Rows.too_long = {self.rows.too_long!r} leaves parts of sentences, in which "
                "words have lost their heads: leave it out, or set it to 'drop'"
            )

    def usual_example(self) -> tuple[int, Features]:
        """A sentence with the 37 universal relations."""
        labels = tuple(map(str, range(37)))
        return 1, {"head": FeatureSpec("token"), "relation": FeatureSpec("token", labels=labels)}

    def heads(self, stream: Stream) -> Mapping[str, HeadSettings]:
        """The biaffine head with the relations of the task."""
        settings = {
            "kind": "biaffine",
            "labels": list(stream.features["relation"].labels),
            "arc_width": self.arc_width,
            "relation_width": self.relation_width,
            "dropout": self.dropout,
        }
        return {self.name: settings}

    def check(self, stream: Stream) -> None:
        """Raises UserError unless examples are single sentences with heads and relations."""
        found = {name: spec.kind for name, spec in stream.features.items()}
        right = KINDS.items() <= found.items() and stream.features["relation"].labels
        if not right or stream.num_texts > 1:
            listed = ", ".join(f"{name} ({kind})" for name, kind in found.items()) or "none"
            raise UserError(
                f"objective {self.name!r} reads sentences with the features 'head' and 'relation' "
                "(with labels), both of kind 'token', as tasks.trees.add_tree_task makes them, but "
                f"examples of {', '.join(stream.tasks[:3])} have {stream.num_texts} "
                f"text{'s' if stream.num_texts > 1 else ''} and the features: {listed}"
            )

    def buffers(
        self, vocabulary: Vocabulary, stream: Stream, languages: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Rows of the encoder's language table."""
        del vocabulary
        return {"language_rows": language_rows(stream.languages, languages)}

    def loss(self, model: Model, batch: Batch, inputs: Inputs) -> Loss:
        """Cross-entropies of heads and relations, in nats, summed over words.

        Args:
          model: with the biaffine head.
          batch: tokens, segment_ids, positions, head, relation int32[B, L]; languages int32[B, 1];
            row_id int32[B].
          inputs: of the objective.

        Returns:
          Sums: count (words), attached (of which the head is the one that scores best), labelled
          (and the relation, too), tokens, positions (B · L), and those of each language.
        """
        keys_B = row_keys(inputs.key, batch["row_id"]) if inputs.train else None
        language_rows = inputs.buffers["language_rows"]
        words, parse = parse_rows(model, self.name, batch, language_rows, keys_B)
        head_BxW, relation_BxW = (
            jnp.take_along_axis(batch[name], words.column_BxW, axis=1) for name in KINDS
        )
        # A sentence's words have the places behind those before it: of word 1 the first, column 1.
        head_BxW = jnp.where(head_BxW > 0, words.before_BxW + head_BxW, 0)
        relations_BxWxC = model.heads[self.name].relations(parse, head_BxW)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        losses_BxW = cross_entropy(parse.arcs_BxWxH, head_BxW)
        losses_BxW += cross_entropy(relations_BxWxC, jnp.maximum(relation_BxW, 0))
        attached_BxW = parse.arcs_BxWxH.argmax(axis=-1) == head_BxW
        labelled_BxW = attached_BxW & (relations_BxWxC.argmax(axis=-1) == relation_BxW)
        filled_BxW = words.filled_BxW.astype(jnp.float32)
        values = {
            "loss": jnp.where(words.filled_BxW, losses_BxW, 0),
            "count": filled_BxW,
            "attached": filled_BxW * attached_BxW,
            "labelled": filled_BxW * labelled_BxW,
        }
        languages_BxW = jnp.broadcast_to(batch["languages"], filled_BxW.shape)
        sums = {
            **{name: value.sum() for name, value in values.items() if name != "loss"},
            "tokens": jnp.sum(batch["segment_ids"] != 0, dtype=jnp.float32),
            "positions": jnp.float32(batch["segment_ids"].size),
            **language_sums(len(inputs.stream.languages), languages_BxW, **values),
        }
        return Loss(values["loss"].sum(), sums)

    def flops(self, encoder: EncoderConfig, stream: Stream, two_passes: bool) -> dict[str, float]:
        """One pass through the encoder, and the head as if each token were a word."""
        widths = self.arc_width, self.relation_width
        labels = len(stream.features["relation"].labels)
        return super().flops(encoder, stream, two_passes) | biaffine_flops(
            encoder, stream.length, *widths, labels
        )
