"""launch/gke.sh: its manifest is a JobSet, with the job that was asked for; failures are said."""

import json
import re
from pathlib import Path

import pytest
import yaml
from stand_in import ODD, errors, placeless

JOB = ["train", "--gin_file=a.gin", "--gin.MODEL_DIR=gs://b/run"]
WHERE = ["--bucket=gs://b/code/", "--accelerator=tpu-v6e-slice"]
POD = ["--topology=16x16", "--slices=2"]
ENVIRONMENT = "a $b $(c) $$ \"d\" 'e' \\ f"
FULL = ["--queue=q", "--spot", "--reservation=r", "--namespace=teams",
        "--retries=7", "--image=i:1", f"--env=A={ENVIRONMENT}"]  # fmt: skip


@pytest.fixture
def gke(launch):
    return lambda *words: launch("gke.sh", *words)


def schema():
    """JobSet's, which refuses fields it does not know, as kubectl does."""

    def strict(part):
        if isinstance(part, dict):
            if "properties" in part and "x-kubernetes-preserve-unknown-fields" not in part:
                part["additionalProperties"] = False
            for value in part.values():
                strict(value)
        elif isinstance(part, list):
            for value in part:
                strict(value)
        return part

    return strict(json.loads(Path(__file__).parent.joinpath("jobset/schema.json").read_text()))


def validate(manifest):
    jsonschema = pytest.importorskip("jsonschema", reason="it comes with the extra dev")
    jsonschema.Draft202012Validator(schema()).validate(manifest)
    return jsonschema


def expanded(text, variables):
    """What Kubernetes makes of a string: $$ is $, and $(NAME) what a variable holds."""

    def replace(match):
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_]\w*)\)", replace, text)


def pod_of(manifest):
    (job,) = manifest["spec"]["replicatedJobs"]
    return job, job["template"]["spec"]["template"]["spec"]


