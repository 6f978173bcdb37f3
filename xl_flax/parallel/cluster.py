"""Which process of which run this is, from flags or from what started it."""

import os
from typing import NamedTuple

from xl_flax.errors import UserError

try:  # JAX has no public function that only looks; `jax.distributed.initialize` looks by the same
    from jax._src.clusters import ClusterEnv
except ImportError:
    ClusterEnv = None

ADDRESS = "JAX_COORDINATOR_ADDRESS"  # which JAX reads, too
# Open MPI 5 does not name the first host any more, by which JAX recognises mpirun.
MPI = "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"
GIVE = "--coordinator=HOST:PORT --num_processes=N --process_id=I"


class Place(NamedTuple):
    """Where a process stands in a run; None is not known yet."""

    address: str | None
    """Host and port of process 0."""
    count: int | None
    """Of processes."""
    index: int | None


def find(given: Place, seconds: float) -> Place:
    """Completes what the flags give, from TPU pods, GKE, Slurm or mpirun.

    Args:
      given: by flags, which win.
      seconds: how long to wait for the first host's name to be known.

    Raises:
      UserError: nothing is recognised here, or its values are not readable.
    """
    address, count, index = given
    address = address or os.environ.get(ADDRESS)
    if ClusterEnv is not None and None in (address, count, index):
        detect = ClusterEnv.auto_detect_unset_distributed_params
        try:
            address, count, index, _ = detect(address, count, index, None, None, int(seconds))
        except Exception as error:  # of any type: what is missing or wrong in the environment
            raise UserError(
                f"--distributed: what started this process gives no place in a run ({error}); "
                f"give {GIVE}"
            ) from error
    size, rank = (os.environ.get(name) for name in MPI)
    if size and rank and count is None and index is None:
        count, index = (_number(name) for name in MPI)
    if count is None or index is None:
        raise UserError(
            "--distributed: no TPU pod, GKE job, Slurm step or mpirun is recognised here; give "
            f"{GIVE}"
        )
    if address is None:
        raise UserError(
            f"--distributed: nothing names process 0 here: give --coordinator or {ADDRESS}"
        )
    return Place(address, count, index)


def _number(name: str) -> int:
    value = os.environ[name]
    if not value.isdecimal():
        raise UserError(f"{name} = {value!r}: must be a whole number")
    return int(value)
