"""Compiled programs are kept from one run to the next, and counted."""

import os
import platform
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

LARGEST = 4 * 2**30  # bytes of all programs together; those used least recently go


def keep() -> None:
    """Keeps programs in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names another.

    A start that finds its step there does not compile it. Of several processes only the first one
    writes: machines with homes of their own need a folder that all have mounted.
    JAX_ENABLE_COMPILATION_CACHE=false compiles anew.
    """
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if jax.config.jax_compilation_cache_dir is None and os.path.isabs(root):  # there is a home
        folder = os.path.join(root, "xl_flax", f"compiled-{_processor()}")
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_compilation_cache_max_size", LARGEST)
        # Also the many small ones, which take as long as the step together.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _processor() -> str:
    """Names what a CPU can do: a home may be mounted on machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [platform.processor()]
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{zlib.crc32(features.encode()):08x}"


def counter() -> Callable[[], int]:
    """Counts programs: a function that says how many XLA has compiled since this call.

    One that is found among those kept counts, too: it would have been compiled.
    """
    if not _counted:
        _counted.append(0)
        jax.monitoring.register_event_duration_secs_listener(_count)
    begin = _counted[0]
    return lambda: _counted[0] - begin


_counted: list[int] = []


def _count(event: str, *_: Any, **__: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _counted[0] += 1