def after(manifest, code=None):
    """What JobSet does when a pod ends with a code, or is evicted, as its controllers decide it."""
    job, _ = pod_of(manifest)
    message = reason = ""
    for number, rule in enumerate(job["template"]["spec"]["podFailurePolicy"]["rules"]):
        evicted = code is None and "onPodConditions" in rule
        if evicted or code in rule.get("onExitCodes", {"values": []})["values"]:
            reason, what = "PodFailurePolicy", "Pod n/n has condition DisruptionTarget"
            if code is not None:
                what = f"Container job for pod n/n failed with exit code {code}"
            message = f"{what} matching FailJob rule at index {number}"
            break
    for rule in manifest["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"


def test_what_begins_again_and_what_does_not(gke):
    manifest = yaml.safe_load(gke("manifest", "n", *WHERE, *POD, "--", *JOB).stdout)
    assert {after(manifest, code) for code in (1, 2)} == {"FailJobSet"}
    assert {after(manifest, code) for code in (75, None)} == {"RestartJobSetAndIgnoreMaxRestarts"}
    assert {after(manifest, code) for code in (76, 137, 139)} == {"RestartJobSet"}  # and counts


@pytest.mark.parametrize("full", [(), FULL], ids=["plain", "full"])
def test_the_manifest_is_a_jobset(gke, full):
    run = gke("manifest", "n", *WHERE, *POD, *full, "--", *JOB)
    assert run.returncode == 0, run.stderr
    assert "@" not in run.stdout
    manifest = yaml.safe_load(run.stdout)
    jsonschema = validate(manifest)
    job, pod = pod_of(manifest)
    assert job["replicas"] == 2 and job["template"]["spec"]["parallelism"] == 64
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    labels, selector = manifest["metadata"]["labels"], pod["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-topology"] == "16x16"
    assert ("kueue.x-k8s.io/queue-name" in labels) == bool(full)
    for name in ("gke-spot", "reservation-name"):
        assert (f"cloud.google.com/{name}" in selector) == bool(full)
    assert manifest["metadata"]["namespace"] == ("teams" if full else "default")
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == (7 if full else 50)
    with pytest.raises(jsonschema.ValidationError):  # the schema can refuse
        pod["nodeSelektor"] = {}
        validate(manifest)


def test_the_words_of_the_job_arrive_as_they_are(gke):
    run = gke("manifest", "n", *WHERE, *POD, f"--env=A={ENVIRONMENT}", "--", *JOB, *ODD)
    assert run.returncode == 0, run.stderr
    _, pod = pod_of(yaml.safe_load(run.stdout))
    container = pod["containers"][0]
    variables = {}
    for variable in container["env"]:
        variables[variable["name"]] = expanded(variable["value"], variables)
    own = {"XL_FLAX_EXTRAS": "tpu", "XL_FLAX_JOIN_SECONDS": "600"}
    assert variables == own | {"A": ENVIRONMENT}
    words = [
        expanded(word, variables | {"HOME": "/root", "id": "wrong"}) for word in container["args"]
    ]
    assert container["command"] == ["bash", "launch/host.sh", "run"]
    assert words == ["train", "--distributed", *JOB[1:], *ODD]
    (code,) = pod["initContainers"]
    assert code["command"][-1].startswith("gs://b/code/xl-flax-")


HOSTS = {("8x8", 4): 16, ("4x4x8", 4): 32, ("2x4", 8): 1, ("2x2", 4): 1}


@pytest.mark.parametrize("shape", HOSTS, ids=str)
def test_hosts_follow_from_the_topology(gke, shape):
    words = [f"--topology={shape[0]}", f"--chips_per_host={shape[1]}"]
    run = gke("manifest", "n", *WHERE, *words, "--", *JOB)
    job, _ = pod_of(yaml.safe_load(run.stdout))
    assert job["template"]["spec"]["completions"] == HOSTS[shape]


def test_a_job_is_started_once(gke, world):
    words = ("start", "n", *WHERE, *POD, "--price=2", "--", *JOB)
    run = gke(*words)
    assert run.returncode == 0, run.stderr
    made = world.read()["jobset"]["manifest"]
    validate(yaml.safe_load(made))
    assert world.read()["bucket"] == [
        pod_of(yaml.safe_load(made))[1]["initContainers"][0]["command"][-1]
    ]
    assert "512 chips × 1.00 h = 512.0 chip hours × 2 = 1024.00" in run.stderr
    assert "left: JobSet n is Running" in run.stderr and "node pools COST" in run.stderr
    again = gke(*words)
    assert again.returncode == 0 and "n is there already" in again.stderr
    other = gke(*words, "--gin.STEPS=1")
    assert other.returncode == 1 and "with other settings" in errors(other)[0]
    for state, creations in (("Completed", 1), ("Failed", 2)):
        changed = world.read()
        changed["jobset"]["state"] = state
        world.write(changed)
        assert gke(*words).returncode == 0
        assert len(world.calls("^kubectl.* create ")) == creations
    assert gke("logs", "n").stdout == "step 1\n"
    assert gke("status", "n").returncode == 0
    run = gke("delete", "n")
    assert run.returncode == 0 and "no JobSet n is left" in run.stderr
    assert "node pools COST" in run.stderr and not world.read()["jobset"]


def test_a_dry_run_prints_what_a_start_does(gke, world):
    words = ("start", "n", *WHERE, *POD, "--", *JOB, *ODD)
    dry = gke(*words[:2], "--dry_run", *words[2:])
    assert dry.returncode == 0 and not world.calls()
    assert gke(*words).returncode == 0
    printed = dry.stdout.split("<<'END'\n")[1].removesuffix("END\n")
    assert printed == world.read()["jobset"]["manifest"]
    commands = [placeless(call) for call in world.calls()][:-1]
    assert [re.sub(" -o .*", "", call) for call in commands] == [
        "kubectl --namespace=default get jobset n --ignore-not-found",
        *(placeless(line) for line in dry.stdout.splitlines() if line.startswith("gcloud")),
        "kubectl --namespace=default create -f -",
    ]


FAILURES = {  # the call, what is said, the advice, what the call did all the same, what is left
    "no cluster": (" get ", "The connection to the server was refused", "get-credentials",
                   None, None),
    "no rights": (" create ", 'Error from server (Forbidden): jobsets is forbidden: User "u"',
                  "has your account the rights", None, "no JobSet n is left"),
    "no JobSet": (" create ", 'error: no matches for kind "JobSet" in version "v1"',
                  "install JobSet", None, "no JobSet n is left"),
    "partial": (" create ", "Error: timed out", "", "done", "left: JobSet n is Running"),
    "no bucket": ("storage cp", "ERROR: (gcloud.storage.cp) gs://b not found", "", None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_a_refusal_is_one_line_and_says_what_is_left(gke, world, name):
    match, said, advice, after, left = FAILURES[name]
    logged = 'E1129 08:59:31.687568    5682 memcache.go:265] "Unhandled Error" err="refused"\n'
    world.fail(match, logged * 2 + said, after=after)
    run = gke("start", "n", *WHERE, *POD, "--", *JOB)
    assert run.returncode == 1
    (line,) = errors(run)
    assert said in line and advice in line and "Unhandled" not in line
    assert (left or "error:") in run.stderr
    assert ("node pools COST" in run.stderr) == bool(left)


WRONG = {
    ("start", "n", *WHERE, "--", *JOB): "start needs --topology=VALUE",
    ("start", "n", "--topology=2x2", "--accelerator=a", "--", *JOB): "start needs --bucket=VALUE",
    ("start", "n", *WHERE, "--topology=16", "--", *JOB): "is written as 16x16 or 4x4x8",
    ("start", "n", *WHERE, "--topology=1x3", "--", *JOB): "has 3 chips, which 4 a host do not",
    ("start", "n", *WHERE, *POD, "--bucket=gs://", "--", *JOB): "is written as gs://BUCKET/FOLDER",
    ("start", "n", *WHERE, *POD, "--bucket=b", "--", *JOB): "is written as gs://BUCKET/FOLDER",
    ("start", "n", *WHERE, *POD, "--", "train", "--gin.MODEL_DIR=r"): "give --gin.MODEL_DIR=gs://",
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG, ids=lambda words: " ".join(words)[:60])
def test_wrong_arguments_reach_no_cluster(gke, world, words):
    run = gke(*words)
    assert run.returncode == 2 and WRONG[words] in errors(run)[0] and not world.calls()
