"""launch/tpu_vm.sh against a stand-in for gcloud, whose hosts run launch/host.sh for real."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
from stand_in import ODD, World, errors, placeless, ran, wait_for

MODEL_DIR = "--gin.MODEL_DIR=gs://bucket/run"
JOB = ["train", "--gin_file=gin/runs/mlm_xlmr_base.gin", MODEL_DIR]
WHERE = ["--project=p", "--zone=z"]
SLICE = [*WHERE, "--type=v5litepod-64", "--poll=0"]


@pytest.fixture
def tpu_vm(launch):
    """Runs launch/tpu_vm.sh."""
    return lambda *words, **environment: launch("tpu_vm.sh", *words, **environment)


def verbs(world):
    """What was asked of gcloud, in short, without looks that saw the same."""
    found = [re.search(r"(?:queued-resources|tpu-vm) (\w+)", call)[1] for call in world.calls()]
    return [verb for verb, before in zip(found, [None, *found], strict=False) if verb != before]


# ---- All goes well


def test_a_run_creates_trains_and_deletes(tpu_vm, world):
    world.write(world.read() | {"lives": [["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]]})
    world.job('echo "step 1 on $HOST"')
    run = tpu_vm("run", "xlmr", *SLICE, "--price=1.5", "--", *JOB, *ODD)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[1:] == ["step 1 on host0"]  # a line before says what was run
    assert verbs(world) == ["describe", "create", "describe", "scp", "ssh", "delete"]
    assert world.read()["resource"] is None and "left:" not in run.stderr
    for host in world.hosts():
        assert ran(host) == [["-m", "xl_flax.train", "--distributed", *JOB[1:], *ODD]]
    assert "64 chips × 1.00 h = 64.0 chip hours × 1.5 = 96.00" in run.stderr
    for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"):
        assert f"xlmr: {state}" in run.stderr


def test_a_dry_run_prints_what_a_run_does(tpu_vm, world, project):
    words = ["run", "xlmr", *SLICE, "--spot", "--env=A=b c"]
    dry = tpu_vm(*words, "--dry_run", "--", *JOB, *ODD)
    assert dry.returncode == 0 and not errors(dry)
    assert not world.calls()
    run = tpu_vm(*words, "--", *JOB, *ODD)
    assert run.returncode == 0, run.stderr
    # Read back by a shell, and run by the stand-in, the printed commands do the same.
    printed = [line for line in dry.stdout.splitlines(keepends=True) if " describe " not in line]
    other = World(world.folder / "other", sys.executable)
    echo = subprocess.run(
        ["bash", "-e", "-c", "".join(printed)],
        env=other.environment, cwd=project, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert echo.returncode == 0, echo.stderr
    said = [placeless(call) for call in world.calls() if " describe " not in call]
    assert [placeless(call) for call in other.calls()] == said
    assert [ran(host) for host in other.hosts()] == [ran(host) for host in world.hosts()]


ONE = "--node-id=n --accelerator-type="
GOLDEN = {
    ("--type=v5litepod-64",): f"{ONE}v5litepod-64 --runtime-version=v2-alpha-tpuv5-lite",
    ("--type=v6e-256", "--slices=2", "--reserved"): "--node-count=2 --node-prefix=n"
    " --accelerator-type=v6e-256 --runtime-version=v2-alpha-tpuv6e --reserved",
    ("--type=v6e-64", "--reservation=ours"): f"{ONE}v6e-64 --runtime-version=v2-alpha-tpuv6e"
    " --reservation=ours",
    ("--type=v5p-128", "--spot", "--valid_until=6h"): f"{ONE}v5p-128"
    " --runtime-version=v2-alpha-tpuv5 --spot --valid-until-duration=6h",
    ("--type=v4-32", "--network=a", "--subnetwork=b", "--service_account=c", "--internal",
     "--tags=t"):
    f"{ONE}v4-32 --runtime-version=tpu-ubuntu2204-base --internal-ips --service-account=c"
    " --network=a --subnetwork=b --tags=t",
    ("--type=v6e-8", "--runtime=mine", "--labels=team=nlp"): f"{ONE}v6e-8"
    " --runtime-version=mine --labels=team=nlp",
}  # fmt: skip


@pytest.mark.parametrize("words", GOLDEN, ids=lambda words: words[0][7:])
def test_what_is_asked_for(tpu_vm, words):
    run = tpu_vm("create", "n", *WHERE, *words, "--dry_run")
    alpha = " alpha" if "--reservation=ours" in words else ""
    start = f"gcloud{alpha} compute tpus queued-resources create n --project=p --zone=z --quiet "
    assert run.returncode == 0 and run.stdout == start + GOLDEN[words] + "\n"
    chips = {"v5litepod-64": 64, "v6e-256": 512, "v5p-128": 64, "v4-32": 16, "v6e-8": 8}
    chips["v6e-64"] = 64
    assert f" {chips[words[0][7:]]} chips × 1.00 h" in run.stderr


def test_iap_is_used_for_hosts_without_addresses(tpu_vm):
    run = tpu_vm("run", "n", *SLICE, "--internal", "--dry_run", "--", *JOB)
    lines = run.stdout.splitlines()
    assert all("--tunnel-through-iap" in line for line in lines if re.search(" (ssh|scp) ", line))


# Ctrl-C counts also where the tests run in the background, and programs begin with SIGINT ignored.
HEEDING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp("bash", ["bash", *sys.argv[1:]])
"""


