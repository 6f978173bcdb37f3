"""launch/slurm.sh: the script it submits is run here, its srun by a stand-in."""

import re
import subprocess

import pytest
from stand_in import ODD, errors, ran

JOB = ["train", "--gin_file=a.gin", "--gin.MODEL_DIR=/shared/run"]


@pytest.fixture
def slurm(launch, tmp_path):
    """The script, with a folder that has a space in its name."""
    folder = tmp_path / "shared space"
    return lambda action, *words: launch("slurm.sh", action, "n", f"--folder={folder}", *words)


def submitted(world, **environment):
    """Runs the submitted script as Slurm would, here."""
    script = world.folder / "submitted"
    script.write_text(world.read()["job"]["script"])
    return subprocess.run(
        ["bash", script], env=world.environment | {"SLURM_JOB_ID": "7"} | environment, check=False,
        capture_output=True, text=True,
    )  # fmt: skip


def test_the_script_asks_for_a_process_a_gpu_and_runs_the_job(slurm, world, tmp_path):
    world.job('printf "%s\\n" "$A" "$XL_FLAX_EXTRAS" >"$HOME/environment"')
    run = slurm("start", "--nodes=2", "--gpus=8", "--time=24:00:00", "--partition=p", "--price=3",
                "--sbatch=--mem=0 --exclusive", "--env=A=b 'c' $d", "--", *JOB, *ODD)  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "16 GPUs × 1.00 h = 16.0 GPU hours × 3 = 48.00" in run.stderr
    assert "left: n is job 7 (PENDING)" in run.stderr and "slurm.sh delete n" in run.stderr
    script = world.read()["job"]["script"]
    options = " ".join(re.findall("^#SBATCH (.*)", script, re.MULTILINE))
    assert options == (
        "--job-name=n --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8"
        f" --requeue --open-mode=append --output='{tmp_path}/shared space/n/log'"
        " --signal=TERM@300 --time=24:00:00 --partition=p --mem=0 --exclusive"
    )
    job = submitted(world)
    assert job.returncode == 0, job.stderr
    assert ran(world.folder / "hosts/0") == [
        ["-m", "xl_flax.train", "--distributed", *JOB[1:], *ODD]
    ]
    assert (world.folder / "hosts/0/environment").read_text() == "b 'c' $d\ngpu\n"
    assert not world.calls("^scontrol")


@pytest.mark.parametrize("code", [0, 1, 75, 76, 137])
def test_a_job_that_saved_or_lost_a_process_goes_back_into_the_queue(slurm, world, code):
    again = code > 1
    assert slurm("start", "--", *JOB).returncode == 0
    world.job(f"exit {code}")
    assert submitted(world).returncode == code
    assert world.calls("^scontrol") == (["scontrol requeue 7"] if again else [])
    assert slurm("stop").returncode == 0
    assert world.calls("^scancel") == ["scancel --me --name=n --signal=TERM"]
    assert submitted(world).returncode == code
    assert len(world.calls("^scontrol")) == again  # not again
    world.write(world.read() | {"job": None})
    assert slurm("start", "--", *JOB).returncode == 0
    submitted(world)
    assert len(world.calls("^scontrol")) == 2 * again
    assert submitted(world, SLURM_RESTART_COUNT="50").returncode == code
    assert len(world.calls("^scontrol")) == 2 * again + (code == 75)  # of failures, 50


def test_where_setting_up_fails_the_job_does_not_run(slurm, world):
    assert slurm("start", "--", *JOB).returncode == 0
    world.fail("^srun.* setup$", "srun: error: no", code=4)
    assert submitted(world).returncode == 4 and not (world.folder / "hosts/0/ran").exists()


def test_a_container_has_the_folder(slurm, world, tmp_path):
    assert slurm("start", "--container=i:1", "--mounts=/data:/data", "--", *JOB).returncode == 0
    assert submitted(world).returncode == 0
    folder = f"{tmp_path}/shared space"
    setup, job = world.calls("^srun")
    for call in (setup, job):
        assert f"--container-image=i:1 --container-mounts={folder}:{folder},/data:/data" in call
        assert re.search(rf"--container-workdir={folder}/code/\w+ bash launch/host.sh", call)


def test_a_second_start_finds_the_first(slurm, world):
    assert slurm("start", "--", *JOB).returncode == 0
    again = slurm("start", "--", *JOB)
    assert again.returncode == 0 and "n is there already, as job 7 (PENDING)" in again.stderr
    other = slurm("start", "--nodes=3", "--", *JOB)
    assert other.returncode == 1 and "with other settings" in errors(other)[0]
    assert len(world.calls("^sbatch")) == 1
    assert "PENDING, job 7" in slurm("status").stderr
    deleted = slurm("delete")
    assert deleted.returncode == 0 and "nothing of n is in the queue" in deleted.stderr


def test_a_dry_run_prints_what_a_start_does(slurm, world, project):
    words = ("start", "--nodes=2", "--", *JOB, *ODD)
    dry = slurm(words[0], "--dry_run", *words[1:])
    assert dry.returncode == 0 and not world.calls()
    printed = subprocess.run(
        ["bash", "-e"], input=dry.stdout, env=world.environment, cwd=project, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert printed.returncode == 0, printed.stderr
    calls, script = world.calls(), world.read()["job"]["script"]
    world.write(world.read() | {"calls": [], "job": None})
    assert slurm(*words).returncode == 0
    assert world.calls()[:2] == calls and world.read()["job"]["script"] == script


FAILURES = {
    "partition": ("sbatch", "sbatch: error: invalid partition specified: p", None, "nothing of n"),
    "limit": ("sbatch", "sbatch: error: QOSMaxSubmitJobPerUserLimit", None, "nothing of n is in"),
    "partial": ("sbatch", "sbatch: error: Socket timed out", "done", "left: n is job 7"),
    "controller": ("squeue", "slurm_load_jobs error: Unable to contact it", None, "error"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_a_refusal_is_one_line_and_says_what_is_left(slurm, world, name):
    match, said, after, left = FAILURES[name]
    world.fail(f"^{match}", said, after=after)
    run = slurm("start", "--", *JOB)
    assert run.returncode == 1
    (line,) = errors(run)
    assert said in line and left in run.stderr


def test_what_cannot_be_found_out_is_said(slurm, world):
    world.fail("^(sbatch|squeue)", "error: timed out", times=9)
    run = slurm("delete")
    assert "could not find out whether n is in the queue" in run.stderr
    assert "scancel --me --name=n" in run.stderr


WRONG = {
    ("start", "n", "--", *JOB): "start needs --folder=VALUE",
    ("start", "n", "--folder=here", "--", *JOB): "must be an absolute path",
    ("start", "n", "--folder=/f", "--mounts=/a:/a", "--", *JOB): "give --container=IMAGE",
    ("start", "n", "--folder=/f", "--gpus=many", "--", *JOB): "--gpus=many: must be a whole number",
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG, ids=lambda words: " ".join(words)[:60])
def test_wrong_arguments_reach_no_cluster(launch, world, words):
    run = launch("slurm.sh", *words)
    assert run.returncode == 2 and WRONG[words] in errors(run)[0] and not world.calls()


def test_a_folder_that_cannot_be_written_is_one_line(launch, world):
    run = launch("slurm.sh", "start", "n", "--folder=/proc/none", "--", *JOB)
    assert run.returncode == 1 and "cannot write to /proc/none" in errors(run)[0]
    assert not world.calls("^sbatch")
