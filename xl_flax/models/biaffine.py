"""Dependency parsing by deep biaffine attention (Dozat and Manning 2017, arXiv:1611.01734).

Every word scores the words of its sentence, and the root above them, as its head, and the relations
that it may have to a head. A word is the state of its first piece, the root that of its sentence's
[CLS]. Words of a row of several sentences see those of their own only.

Shapes: Batch, Length, D = width, W places for words of a row, H = 1 + W heads, A and R the widths
of what arcs and relations are scored with, C relations.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.dropout import dropout, row_keys
from xl_flax.models.layers import normal, param, project, zeros

NO_ARC = -1e9  # the score of what is no word of the sentence; finite, so that gradients are
FIRST_SITE = 2  # of dropout: the encoder's are 0 and 1


class Words(NamedTuple):
    """Where the words of rows are, in their order."""

    filled_BxW: jax.Array  # bool, whether there is a word
    column_BxW: jax.Array  # int32, of its first piece
    root_BxW: jax.Array  # int32, column of its sentence's [CLS]
    before_BxW: jax.Array  # int32, places in front of its sentence's first word


def find_words(first_BxL: jax.Array, positions_BxL: jax.Array) -> Words:
    """The words of packed rows.

    Args:
      first_BxL: bool, where a word begins: in no [CLS] or [SEP], so W = L - 2 places are enough.
      positions_BxL: int32, from 0 in each sentence.
    """
    length = first_BxL.shape[1]

    def find(first_L, positions_L):
        column_W = jnp.nonzero(first_L, size=length - 2, fill_value=0)[0].astype(jnp.int32)
        counts_L = jnp.cumsum(first_L, dtype=jnp.int32)
        filled_W = jnp.arange(length - 2) < counts_L[-1]
        root_W = column_W - positions_L[column_W]
        return Words(filled_W, column_W, root_W, counts_L[root_W])

    return jax.vmap(find)(first_BxL, positions_BxL)


class Parse(NamedTuple):
    """What a head says of the words of rows; float32."""

    arcs_BxWxH: jax.Array  # scores of heads: of the root, then of the word in each place
    dependent_BxWxR: jax.Array  # what relations are scored with: each word as a dependent,
    head_BxWxR: jax.Array  # as a head,
    root_BxWxR: jax.Array  # and the root of its sentence as its head


class BiaffineHead(nnx.Module):
    """Scores of heads and relations.

    Each MLP has one layer, ReLU and dropout, as the paper's with its default widths and rate.
    """

    def __init__(
        self,
        config: EncoderConfig,
        rngs: nnx.Rngs,
        *,
        labels: Sequence[str],
        arc_width: int = 500,
        relation_width: int = 100,
        dropout: float = 0.33,
    ):
        """The head.

        Args:
          config: of the encoder.
          rngs: for its parameters.
          labels: names of the relations, in the order of the scores.
          arc_width: A.
          relation_width: R.
          dropout: of what the MLPs return.

        Raises:
          UserError: a setting that makes no head.
        """
        if isinstance(labels, str) or not labels:
            raise UserError(f"labels = {labels!r} of a biaffine head: give a list of relations")
        if min(arc_width, relation_width) < 1 or not 0 <= dropout < 1:
            raise UserError(
                f"arc_width = {arc_width}, relation_width = {relation_width}, dropout = {dropout} "
                "of a biaffine head: widths are at least 1, dropout is in [0, 1)"
            )
        init, a, r, c = normal(config.init_std), arc_width, relation_width, len(labels)
        self.rate = dropout
        # Two MLPs each, side by side: of dependents and of heads.
        self.dependent = param(init, rngs, (config.width, a + r), ("embed", None))
        self.dependent_bias = param(zeros, rngs, (a + r,), (None,))
        self.head = param(init, rngs, (config.width, a + r), ("embed", None))
        self.head_bias = param(zeros, rngs, (a + r,), (None,))
        self.arc = param(init, rngs, (a, a), (None, None))  # U(1) of arcs
        self.arc_head = param(zeros, rngs, (a,), (None,))  # u(2)
        self.relation = param(init, rngs, (r, c, r), (None, None, None))  # U(1) of relations
        self.relation_dependent = param(init, rngs, (r, c), (None, None))  # U(2), its two halves
        self.relation_head = param(init, rngs, (r, c), (None, None))
        self.relation_bias = param(zeros, rngs, (c,), (None,))

    def __call__(self, hidden_BxLxD: jax.Array, words: Words, keys: Any = None) -> Parse:
        """Scores of heads, and what relations are scored with.

        Args:
          hidden_BxLxD: the encoder's states.
          words: from `find_words`.
          keys: for dropout, key array [B]; None: without.
        """
        hidden_BxLxD, split = hidden_BxLxD.astype(jnp.float32), self.arc.shape[0]

        def mlp(x, kernel, bias, site):
            y = jax.nn.relu(project(x, kernel[...]) + bias[...])
            return dropout(y, row_keys(keys, FIRST_SITE + site), self.rate)

        dependent = mlp(_at(hidden_BxLxD, words.column_BxW), self.dependent, self.dependent_bias, 0)
        head_BxLx = mlp(hidden_BxLxD, self.head, self.head_bias, 1)
        head, root = _at(head_BxLx, words.column_BxW), _at(head_BxLx, words.root_BxW)
        asks_BxWxA = project(dependent[..., :split], self.arc[...]) + self.arc_head[...]
        scores_BxWxW = jnp.einsum("bwa,bva->bwv", asks_BxWxA, head[..., :split])
        own_BxWxW = words.root_BxW[:, :, None] == words.root_BxW[:, None]
        own_BxWxW &= words.filled_BxW[:, None] & ~jnp.eye(own_BxWxW.shape[1], dtype=bool)
        root_BxW = (asks_BxWxA * root[..., :split]).sum(-1)
        arcs = [root_BxW[..., None], jnp.where(own_BxWxW, scores_BxWxW, NO_ARC)]
        relation = (x[..., split:] for x in (dependent, head, root))
        return Parse(jnp.concatenate(arcs, axis=-1), *relation)

    def relations(self, parse: Parse, heads_BxW: jax.Array) -> jax.Array:
        """Scores of each word's relations to a head, float32[B, W, C].

        Args:
          parse: from a call.
          heads_BxW: int32, numbers of columns of `arcs_BxWxH`.
        """
        above_BxWxR = _at(parse.head_BxWxR, jnp.maximum(heads_BxW - 1, 0))
        above_BxWxR = jnp.where(heads_BxW[..., None] > 0, above_BxWxR, parse.root_BxWxR)
        asked_BxWxCxR = project(above_BxWxR, self.relation[...])
        scores_BxWxC = jnp.einsum("bwcr,bwr->bwc", asked_BxWxCxR, parse.dependent_BxWxR)
        scores_BxWxC += project(parse.dependent_BxWxR, self.relation_dependent[...])
        scores_BxWxC += project(above_BxWxR, self.relation_head[...])
        return scores_BxWxC + self.relation_bias[...]

    def best_relations(self, parse: Parse, without: int) -> jax.Array:
        """The relation that scores best of each word to each other as its head, int32[B, W, W].

        Args:
          parse: from a call.
          without: number of a relation that is none between words, "root".
        """
        other_C = jnp.arange(self.relation_bias.shape[0]) != without

        def best(row: tuple[jax.Array, jax.Array]) -> jax.Array:  # all scores of one row at a time
            dependent_WxR, head_WxR = row
            asked_WxCxR = project(head_WxR, self.relation[...])
            scores_WxWxC = jnp.einsum("vcr,wr->wvc", asked_WxCxR, dependent_WxR)
            scores_WxWxC += project(dependent_WxR, self.relation_dependent[...])[:, None]
            scores_WxWxC += project(head_WxR, self.relation_head[...]) + self.relation_bias[...]
            return jnp.where(other_C, scores_WxWxC, -jnp.inf).argmax(axis=-1)

        return jax.lax.map(best, (parse.dependent_BxWxR, parse.head_BxWxR))


def _at(x_BxLxK: jax.Array, index_BxW: jax.Array) -> jax.Array:
    """The entries at these places, [B, W, K]."""
    return jnp.take_along_axis(x_BxLxK, index_BxW[..., None], axis=1)