def begin(world, project):
    """A run in the background."""
    command = ["launch/tpu_vm.sh", "run", "n", *SLICE, "--", *JOB]
    return subprocess.Popen(
        [sys.executable, "-c", HEEDING, *command],
        env=world.environment, cwd=project, start_new_session=True,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_job_that_runs_is_found_again(tpu_vm, world, project):
    world.job('echo one; while [ ! -e "$HOME/../../go" ]; do sleep 0.1; done; echo two')
    first = begin(world, project)
    wait_for(lambda: "one" in first.stdout.readline())
    os.killpg(first.pid, signal.SIGINT)  # as Ctrl-C does
    said = first.communicate(timeout=60)[1]
    assert first.returncode == 130 and "left: n is ACTIVE, and COSTS" in said
    assert "delete: bash launch/tpu_vm.sh delete n --project=p --zone=z" in said
    assert f"go on:  bash launch/tpu_vm.sh run n {' '.join(SLICE)} -- {' '.join(JOB)}" in said
    other = tpu_vm("run", "n", *SLICE, "--", *JOB, "--gin.STEPS=1")
    assert other.returncode == 1
    assert "host0 runs something else as n; stop it first" in errors(other)[0]
    status = tpu_vm("status", "n", *WHERE)
    assert status.returncode == 0, status.stderr
    assert {"host0 running", "host1 running"} <= set(status.stdout.splitlines())
    assert "64 chips ×" in status.stderr
    second = begin(world, project)
    wait_for(lambda: "one" in second.stdout.readline())
    (world.folder / "go").touch()
    said, progress = second.communicate(timeout=60)
    assert second.returncode == 0, progress
    assert "two" in said and all(len(ran(host)) == 1 for host in world.hosts())


# ---- Preemption, lost connections, exit codes


def test_a_preempted_slice_is_asked_for_again(tpu_vm, world):
    world.write(world.read() | {"lives": [["ACTIVE"], ["WAITING_FOR_RESOURCES", "ACTIVE"]]})
    world.job('echo "a life"')
    # At the first state of the hosts the slice is gone; the request stays, suspended.
    world.fail("host.sh state", "ERROR: ssh: Connection refused", after=["SUSPENDING", "SUSPENDED"])
    run = tpu_vm("run", "n", *SLICE, "--spot", "--", *JOB)
    assert run.returncode == 0, run.stderr
    assert verbs(world).count("create") == 2 and verbs(world).count("delete") == 2
    assert "again, 1 of 50: n: SUSPENDING" in run.stderr
    assert run.stdout.count("a life\n") == 2  # the new hosts' log is shown from its beginning


@pytest.mark.parametrize("codes", [(75, 75), (76, 137)], ids=str)
def test_a_job_that_saved_or_lost_a_process_is_started_again(tpu_vm, world, codes):
    """Where no process has failed by its own mistake."""
    world.job(
        'echo "$GCE_METADATA_HOST $JAX_PLATFORMS"; [ -e "$HOME/saved" ] && exit 0;'
        f' touch "$HOME/saved"; [ "$HOST" = host0 ] && exit {codes[0]}; exit {codes[1]}'
    )
    run = tpu_vm("run", "n", *SLICE, "--", *JOB)
    assert run.returncode == 0, run.stderr
    assert all(len(ran(host)) == 2 for host in world.hosts())
    assert verbs(world).count("create") == 1
    assert (
        run.stdout.splitlines().count("metadata.google.internal tpu,cpu") == 2
    )  # xl_flax/notices.py


def test_a_host_that_hangs_ends_the_run(tpu_vm, world):
    world.job('[ "$HOST" = host0 ] && exit 76; while [ ! -e "$HOME/go" ]; do sleep 0.1; done')
    run = tpu_vm("run", "n", *SLICE, "--", *JOB)
    for host in world.hosts():
        (host / "go").touch()
    assert run.returncode == 75
    assert errors(run) == ["error: host0 ended 76, host1 running: what still runs hangs"]
    assert "left: n is ACTIVE, and COSTS" in run.stderr


def test_a_killed_host_is_started_again(tpu_vm, world):
    world.job(
        '[ "$HOST" = host0 ] || [ -e "$HOME/was" ] && exit 0; touch "$HOME/was";'
        " kill -9 $(ps -o ppid= $PPID) $PPID $$"
    )
    run = tpu_vm("run", "n", *SLICE, "--", *JOB)
    assert run.returncode == 0, run.stderr
    assert "to be started again: host1 killed" in run.stderr


def test_a_lost_connection_is_taken_up_again(tpu_vm, world):
    world.job('for i in 1 2 3 4 5 6; do echo "step $i"; sleep 0.3; done')
    for _ in range(2):
        world.fail("host.sh follow", "ERROR: broken pipe", code=255, after="done")
        world.fail("host.sh state", "ERROR: ssh timed out", code=255)
        world.fail("describe", "ERROR: could not reach the server: timed out", times=2)
    run = tpu_vm("run", "n", *SLICE, "--", *JOB)
    assert run.returncode == 0, run.stderr
    assert re.findall(r"step \d", run.stdout) == [f"step {i}" for i in range(1, 7)]
    assert all(len(ran(host)) == 1 for host in world.hosts())


def test_a_host_that_was_missed_is_not_left_out(tpu_vm, world):
    world.fail("host.sh start", "ERROR: ssh: broken pipe", code=255, after="done")
    world.fail(" scp ", "ERROR: ssh: broken pipe", code=255)
    run = tpu_vm("run", "n", *SLICE, "--", *JOB)
    assert run.returncode == 0, run.stderr
    assert verbs(world).count("create") == 1


def test_restarts_come_to_an_end(tpu_vm, world):
    world.job("exit 75")
    run = tpu_vm("run", "n", *SLICE, "--retries=1", "--", *JOB)
    assert run.returncode == 75
    assert errors(run) == [
        "error: begun again 1 times, and then: to be started again: host0 ended 75, host1 ended 75"
    ]
    assert "left: n is ACTIVE, and COSTS" in run.stderr


def test_a_job_that_fails_keeps_the_slices_for_a_look(tpu_vm, world):
    world.job('[ "$HOST" = host0 ] && exit 1; exit 4')
    run = tpu_vm("run", "n", *SLICE, "--", *JOB)
    assert run.returncode == 1
    assert errors(run) == ["error: the job failed: host0 ended 1, host1 ended 4"]
    assert "left: n is ACTIVE, and COSTS" in run.stderr
    assert verbs(world).count("create") == 1 and "delete" not in verbs(world)


def test_stop_ends_who_follows(tpu_vm, world, project):
    world.job('trap "exit 75" TERM; echo one; while [ ! -e "$HOME/../../go" ]; do sleep 0.1; done')
    run = begin(world, project)
    wait_for(lambda: "one" in run.stdout.readline())
    assert tpu_vm("stop", "n", *WHERE).returncode == 0
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 75 and "error: the job was asked to stop, and has saved" in said
    assert "left: n is ACTIVE, and COSTS" in said and "go on:  bash launch/tpu_vm.sh run n" in said
    (world.folder / "go").touch()
    assert tpu_vm("run", "n", *SLICE, "--", *JOB).returncode == 0


def test_stop_saves_and_keeps_the_slices(tpu_vm, world):
    world.job('trap "exit 75" TERM; while true; do sleep 0.1; done')
    for words in (
        ["create", "n", *SLICE],
        ["install", "n", *WHERE],
        ["start", "n", *WHERE, "--", *JOB],
    ):
        assert tpu_vm(*words).returncode == 0
    wait_for(lambda: all((host / "ran").exists() for host in world.hosts()))
    run = tpu_vm("stop", "n", *WHERE)
    assert run.returncode == 0, run.stderr
    assert sorted(run.stdout.splitlines()) == ["host0 stopped", "host1 stopped"]
    assert "left: n is ACTIVE, and COSTS" in run.stderr
    logs = tpu_vm("logs", "n", *WHERE)
    assert logs.returncode == 0 and "== host0," in logs.stdout
    assert tpu_vm("delete", "n", *WHERE).returncode == 0
    assert world.read()["resource"] is None


# ---- What gcloud refuses

DENIED = "PERMISSION_DENIED: "
REFUSED = {  # by what: the call, what gcloud says, the advice, what the call did all the same
    "quota": ("create", "RESOURCE_EXHAUSTED: Quota limit 'TPUV5s' has been exceeded. Limit: 0",
              "iam-admin/quotas", None),
    "capacity": ("create", "There is no more capacity in the zone", "another zone", None),
    "project": ("describe", f"{DENIED}The caller does not have permission", "is --project", None),
    "zone": ("describe", f"{DENIED}Permission denied on 'locations/z' (or it may not exist).",
             "is --zone right", None),
    "login": ("describe", "You do not currently have an active account selected.",
              "gcloud auth login", None),
    "disabled": ("create", f"{DENIED}Cloud TPU API has not been used in project 1 before",
                 "services enable", None),
    "partial": ("create", "The operation timed out\nsee them", "timed out see them", "done"),
    "copy": (" scp ", "ssh-add: could not connect", "ssh-add ~/.ssh", None),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_one_line_and_says_what_is_left(tpu_vm, world, name):
    match, said, advice, after = REFUSED[name]
    world.fail(match, f"ERROR: (gcloud.compute) {said}", times=99, after=after)
    run = tpu_vm("run", "n", *SLICE, "--", *JOB)
    assert run.returncode == 1
    (line,) = errors(run)
    assert "n" in line and advice in line and said.split("\n")[0] in line
    left = run.stderr.splitlines()[-1 if name in ("quota", "capacity", "disabled") else -3 :]
    if match == "describe":
        assert "left" not in run.stderr and not world.read().get("resource")
    elif after or name == "copy":
        assert "left: n is ACTIVE, and COSTS" in left[0] and world.read()["resource"]
    else:
        assert left == ["nothing is left of it"] and not world.read().get("resource")


def test_what_cannot_be_found_out_is_said(tpu_vm, world):
    world.fail("create|describe", "ERROR: connection reset", times=99)
    run = tpu_vm("create", "n", *SLICE)
    assert run.returncode == 1
    assert "could not find out: cannot look at n in z: ERROR: connection reset" in run.stderr
    assert "left: n is unknown; it COSTS as soon" in run.stderr and "delete: bash" in run.stderr


def test_a_request_that_fails_is_said_and_left(tpu_vm, world):
    world.write(
        world.read()
        | {
            "lives": [["WAITING_FOR_RESOURCES", "FAILED"]] * 2,
            "why": "no more capacity in the zone",
        }
    )
    run = tpu_vm("run", "n", *SLICE, "--", *JOB)
    assert run.returncode == 1
    assert errors(run)[0].startswith(
        "error: n: FAILED, no more capacity in the zone (there are none left just now"
    )
    assert "left: n is FAILED; it costs nothing, but counts against the quota" in run.stderr
    run = tpu_vm("run", "n", *SLICE, "--", *JOB)
    assert "it is deleted and asked for again" in run.stderr
    assert verbs(world)[-4:] == ["describe", "delete", "create", "describe"]


def test_what_somebody_deleted_is_not_asked_for_again(tpu_vm, world):
    world.job("exit 75")
    world.fail("host.sh state", "ERROR: gone", after="gone")
    run = tpu_vm("run", "n", *SLICE, "--", *JOB)
    assert run.returncode == 1
    assert errors(run) == ["error: n was deleted meanwhile, and is not asked for again"]
    assert verbs(world).count("create") == 1 and "nothing is left of it" in run.stderr


def test_a_slice_of_another_type_is_left_alone(tpu_vm, world):
    assert tpu_vm("create", "n", *WHERE, "--type=v5litepod-16").returncode == 0
    run = tpu_vm("run", "n", *SLICE, "--", *JOB)
    assert run.returncode == 1
    assert errors(run) == [
        "error: n is there already as v5litepod-16, not v5litepod-64: choose another name, "
        "or delete it first"
    ]


def test_a_slice_that_is_left_out_is_noticed(tpu_vm, world):
    world.write(world.read() | {"lives": [["ACTIVE"], ["ACTIVE"]]})
    # gcloud reaches one slice of two, and exits with 0.
    world.fail(
        "host.sh state",
        "WARNING: Could not prepare all 2 nodes, attempting to ssh into the rest.",
        code=0,
        after=["SUSPENDED"],
    )
    run = tpu_vm("run", "n", *SLICE, "--slices=2", "--spot", "--", *JOB)
    assert run.returncode == 0, run.stderr
    assert "again, 1 of 50: n: SUSPENDED" in run.stderr and verbs(world).count("create") == 2


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed here")
def test_the_real_gcloud_knows_the_flags(tpu_vm, tmp_path):
    """Without an account: each command is read, and then refused. Nothing is asked of a project."""
    every = ["--spot", "--internal", "--valid_until=6h", "--service_account=a@b.c", "--network=a",
             "--subnetwork=b", "--tags=t", "--labels=a=b"]  # fmt: skip
    lines = tpu_vm(
        "run", "n", *SLICE, *every, "--slices=2", "--dry_run", "--", *JOB
    ).stdout.splitlines()
    for own in ("--reserved", "--reservation=projects/other/reservations/ours"):
        lines += tpu_vm("create", "n", *SLICE, own, "--dry_run").stdout.splitlines()
    lines += tpu_vm("status", "n", *WHERE, "--dry_run").stdout.splitlines()
    lines = [line for line in lines if line.startswith("gcloud")]
    # One of those that differ in values only, as of --command.
    lines = {tuple(word.split("=")[0] for word in shlex.split(line)): line for line in lines}
    environment = os.environ | {
        "CLOUDSDK_CONFIG": str(tmp_path),
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "False",
    }
    assert len(lines) == 9
    for line in lines.values():
        run = subprocess.run(
            ["bash", "-c", line], env=environment, capture_output=True, text=True, check=False
        )
        assert (
            run.returncode == 1 and "You do not currently have an active account" in run.stderr
        ), line


def test_what_is_being_deleted_is_asked_for_again(tpu_vm, world):
    assert tpu_vm("create", "n", *SLICE).returncode == 0
    changed = world.read()
    changed["resource"]["states"] = ["DELETING", "SUSPENDED"]
    world.write(changed)
    run = tpu_vm("run", "n", *SLICE, "--", *JOB)
    assert run.returncode == 0, run.stderr
    assert "n is DELETING: it is deleted and asked for again" in run.stderr


def test_without_gcloud_one_line_says_so(tpu_vm, world):
    (world.folder / "bin" / "gcloud").unlink()
    for program in ("bash", "dirname", "mktemp", "rm", "sed"):
        (world.folder / "bin" / program).symlink_to(shutil.which(program))
    run = tpu_vm("status", "n", *WHERE, PATH=str(world.folder / "bin"))
    assert run.returncode == 1 and "gcloud is not installed" in errors(run)[0]
