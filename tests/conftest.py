"""Eight CPU devices for every test, set up before anything imports JAX; packed rows by hand."""

import collections
import gc
import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Most of what tests compile runs a few times only: nearly all of their time would go into XLA's
# optimisations. Without them, the older emitters are three times as fast as the newer ones.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
# XLA sizes its thread pool by this; with fewer threads than fake devices collectives deadlock.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Runs in processes of their own compile the same programs again and again.
    _compiled = tempfile.TemporaryDirectory(prefix="xl-flax-compiled-")  # gone when pytest ends
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# Tracing makes millions of objects that stay: looking through them for garbage was 6 % of the time.
gc.set_threshold(100_000, 50, 100)

CLS, SEP, FIRST = 2, 3, 5


def pytest_collection_modifyitems(items):
    """Files with many slow tests begin: the processes then end at about the same time."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True, scope="module")
def no_gin_left():
    """What one file of tests binds in Gin does not reach the next."""
    yield
    import gin

    gin.clear_config()


@pytest.fixture(autouse=True, scope="module")
def no_programs_left():
    """What one file of tests compiled is of no use to the next, and takes gigabytes in the end."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(autouse=True, scope="module")
def no_modules_left(tmp_path_factory):
    """Modules that one file of tests wrote are unknown to the next, which may use their names."""
    yield
    base = str(tmp_path_factory.getbasetemp())
    for name, module in [*sys.modules.items()]:
        file = getattr(module, "__dict__", {}).get("__file__")
        if file and str(file).startswith(base):
            del sys.modules[name]


@pytest.fixture
def parallel_rows():
    """parallel_rows(groups, sides, vocab=96, length=None, seed=0) -> a batch and its sentences.

    `groups` says how many each row holds. The batch is what `Stream.rows` gives; sentences[r][s]
    is segment s + 1 of row r, without the special tokens.
    """

    def make(groups, sides=2, vocab=96, length=None, seed=0, words=(1, 5)):
        rng = np.random.default_rng(seed)
        sentences = [
            [rng.integers(FIRST, vocab, rng.integers(*words)) for _ in range(count * sides)]
            for count in groups
        ]
        return pack(sentences, sides, length), sentences

    return make


@pytest.fixture
def pack_rows():
    return pack


def pack(sentences, sides=2, length=None):
    longest = max(sum(len(s) + 2 for s in row) for row in sentences)
    batch = {
        name: np.zeros((len(sentences), length or longest), np.int32)
        for name in ("tokens", "segment_ids", "positions")
    }
    for r, row in enumerate(sentences):
        at = 0
        for s, words in enumerate(row):
            text = [CLS, *words, SEP]
            part = slice(at, at + len(text))
            batch["tokens"][r, part] = text
            batch["segment_ids"][r, part] = s + 1
            batch["positions"][r, part] = np.arange(len(text))
            at += len(text)
    rows = np.arange(len(sentences), dtype=np.int32)
    batch["languages"] = (rows[:, None] + np.arange(sides)) % (sides + 1)
    batch["languages"] = batch["languages"].astype(np.int32)
    batch["row_id"] = 100 + rows
    return batch


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def _take_one_device(patch):
    """Commands in this process take one device, as most users have: eight fake ones take longer."""
    import jax  # late, as above

    from xl_flax import evaluate
    from xl_flax.parallel.mesh import make_partitioning
    from xl_flax.training import setup, transfer

    for module in (setup, evaluate, transfer):
        patch.setattr(
            module, "make_partitioning", lambda config: make_partitioning(config, jax.devices()[:1])
        )


@pytest.fixture(scope="module")
def one_device():
    """Commands that the file's tests run here take one device."""
    with pytest.MonkeyPatch.context() as patch:
        _take_one_device(patch)
        yield


@pytest.fixture
def run_here(monkeypatch, capfd):
    """run_here("train", flags) -> what the command prints; in this process, on one device."""
    import gin

    from xl_flax import evaluate, train

    _take_one_device(monkeypatch)

    def run(command, flags):
        capfd.readouterr()
        try:
            {"train": train, "evaluate": evaluate}[command].main(flags)
        finally:
            gin.clear_config()  # what it binds ends with the command
        return capfd.readouterr().out

    return run


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
