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
from run_folders import lines_of, saved

from xl_flax import cli, convert
from xl_flax.data import remote as remote_caches
from xl_flax.data.manifest import Cache
from xl_flax.data.remote_vocabulary import vocabulary_there
from xl_flax.errors import UserError
from xl_flax.files import remote


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a vocabulary, a cache and a Gin file."""
    return house.made_in(tmp_path_factory.mktemp("remote"))


@pytest.fixture(scope="module")
def uninterrupted():
    """Its lines and last parameters, once a local run has been made."""
    return {}


@pytest.fixture(params=["gs", "s3"])
def place(request, data, tmp_path, monkeypatch):
    """The scheme, and the file system of a server that has the vocabulary and the cache."""
    monkeypatch.chdir(data)
    monkeypatch.setenv(remote.STAGE_DIR, str(tmp_path / "stage"))
    with stores.store(request.param) as fs:
        where = f"{request.param}://bucket/a"
        stage = remote.staged(where)
        shutil.copytree("cache", f"{stage}/cache")  # as `xl_flax.cache` leaves it
        remote_caches.send(Cache(f"{where}/cache", ["none"]).directory)
        with vocabulary_there(f"{stage}/vocabulary.model"):  # as `xl_flax.vocab`
            shutil.copy("vocabulary.model", stage)
        shutil.rmtree(tmp_path / "stage")
        yield where, fs


def flags_of(where):
    settings = {"MODEL_DIR": "run", "CACHE_DIR": "cache", "VOCABULARY": "vocabulary.model"}
    return [*house.RUN, *(f"--gin.{name}={where}/{path}" for name, path in settings.items())]


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_store_on_a_new_machine(
    place, uninterrupted, run_here, tmp_path
):
    where, fs = place
    if not uninterrupted:
        run_here("train", [*house.RUN, "--gin.MODEL_DIR=local"])
        uninterrupted |= {"lines": lines_of("local"), "params": saved("local", "params")}
    process = subprocess.Popen(
        [sys.executable, "-m", "xl_flax.train", *flags_of(where)],
        env=os.environ | {"PYTHONPATH": cli.ROOT, "JAX_NUM_CPU_DEVICES": "1"},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    while not fs.exists("bucket/a/run/checkpoints/2/checksums.json"):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    if where.startswith("gs:"):
        process.send_signal(signal.SIGKILL)
        process.communicate()
    else:
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[0]
        assert process.returncode == cli.EXIT_PREEMPTED, said
        step = said.partition("asked to stop: saved step ")[2].partition(";")[0]
        assert fs.exists(f"bucket/a/run/checkpoints/{step}/checksums.json"), said
    shutil.rmtree(tmp_path / "stage")  # as on another machine
    said = run_here("train", flags_of(where))
    assert f"resuming {where}/run at step" in said and f"done: 6 steps, {where}/run" in said
    stage = remote.staged(f"{where}/run")
    params = saved(stage, "params")
    assert all((params[name] == array).all() for name, array in uninterrupted["params"].items())
    lines = {line["step"]: line for line in lines_of(stage) if "loss" in line}
    expected = [line for line in uninterrupted["lines"] if "loss" in line]
    resumed = int(said.partition("at step ")[2].split()[0])
    assert resumed >= 2  # lines of the killed process may not have gone up
    for line in expected[resumed:]:
        assert lines[line["step"]] == line
    shutil.rmtree(tmp_path / "stage")
    pattern = f"--checkpoints={where}/*/checkpoints/*"
    only = "--gin.EvaluateConfig.evaluations=[@MaskedAccuracy()]"
    run_here("evaluate", [pattern, only, *flags_of(where)])
    results = fs.cat("bucket/a/run/results.jsonl").decode()
    assert all(f'"checkpoints/{step}"' in results for step in (2, 4, 6))
    assert not os.path.exists(f"{stage}/checkpoints/6/optimizer")
    convert.main([f"--source={where}/run", f"--target={where}/exported"])
    assert fs.exists("bucket/a/exported/config.json")
    with pytest.raises(UserError, match="a/exported exists already; nothing is overwritten"):
        convert.main([f"--source={where}/run", f"--target={where}/exported"])


def test_no_such_bucket_is_one_line(place, run_here):
    where, _ = place
    elsewhere = where.replace("bucket", "nowhere")
    with pytest.raises(UserError, match=f"{elsewhere}/run/.*: there is no bucket"):
        run_here("train", [*flags_of(where), f"--gin.MODEL_DIR={elsewhere}/run"])
    with pytest.raises(UserError, match=f"the vocabulary {elsewhere}/v.model does not exist"):
        run_here("train", [*flags_of(where), f"--gin.VOCABULARY={elsewhere}/v.model"])
