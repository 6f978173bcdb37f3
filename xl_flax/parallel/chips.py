"""What the devices can do that a run may be planned for."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device's published figures."""

    name: str
    kinds: tuple[str, ...]  # how JAX's `device_kind` begins
    flops: float  # peak dense FLOP/s in bf16
    memory: float  # bytes
    bandwidth: float  # bytes/s to and from that memory
    ici: float  # bytes/s that it sends to its neighbours over all links, and as many that it gets
    dcn: float | None  # bytes/s of its share of a host's network; None: not known
    torus: int = 0  # dimensions of a slice; 0: every device reaches every other


# Google's pages on each TPU (docs.cloud.google.com/tpu/docs, read in November 2026), with half the
# bidirectional bandwidth as `ici`. NVIDIA's data sheets, with NVLink in one direction as `ici` and
# an adapter of 400 Gbit/s for each GPU as `dcn`.
CHIPS = (
    Chip("v4", ("TPU v4",), 275e12, 32 * 2**30, 1228e9, 300e9, None, torus=3),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * 2**30, 819e9, 200e9, 3.125e9, torus=2),
    Chip("v5p", ("TPU v5",), 459e12, 95 * 2**30, 2765e9, 600e9, 6.25e9, torus=3),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * 2**30, 1638e9, 400e9, 12.5e9, torus=2),
    # Half a chip, which is what JAX calls a device.
    Chip("tpu7x", ("TPU7x",), 1153e12, 96 * 2**30, 3690e9, 300e9, None, torus=3),
    Chip("h100-pcie", ("NVIDIA H100 PCIe",), 756e12, 80e9, 2000e9, 64e9, 50e9),
    Chip("h100", ("NVIDIA H100",), 989e12, 80e9, 3350e9, 450e9, 50e9),
    Chip("h200", ("NVIDIA H200",), 989e12, 141e9, 4800e9, 450e9, 50e9),
)


def chip_of(device: jax.Device) -> Chip | None:
    """The figures of a device, or None where they are not known (CPUs, other GPUs)."""
    for chip in CHIPS:
        if device.device_kind.startswith(chip.kinds):
            return chip
    return None
