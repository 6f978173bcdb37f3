"""Devices that are not there, for which programs are compiled nevertheless."""

import os
from collections.abc import Sequence
from importlib import metadata, util

import jax
from jax.experimental import topologies

from xl_flax.errors import UserError
from xl_flax.parallel.chips import CHIPS
from xl_flax.quiet import silenced_stderr

TPUS = [chip.name for chip in CHIPS if chip.torus]
_EXAMPLE = "v5e:16x16, v5p:4x4x4 or v6e:8x16"


def tpu_devices(topology: str, num_slices: int = 1) -> Sequence[jax.Device]:
    """The chips of some TPU slices, as libtpu knows them; it needs no TPU.

    Args:
      topology: of a slice, as "v5e:16x16".
      num_slices: so many of them, joined by the data-centre network.

    Raises:
      UserError: there is no such topology, or no libtpu.
    """
    name, _, shape = topology.partition(":")
    sizes = shape.split("x")
    chip = next((chip for chip in CHIPS if chip.torus and chip.name == name), None)
    if chip is None or not all(size.isdecimal() and int(size) for size in sizes):
        raise UserError(
            f"--topology={topology} is none: it has the name of a TPU ({', '.join(TPUS)}) and the "
            f"shape of a slice in chips, as in {_EXAMPLE}"
        )
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
