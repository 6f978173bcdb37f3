"""What Orbax's threads print of errors that they also raise."""

import sys
from typing import Any

from absl import logging


def raise_only() -> None:
    """Leaves errors of saving to whoever waits for it, without tracebacks of each thread."""
    logging.set_verbosity(logging.FATAL)
    if sys.unraisablehook is not _unless_late:
        _others.append(sys.unraisablehook)
        sys.unraisablehook = _unless_late


_others: list[Any] = []


def _unless_late(error: Any) -> None:
    # A write that ends after another one failed finds nobody who waits.
    if str(error.exc_value) != "Event loop is closed":
        _others[-1](error)
