"""Several processes as one run: joining, waiting for each other, being told to stop."""

import argparse
import signal
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from xl_flax import settings
from xl_flax.errors import UserError

T = TypeVar("T")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags with which a process says which run it belongs to."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="join the other processes of a TPU pod or a Slurm job, which JAX recognises by itself",
    )
    group.add_argument("--coordinator", help="host:port of process 0, where nothing else tells it")
    group.add_argument("--num_processes", type=int, help="with --coordinator: how many there are")
    group.add_argument("--process_id", type=int, help="with --coordinator: which one this is")


def initialize(args: argparse.Namespace) -> None:
    """Joins the run that the flags name; must come before any other use of JAX's devices.

    Raises:
      UserError: flags that say only half, or nonsense.
    """
    alone = (args.coordinator, args.num_processes, args.process_id)
    if any(v is not None for v in alone) and None in alone:
        raise UserError("--coordinator, --num_processes and --process_id belong together: give all")
    settings.check("--num_processes", args.num_processes, settings.Count | None)
    settings.check("--process_id", args.process_id, settings.Natural | None)
    if args.distributed or args.coordinator:
        jax.distributed.initialize(args.coordinator, args.num_processes, args.process_id)


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def first_process_first(name: str, function: Callable[[], T]) -> T:
    """Runs `function` on process 0, then, when it is done, on the others; what it returns."""
    first = jax.process_index() == 0
    result = function() if first else None
    barrier(name)
    return result if first else function()


def decide_on_first(decision: bool) -> bool:
    """The decision of process 0, for all: where each would compute it alone, they might differ."""
    if jax.process_count() > 1:
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(decision)))
    return decision


def any_process(decision: bool) -> bool:
    """Whether any process has decided so."""
    if jax.process_count() > 1:
        return bool(multihost_utils.process_allgather(np.asarray(decision)).any())
    return decision


def on_first(function: Callable[[], int | None]) -> int:
    """What `function` returns on process 0, the only one that runs it, to all; None counts as 0.

    Raises:
      UserError: it raised one; the other processes' points to the first.
    """
    error, value = None, 0
    if jax.process_index() == 0:
        try:
            value = function() or 0
        except UserError as raised:
            error = raised
    if jax.process_count() > 1:
        failed, value = multihost_utils.broadcast_one_to_all(np.array([error is not None, value]))
        if failed and error is None:
            raise UserError("process 0 cannot go on: its message says why")
    if error is not None:
        raise error
    return int(value)


class Preemption:
    """Says whether the machine asks to stop (SIGTERM); all processes agree on the step."""

    def __init__(self) -> None:
        self._asked = False
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_) -> None:
        self._asked = True

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked
