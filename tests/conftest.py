"""Eight CPU devices for every test, set up before anything imports JAX."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
# XLA sizes its thread pool by this; with fewer threads than fake devices collectives deadlock.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Runs in processes of their own compile the same programs again and again.
    _compiled = tempfile.TemporaryDirectory(prefix="xl-flax-compiled-")  # gone when pytest ends
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
