import itertools
import os
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from xl_flax.data.batches import Prefetcher, global_batch, needed_rows
from xl_flax.data.stream import Rows
from xl_flax.errors import UserError


def mesh_of(data, tensor):
    return jax.make_mesh((data, tensor), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)


class Counting:
    """Rows that say their index, and which were read."""

    def __init__(self):
        self.read = []

    def rows(self, indices):
        self.read += indices
        return {"tokens": np.array(indices)[:, None] * np.ones((1, 3)), "row_id": np.array(indices)}


@pytest.mark.parametrize("data, tensor", [(8, 1), (4, 2), (2, 4), (1, 8)])
@pytest.mark.parametrize("spec", [PartitionSpec("data"), PartitionSpec("data", None), None])
def test_a_batch_is_the_same_on_every_mesh_and_reads_each_row_once(data, tensor, spec):
    stream = Counting()
    sharding = NamedSharding(mesh_of(data, tensor), spec or PartitionSpec())
    batch = global_batch(stream, 100, 16, sharding)
    assert stream.read == list(range(100, 116))
    assert np.asarray(batch["row_id"]).tolist() == list(range(100, 116))
    assert np.asarray(batch["tokens"])[:, 2].tolist() == list(range(100, 116))
    shard = batch["tokens"].addressable_shards[0].data
    assert shard.shape == (16 // (data if spec else 1), 3)


@pytest.mark.parametrize(
    "data, tensor, hosts, expected",
    [
        (8, 1, 1, [range(16)]),
        (8, 1, 2, [range(8), range(8, 16)]),
        (8, 1, 4, [range(0, 4), range(4, 8), range(8, 12), range(12, 16)]),
        # 2 data x 4 tensor over 4 hosts of 2 devices: pairs of hosts need the same rows.
        (2, 4, 4, [range(8), range(8), range(8, 16), range(8, 16)]),
        (2, 4, 2, [range(8), range(8, 16)]),
        (1, 8, 4, [range(16)] * 4),
    ],
)
def test_what_a_host_reads_follows_from_its_devices(data, tensor, hosts, expected):
    mesh = mesh_of(data, tensor)
    parts = NamedSharding(mesh, PartitionSpec("data")).devices_indices_map((16,))
    by_host = np.array_split(mesh.devices.flatten(), hosts)
    for devices, rows in zip(by_host, expected, strict=True):
        held = {device: parts[device] for device in devices}
        assert needed_rows(held, 16).tolist() == list(rows)


def test_devices_that_are_not_neighbours_need_rows_with_a_gap():
    parts = NamedSharding(mesh_of(8, 1), PartitionSpec("data")).devices_indices_map((16,))
    first, last = jax.devices()[0], jax.devices()[-1]
    assert needed_rows({d: parts[d] for d in (first, last)}, 16).tolist() == [0, 1, 14, 15]


def test_a_batch_that_the_mesh_does_not_divide_is_an_error():
    sharding = NamedSharding(mesh_of(4, 2), PartitionSpec(("data", "tensor")))
    with pytest.raises(UserError, match=r"batch of 12 rows .* 8 groups .* data x tensor.*multiple"):
        global_batch(Counting(), 0, 12, sharding)


def test_held_out_rows_make_batches_too(make_cache, tiny_vocabulary, random_examples, held_out):
    cache = make_cache({"xx": random_examples(0, 20)}, split="test")
    rows = held_out("xx", "test", 16, cache, tiny_vocabulary)
    sharding = NamedSharding(mesh_of(8, 1), PartitionSpec("data"))
    batch = global_batch(rows, 0, 8 * (len(rows) // 8 + 1), sharding)
    assert (np.asarray(batch["row_id"])[: len(rows)] == np.arange(len(rows))).all()
    assert (np.asarray(batch["row_id"])[len(rows) :] == -1).all()


WORKER = """
import sys, types
import jax, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
jax.config.update("jax_cpu_collectives_implementation", "gloo")
port, hosts, host, directory, out, *shapes = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", int(hosts), int(host))
from xl_flax.data.batches import global_batch
from xl_flax.data.manifest import Cache
from xl_flax.data.prepare import prepare
from xl_flax.data.stream import Rows, open_stream
special = types.SimpleNamespace(cls=0, pad=1, sep=2, unk=3, mask=99)
vocabulary = types.SimpleNamespace(size=100, special=special, fingerprint="f" * 64, path="")
rows = Rows("both", 16)
caches = prepare(rows.datasets, Cache(directory, ["m"], "stop"), vocabulary)
stream = open_stream(rows, caches, 0, vocabulary)
devices = np.array(sorted(jax.devices(), key=lambda d: (d.process_index, d.id)))
assert len(devices) == 8 and len(jax.local_devices()) == 8 // int(hosts)
inner, read = stream.rows, []
stream.rows = lambda indices: (read.extend(indices), inner(indices))[1]
for shape in shapes:
    shape = [int(n) for n in shape.split("x")]
    mesh = Mesh(devices.reshape(shape), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    read.clear()
    batch = global_batch(stream, 40, 16, NamedSharding(mesh, PartitionSpec("data")))
    # A collective over all processes sees the whole batch.
    everywhere = NamedSharding(mesh, PartitionSpec())
    whole = jax.jit(lambda b: b, out_shardings=everywhere)(batch)
    arrays = {name: np.asarray(array.addressable_data(0)) for name, array in whole.items()}
    np.savez(f"{out}-{shape[0]}x{shape[1]}.npz", read=np.array(read), **arrays)
jax.distributed.shutdown()
"""


def run_hosts(folder, directory, hosts, shapes):
    """What each of some real processes read, and the whole batch as each of them sees it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": f"{8 // hosts}",
        "JAX_PLATFORMS": "cpu",
    }
    outs = [f"{folder}/{hosts}-{host}" for host in range(hosts)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, f"{port}", f"{hosts}", f"{i}", directory, out, *shapes],
            env=environment,
            stderr=subprocess.PIPE,
        )
        for i, out in enumerate(outs)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors.decode()[-2000:]
    finally:
        for process in processes:
            process.kill()
    return {shape: [dict(np.load(f"{out}-{shape}.npz")) for out in outs] for shape in shapes}


@pytest.mark.slow
def test_rows_are_identical_for_one_two_and_four_real_hosts(
    make_cache, tiny_vocabulary, random_examples, tmp_path, opened
):
    tasks = {"xx": random_examples(0, 300), "yy": random_examples(1, 90)}
    cache = make_cache(tasks, {"both": {"xx": 1, "yy": 2}})
    expected = opened(Rows("both", 16), cache, 0, tiny_vocabulary).rows(range(40, 56))
    first, last = range(40, 48), range(48, 56)
    reads = {
        2: {"8x1": [first, last], "2x4": [first, last]},
        4: {
            "8x1": [range(40, 44), range(44, 48), range(48, 52), range(52, 56)],
            "2x4": [first, first, last, last],
        },
    }
    for hosts, by_shape in reads.items():
        found = run_hosts(tmp_path, cache.directory, hosts, list(by_shape))
        for shape, ranges in by_shape.items():
            for host, read in zip(found[shape], ranges, strict=True):
                assert host.pop("read").tolist() == list(read)
                assert host.keys() == expected.keys()
                for name, array in expected.items():
                    assert np.array_equal(host[name], array), (hosts, shape, name)


def test_the_prefetcher_reads_ahead_in_order_and_knows_what_was_consumed():
    read = []
    sizes = lambda row: 32 if row < 128 else 64  # noqa: E731
    expected = [64, 96, 128, 192, 256, 320, 384, 448]
    with Prefetcher(lambda row: read.append(row) or row * 10, 64, sizes) as ahead:
        for row, after in itertools.pairwise(expected[:6]):
            batch, waited = ahead.next()
            assert batch == row * 10 and waited >= 0
            assert ahead.rows == after
        time.sleep(0.1)
        assert read == expected[: len(read)]
    assert not any(t.name == "prefetcher" for t in threading.enumerate())
    ahead.close()
    with pytest.raises(RuntimeError, match="closed"):
        ahead.next()


def test_an_error_in_the_thread_comes_out_of_next():
    def read(row):
        if row == 2:
            raise UserError("no more")
        return row

    ahead = Prefetcher(read, 0, lambda row: 1)
    assert [ahead.next()[0] for _ in range(2)] == [0, 1]
    with pytest.raises(UserError, match="no more"):
        ahead.next()
    assert not any(t.name == "prefetcher" for t in threading.enumerate())


def test_waiting_is_measured():
    with Prefetcher(lambda row: time.sleep(0.05), 0, lambda row: 1) as slow:
        assert sum(slow.next()[1] for _ in range(4)) > 0.1
    with Prefetcher(lambda row: row, 0, lambda row: 1) as fast:
        time.sleep(0.1)
        assert fast.next()[1] < 0.05
