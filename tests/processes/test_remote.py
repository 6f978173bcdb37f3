"""Processes whose folder is remote: stages of their own, one checkpoint in the store."""

import os
import shutil

import house
import processes
import pytest
import stores
from run_folders import lines_of

from xl_flax.files import remote


@pytest.mark.slow
def test_two_processes_share_a_store_and_no_stage(data, run_here, monkeypatch, tmp_path):
    monkeypatch.chdir(data)
    monkeypatch.setenv(remote.STAGE_DIR, str(tmp_path / "stage"))
    run_here("train", [*house.RUN, "--gin.MODEL_DIR=alone"])
    expected = {line["step"]: line for line in lines_of(data / "alone") if "loss" in line}
    # Parameters are split, so that each process has shards that the other has not.
    flags = [*house.RUN, "--gin.MODEL_DIR=gs://bucket/run", "--gin.MeshConfig.ici=(1,-1,1)"]
    with stores.store("gs") as fs:
        for steps in (4, house.STEPS):
            start = processes.start(
                data, 2, *processes.python("train", *flags, f"--gin.STEPS={steps}")
            )
            code, said = processes.finish(start, 300)
            assert code == 0 and f"done: {steps} steps, gs://bucket/run" in said[0], said
            own = tmp_path / "stage" / "process-1" / "gs" / "bucket" / "run" / "checkpoints"
            here = [name for _, _, names in os.walk(own / str(steps)) for name in names]
            there = fs.find(f"bucket/run/checkpoints/{steps}")
            assert 0 < len(here) < len(there) and not any(".part" in name for name in there)
            shutil.rmtree(tmp_path / "stage")  # as on other machines
        assert "resuming gs://bucket/run at step 4" in said[0]
        fs.get("bucket/run/metrics.jsonl", str(tmp_path / "metrics.jsonl"))
    found = [line for line in lines_of(tmp_path) if "loss" in line]
    assert [line["step"] for line in found] == sorted(expected)
    for line in found:
        assert line["loss"] == pytest.approx(expected[line["step"]]["loss"], rel=2e-3)
