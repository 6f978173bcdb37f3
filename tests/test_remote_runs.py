"""Runs whose vocabulary, cache and folder are remote, against servers of both protocols."""

import os
import shutil
import signal
import subprocess
import sys
import time

import house
import pytest
import stores

from xl_flax import cli

FLAGS = [
    *house.RUN,
    "--gin.MODEL_DIR={0}/run",
    "--gin.CACHE_DIR={0}/cache",
    "--gin.VOCABULARY={0}/vocabulary.model",
]


def command(module, *flags, **environment):
    own = {"PYTHONPATH": cli.ROOT, "JAX_NUM_CPU_DEVICES": "1"} | environment
    return subprocess.Popen(
        [sys.executable, "-m", f"xl_flax.{module}", *flags],
        env=os.environ | own, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A vocabulary, a cache, a Gin file, and a run that was never stopped, all local."""
    folder = tmp_path_factory.mktemp("remote")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        house.make_data()
        said = command("train", *house.RUN).communicate()[0]
        assert "done: 6 steps" in said, said
        yield folder


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_run_goes_on_from_its_store_on_a_new_machine(scheme, data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    monkeypatch.setenv("XL_FLAX_STAGE_DIR", str(tmp_path / "stage"))
    where = f"{scheme}://bucket/a"
    flags = [flag.format(where) for flag in FLAGS]
    with stores.store(scheme) as fs:
        fs.put("vocabulary.model", "bucket/a/vocabulary.model")
        fs.put("cache", "bucket/a/", recursive=True)
        process = command("train", *flags)
        while not fs.exists("bucket/a/run/checkpoints/2/checksums.json"):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[0]
        print(said)
        shutil.rmtree(tmp_path / "stage")  # as on another machine
        process = command("train", *flags)
        said = process.communicate()[0]
        print(said)
        assert process.returncode == 0
