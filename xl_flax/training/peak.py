"""Peak FLOPs of devices, of which MFU is a share."""

import jax

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
