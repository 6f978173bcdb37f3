"""FLOPs of an encoder and of heads, per token of a row.

They are those that the model needs, as for PaLM's MFU (Chowdhery et al. 2022, arXiv:2204.02311,
appendix B), not those that the hardware carries out: what `remat` computes again, or what slots
without a target cost, is not counted. Padding counts as text does (the log's `fill` says how much
of the rows is text), and attention counts as if texts in a row saw one another.
"""

from collections.abc import Sequence

from xl_flax.models.config import EncoderConfig


def encoder_flops(
    config: EncoderConfig, length: int, layers: Sequence[int] | None = None, backward: bool = True
) -> dict[str, float]:
    """FLOPs of the layers that `Encoder` runs, per token of a row, by part.

    Forward and backward: 6 per parameter of these layers, and 12 · width · attended span per layer
    for attention's two products; the forward pass is a third of that. Embedding look-ups cost
    nothing.

    Args:
      config: of the encoder.
      length: tokens of a row.
      layers: whose states are computed, as in `Encoder`; None: the last one's.
      backward: with the backward pass.
    """
    depth = config.num_layers if layers is None else max(config.layer_numbers(layers))
    spans = sum(config.attended_span(layer, length) for layer in range(depth))
    passes = 3.0 if backward else 1.0
    return {
        "body": passes * 2 * config.body_params(depth),
        "attention": passes * 4 * config.width * spans,
    }


def mlm_head_flops(config: EncoderConfig, targets: float) -> dict[str, float]:
    """FLOPs of the MLM head's forward and backward pass, per token of a row, by part.

    6 · width · vocabulary for the projection of each target, and 6 · width² for its dense layer.

    Args:
      config: of the encoder.
      targets: share of the tokens that are predicted.
    """
    return {
        "projection": 6.0 * config.width * config.vocab_size * targets,
        "head": 6.0 * config.head_dense * config.width**2 * targets,
    }


def biaffine_flops(
    config: EncoderConfig, length: int, arc_width: int, relation_width: int, labels: int
) -> dict[str, float]:
    """FLOPs of a biaffine head's forward and backward pass, per word, by part.

    6 per parameter that a word meets: those of two MLPs of width A + R, A² of arcs and C · R² of
    relations; and 6 · A for each word of the row that is scored as its head.

    Args:
      config: of the encoder.
      length: words of a row.
      arc_width: A.
      relation_width: R.
      labels: C relations.
    """
    mlps = 2 * config.width * (arc_width + relation_width)
    return {
        "arcs": 6.0 * (arc_width**2 + arc_width * length),
        "relations": 6.0 * labels * relation_width**2,
        "head": 6.0 * mlps,
    }


def describe(parts: dict[str, float]) -> str:
    """Parts and their sum, as text."""
    listed = " + ".join(f"{name} {value / 1e6:,.2f}M" for name, value in parts.items())
    return f"{listed} = {sum(parts.values()) / 1e6:,.2f}M"
