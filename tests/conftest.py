"""Eight CPU devices for every test, set up before anything imports JAX."""

import os
import tempfile

import pytest

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


@pytest.fixture(scope="session")
def opened():
    """opened(rows, cache, seed, vocabulary, gin_flags=()) -> the stream of rows just prepared."""
    from xl_flax.data.prepare import prepare  # late, as this imports JAX
    from xl_flax.data.stream import open_stream

    def open_rows(rows, cache, seed, vocabulary, gin_flags=()):
        caches = prepare(rows.datasets, cache, vocabulary, gin_flags)
        return open_stream(rows, caches, seed, vocabulary)

    return open_rows


@pytest.fixture(scope="session")
def held_out():
    """held_out(mixture, split, layout, cache, vocabulary, **options) -> rows just prepared."""
    from xl_flax.data.layout import Layout
    from xl_flax.data.prepare import DatasetSpec, prepare
    from xl_flax.data.stream import open_held_out

    def open_rows(mixture, split, layout, cache, vocabulary, **options):
        specs = [DatasetSpec(mixture, split, Layout.parse(str(layout)))]
        return open_held_out(specs, prepare(specs, cache, vocabulary), vocabulary, **options)

    return open_rows
