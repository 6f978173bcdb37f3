"""Meshes and rules: sizes are filled in and checked, each mesh axis is used once."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from xl_flax.errors import UserError
from xl_flax.parallel.mesh import MeshConfig, check_batch, make_partitioning
from xl_flax.parallel.rules import (
    Partitioning,
    batch_axes,
    constrain,
    on_parts,
    platform,
)
from xl_flax.parallel.sums import Layouts, sum_over_devices


def test_one_minus_one_is_filled_in():
    mesh = make_partitioning(MeshConfig(ici=(-1, 2, 2))).mesh
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_what_is_divided_over_data_is_so_in_each_slice():
    config = MeshConfig(ici=(-1, 2, 1), dcn=(2, 1, 1), optimizer=("data",))
    partitioning = make_partitioning(config)
    assert dict(partitioning.mesh.shape) == {"slice": 2, "data": 2, "fsdp": 2, "tensor": 1}
    assert partitioning.spec(("batch",)) == P(("slice", "data", "fsdp"))
    assert partitioning.batch_shards == 8
    sharding = partitioning.optimizer_sharding(("vocab", "embed"), (6, 4))
    assert sharding.spec == P("data", "fsdp") and sharding.shard_shape((6, 4)) == (3, 2)


@pytest.mark.parametrize("ici", [(3, 1, 1), (4, 4, 1), (-1, 3, 1)])
def test_a_mesh_that_does_not_match_the_devices_names_both(ici):
    with pytest.raises(UserError, match=r"but there are 8"):
        make_partitioning(MeshConfig(ici=ici))


def test_processors_do_not_take_the_place_of_chips(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    with pytest.raises(UserError, match="JAX_PLATFORMS=cuda,cpu, but no cuda is found here"):
        make_partitioning(MeshConfig())


@pytest.mark.parametrize("ici", [(-1, -1, 1), (0, 1, 1), (8, 1)])
def test_malformed_sizes_are_refused(ici):
    with pytest.raises(UserError, match=r"MeshConfig\.ici"):
        make_partitioning(MeshConfig(ici=ici))


def test_a_rule_for_an_unknown_mesh_axis_is_refused():
    with pytest.raises(UserError, match="'model', which is no mesh axis"):
        make_partitioning(MeshConfig(rules=(("mlp", "model"),)))


def test_a_mesh_axis_is_used_once_and_only_where_it_divides():
    partitioning = make_partitioning(MeshConfig(ici=(2, 2, 2)))
    assert partitioning.spec(("batch", None, "embed")) == P(("data", "fsdp"), None, None)
    assert partitioning.spec(("vocab", "embed")) == P("tensor", "fsdp")
    assert partitioning.spec(("vocab", "embed"), (250_001, 64)) == P(None, "fsdp")


def test_constrain_acts_only_while_a_partitioning_is_active():
    partitioning = make_partitioning(MeshConfig(ici=(8, 1, 1)))
    x = jax.numpy.zeros((8, 4))

    def f(x):
        with partitioning.activate():
            return constrain(x * 2, ("batch", None))

    assert jax.jit(f)(x).sharding.shard_shape(x.shape) == (1, 4)
    assert constrain(x, ("batch", None)) is x


def test_the_platform_is_the_meshs_also_where_each_device_is_alone():
    mesh = make_partitioning(MeshConfig(ici=(8, 1, 1)))
    whole, seen = mesh.sharding(()), []

    def sums(weight, batch, constant):
        seen.append((platform(), batch_axes(), constrain(batch, ("batch",)) is batch))
        return (batch * weight).sum(), batch.sum()

    with mesh.activate():
        got = jax.jit(sum_over_devices(sums, Layouts(whole, whole, False)))(
            2.0, jax.numpy.arange(8.0), 0
        )
    assert got == (56, 28) and seen == [("cpu", (), True)]
    elsewhere = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform="tpu")]))
    with Partitioning(elsewhere, ()).activate():
        assert platform() == "tpu"
    assert platform() == "cpu"


def test_devices_have_parts_where_the_mesh_divides_and_else_all():
    mesh = make_partitioning(MeshConfig(ici=(4, 1, 2)))
    shapes = []

    def function(x, y):
        shapes.append((x.shape, y.shape))
        return x * y[:, None]

    for rows, heads in (8, 2), (8, 3), (3, 2):
        x, y = np.ones((rows, heads)), np.arange(float(rows))
        with mesh.activate():
            got = on_parts(function, (("batch", "heads"), ("batch",)), x, y)
        np.testing.assert_array_equal(got, x * y[:, None])
    assert shapes == [((2, 1), (2,)), ((2, 3), (2,)), ((3, 1), (3,))]


def test_a_batch_that_the_mesh_does_not_divide_names_the_next_multiple():
    partitioning = make_partitioning(MeshConfig(ici=(4, 2, 1)))
    check_batch("mlm", 32, 4, partitioning)
    with pytest.raises(UserError, match=r"'mlm': batch_size=24 .* multiple of 16"):
        check_batch("mlm", 24, 2, partitioning)
