"""Model FLOPs of a training step and what they are of the hardware's peak (MFU)."""

import jax

from xl_flax.models.config import EncoderConfig

# Peak dense bf16 TFLOP/s per device, by the start of JAX's `device_kind`.
PEAK_TFLOPS = {
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H200": 989.0,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
}


def peak_flops(device: jax.Device) -> float | None:
    """Peak FLOP/s of a device in bf16, or None where it is not known (CPUs, other GPUs)."""
    for kind, tflops in PEAK_TFLOPS.items():
        if device.device_kind.startswith(kind):
            return tflops * 1e12
    return None


def flops_per_token(config: EncoderConfig, length: int, slots: int) -> dict[str, float]:
    """FLOPs of forward and backward pass per token of a row, by part.

    6 per body parameter; 12 · width · attended span per layer for attention's two products;
    6 · width · vocabulary · slots / length for the projection of the prediction slots, and their
    dense layer. Embedding look-ups cost nothing.
    """
    spans = sum(config.attended_span(layer, length) for layer in range(config.num_layers))
    return {
        "body": 6.0 * config.body_params,
        "attention": 12.0 * config.width * spans,
        "projection": 6.0 * config.width * config.vocab_size * slots / length,
        "head": 6.0 * config.head_dense * config.width**2 * slots / length,
    }


def describe(parts: dict[str, float]) -> str:
    """The parts of `flops_per_token` and their sum, as text."""
    listed = " + ".join(f"{name} {value / 1e6:,.2f}M" for name, value in parts.items())
    return f"{listed} = {sum(parts.values()) / 1e6:,.2f}M"
