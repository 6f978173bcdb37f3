"""Devices that are not there, for which programs are compiled nevertheless."""

import dataclasses
import os
from collections.abc import Sequence
from importlib import metadata, util

import jax
from jax.experimental import topologies

from xl_flax.errors import UserError
from xl_flax.parallel.chips import CHIPS, Chip
from xl_flax.quiet import silenced_stderr

NAMES = [chip.name for chip in CHIPS]
_EXAMPLE = "v5e:16x16, v5p:4x4x4 or h100:8"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a run is planned for."""

    devices: Sequence[jax.Device]  # for which its program is compiled
    chip: Chip  # what each of them is
    slices: int = 1  # of TPUs, over which they are spread

    @property
    def stands_in(self) -> bool:
        """The devices are CPUs, as no program is compiled for a GPU that is not there."""
        return not self.chip.torus


def machine(topology: str, num_slices: int = 1) -> Machine:
    """Some TPU slices, as libtpu knows them, or the GPUs of a host, for which CPUs stand in.

    Args:
      topology: of a slice, as "v5e:16x16", or GPUs and their number, as "h100:8".
      num_slices: so many slices, joined by the data-centre network.

    Raises:
      UserError: there is no such topology, or no libtpu.
    """
    name, _, shape = topology.partition(":")
    sizes = shape.split("x")
    chip = next((chip for chip in CHIPS if chip.name == name), None)
    if chip is None or not all(size.isdecimal() and int(size) for size in sizes):
        raise UserError(
            f"--topology={topology} is none: it has the name of a device ({', '.join(NAMES)}) and "
            f"the shape of a TPU slice in chips, or how many GPUs a host has, as in {_EXAMPLE}"
        )
    if chip.torus:
        return Machine(_tpu_devices(topology, sizes, chip, num_slices), chip, num_slices)
    if len(sizes) > 1 or num_slices > 1:
        raise UserError(f"--topology={topology}: GPUs are those of one host, as in {name}:8")
    jax.config.update("jax_num_cpu_devices", int(shape))
    return Machine(jax.devices(), chip)


def _tpu_devices(
    topology: str, sizes: Sequence[str], chip: Chip, num_slices: int
) -> Sequence[jax.Device]:
    name = chip.name
    if len(sizes) != chip.torus:
        raise UserError(f"--topology={topology}: slices of {name} have {chip.torus} dimensions")
    if util.find_spec("libtpu") is None:
        raise UserError("libtpu, which compiles for TPUs, is not installed: pip install -e .[plan]")
    # It must look neither for a TPU nor for the services of a cloud machine, may be loaded beside
    # another process's, and ends a process that has flags for XLA's CPU backend.
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "XLA_FLAGS": "",
    }
    more = {} if num_slices == 1 else {"num_slices": num_slices}
    try:
        with silenced_stderr():  # what it says of the machine that it is not on
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **more)
    except Exception as error:  # libtpu's own kinds
        raise UserError(
            f"libtpu {metadata.version('libtpu')} knows no --topology={topology}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return found.devices
