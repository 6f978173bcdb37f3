"""How far work has come: a bar on terminals, a line now and then in logs."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

PACE = 30.0  # seconds between lines


@contextlib.contextmanager
def progress(total: int | None, what: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Shows on standard error how far a loop has come.

    Args:
      total: how much there is to do, None if unknown.
      what: is being done.
      unit: of what is counted, in the plural.

    Yields:
      A function to be called with how much has been done since the last call.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, desc=what, unit=f" {unit}", unit_scale=True, mininterval=0.1) as bar:
            yield bar.update
        return
    done, begin = 0, time.monotonic()
    last = begin

    def update(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= PACE:
            last = now
            of = f" of {total:,}" if total else ""
            pace = f"{done / (now - begin):,.0f} a second"
            print(f"{what}: {done:,}{of} {unit}, {pace}", file=sys.stderr, flush=True)

    yield update
