"""launch/sky.yaml: its pieces of shell run here as SkyPilot would run them."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from stand_in import ODD, make_hosts, on_host, ran

from xl_flax import cli

TASK = yaml.safe_load(Path(cli.ROOT, "launch", "sky.yaml").read_text(encoding="utf-8"))
JOB = ["--gin_file=a.gin", "--gin.MODEL_DIR=s3://b/run", *ODD]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_every_node_joins_the_first_with_the_flags_as_they_are(world, project, rank):
    make_hosts(world.folder, 1)
    host = world.folder / "hosts" / "0"
    node = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
    variables = on_host(world.folder, host) | node
    variables |= {"SKYPILOT_NODE_RANK": rank, "FLAGS": shlex.join(JOB)}
    for piece in ("setup", "run"):
        subprocess.run(["bash", "-e", "-c", TASK[piece]], env=variables, cwd=project, check=True)
    assert ran(host) == [
        ["-m", "xl_flax.train", "--coordinator=10.0.0.1:8476", "--num_processes=2",
         f"--process_id={rank}", *JOB]
    ]  # fmt: skip


@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_exit_code_is_the_jobs(world, project, code):
    make_hosts(world.folder, 1)
    world.job(f"exit {code}")
    variables = on_host(world.folder, world.folder / "hosts" / "0") | {"SKYPILOT_NODE_IPS": "a"}
    variables |= {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0", "FLAGS": ""}
    run = subprocess.run(["bash", "-c", TASK["run"]], env=variables, cwd=project, check=False)
    assert run.returncode == code
    assert TASK["resources"]["job_recovery"]["recover_on_exit_codes"] == [75, 76]
    assert os.path.exists(Path(cli.ROOT, TASK["workdir"], "launch", "host.sh"))
