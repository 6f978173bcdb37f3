"""What Orbax's threads print of errors that they also raise."""

import logging
import sys
from typing import Any

from absl import logging as absl_logging


def raise_only() -> None:
    """Leaves errors to whoever waits for what was started, without tracebacks of each thread."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    # A read or write that ends after another one failed finds nobody who waits.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    if sys.unraisablehook is not _unless_late:
        _others.append(sys.unraisablehook)
        sys.unraisablehook = _unless_late


_others: list[Any] = []


def _unless_late(error: Any) -> None:
    if str(error.exc_value) != "Event loop is closed":
        _others[-1](error)
