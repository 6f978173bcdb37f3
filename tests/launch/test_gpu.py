"""launch/gpu.sh against a stand-in for ssh whose machine runs launch/host.sh for real."""

import pytest
from stand_in import ODD, errors, ran

JOB = ["train", "--gin_file=a.gin", "--gin.MODEL_DIR=/data/run"]


@pytest.fixture
def gpu(launch):
    return lambda action, *words: launch("gpu.sh", action, "n", "--host=me@gpu", "--poll=0", *words)


def test_a_run_trains_to_its_end(gpu, world):
    world.job(
        'echo "$JAX_PLATFORMS $A"; [ -e "$HOME/saved" ] && exit 0; touch "$HOME/saved"; exit 75'
    )
    run = gpu("run", "--env=A=b c", "--price=2", "--", *JOB, *ODD)
    assert run.returncode == 0, run.stderr
    machine = world.folder / "hosts/0"
    assert ran(machine) == [["-m", "xl_flax.train", *JOB[1:], *ODD]] * 2  # without --distributed
    assert run.stdout.count("cuda,cpu b c") == 2
    assert "the machine me@gpu costs as long as it is there" in run.stderr
    status = gpu("status")
    assert status.returncode == 0 and status.stdout == "host0 ended 0\n"


def test_a_lost_connection_is_taken_up_again(gpu, world):
    world.job('for i in 1 2 3; do echo "step $i"; sleep 0.3; done')
    world.fail("host.sh follow", "Connection reset by peer", code=255, after="done")
    world.fail(
        "host.sh state", "ssh: connect to host gpu port 22: Connection timed out", code=255, times=3
    )
    run = gpu("run", "--", *JOB)
    assert run.returncode == 0, run.stderr
    assert [line for line in run.stdout.splitlines() if line.startswith("step")] == [
        "step 1",
        "step 2",
        "step 3",
    ]
    assert len(ran(world.folder / "hosts/0")) == 1


FAILURES = {
    "no machine": ("scp", "ssh: Could not resolve hostname gpu: Name or service not known", 255, 1),
    "no rights": ("ssh", "me@gpu: Permission denied (publickey).", 255, 1),
    "gone": ("host.sh (state|follow)", "ssh: connect to host gpu port 22: timed out", 255, 75),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_one_line(gpu, world, name):
    match, said, code, ours = FAILURES[name]
    world.fail(match, said, code=code, times=99)
    run = gpu("run", "--", *JOB)
    assert run.returncode == ours
    (line,) = errors(run)
    assert said in line or "me@gpu does not answer; the job may go on there" in line
    assert "go on: bash launch/gpu.sh run n" in run.stderr


def test_the_exit_code_of_a_job_that_fails_is_the_scripts(gpu, world):
    world.job("exit 4")
    run = gpu("run", "--", *JOB)
    assert run.returncode == 4 and errors(run) == ["error: the job failed: host0 ended 4"]
