"""What four processes save is read on any number of devices, in any grid, to the same bits."""

import house
import jax
import numpy as np
import processes
import pytest
from run_folders import saved, steps_of

from xl_flax import cli
from xl_flax.checkpoints.manager import CheckpointManager
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.mesh import make_partitioning
from xl_flax.training import setup, state
from xl_flax.training.config import TrainConfig

# How they were saved: as the Gin files of these meshes say, or in a grid of all three axes' kinds.
SAVED = {
    "zero1": ["--gin_file=gin/meshes/zero1.gin"],
    "fsdp": ["--gin.MeshConfig.ici=(1,2,2)"],
}
# Devices and MeshConfig of those that read it.
READ = [
    (1, {}),
    (2, {"ici": (1, 2, 1)}),
    (8, {"ici": (2, 2, 2)}),
    (8, {"ici": (1, 1, 8)}),
    (8, {"ici": (-1, 1, 1), "optimizer": ("data",)}),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", SAVED)
def test_what_four_processes_save_is_read_anywhere(data, monkeypatch, name):
    own = ["--gin.STEPS=2", "--gin.TrainConfig.held_out=[]", "--gin.TrainConfig.best=None"]
    flags = [*house.RUN, *SAVED[name], *own, f"--gin.MODEL_DIR={name}"]
    code, said = processes.finish(processes.start(data, 4, *processes.python("train", *flags)), 240)
    assert code == 0, said
    monkeypatch.chdir(data)
    assert steps_of(name) == [2]
    expected = {item: saved(name, item) for item in ("params", "optimizer")}
    moments = [v for path, v in expected["optimizer"].items() if "'mu'" in path]
    assert moments and all(np.abs(value).max() > 0 for value in moments[:1])
    for devices, mesh in READ:
        bindings = [f"MeshConfig.{key} = {value!r}" for key, value in mesh.items()]
        cli.load_gin(["run.gin"], [f"MODEL_DIR = '{name}'", "BATCH_SIZE = 8", *bindings])
        monkeypatch.setattr(
            setup,
            "make_partitioning",
            lambda config, n=devices: make_partitioning(config, jax.devices()[:n]),
        )
        made = setup.set_up(TrainConfig(), ())
        manager = CheckpointManager(name)
        restored = state.resume(manager, 2, made.program.layout)
        manager.close()
        leaves = params_lib.flat(restored.params)
        assert all(len(leaf.sharding.device_set) == devices for _, leaf in leaves)
        found = {"params": restored.params, "optimizer": state.pack(restored)}
        for item, tree in found.items():
            arrays = {
                jax.tree_util.keystr(path): np.asarray(leaf)
                for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
            }
            assert len(arrays) == len(expected[item])
            for (path, value), (_, other) in zip(
                sorted(arrays.items()), sorted(expected[item].items()), strict=True
            ):
                np.testing.assert_array_equal(value, other, err_msg=f"{mesh} {item}{path}")
