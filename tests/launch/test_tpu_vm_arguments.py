"""launch/tpu_vm.sh: what it refuses before anything is asked of gcloud; and where it is called."""

import os
import subprocess

import pytest
from stand_in import errors

JOB = ["train", "--gin_file=gin/runs/mlm_xlmr_base.gin", "--gin.MODEL_DIR=gs://bucket/run"]
WHERE = ["--project=p", "--zone=z"]
SLICE = [*WHERE, "--type=v5litepod-64", "--poll=0"]


@pytest.fixture
def tpu_vm(launch):
    """Runs launch/tpu_vm.sh."""
    return lambda *words: launch("tpu_vm.sh", *words)


WRONG = {
    ("run", "my run", *SLICE, "--", *JOB): "my run: a name has small letters",
    ("run", "n", "--zone=z", "--type=v6e-8", "--", *JOB): "run needs --project=VALUE",
    ("run", "n", *WHERE, "--type=h100-8", "--", *JOB): "--type=h100-8: a type is written as",
    ("run", "n", *WHERE, "--type=v7x-8", "--", *JOB): "newer ones are had on GKE only",
    ("run", "n", *WHERE, "--type=v6e-0", "--", *JOB): "--type=v6e-0: a type is written as",
    ("run", "n", *WHERE, "--type=v5p-1", "--", *JOB): "--type=v5p-1 is less than a chip",
    ("run", "n", *SLICE, "--slices=0", "--", *JOB): "--slices=0: must be a whole number",
    ("run", "n", *SLICE, "--spot", "--reserved", "--", *JOB): "exclude one another",
    ("run", "n", *SLICE, "--spot", "--reservation=a", "--", *JOB): "exclude one another",
    ("run", "n", *SLICE, "--spto", "--", *JOB): "there is no option --spto",
    ("run", "n", *SLICE, "--spot=yes", "--", *JOB): "--spot takes no value: give --spot",
    ("run", "n", *SLICE, "--zone", "z", "--", *JOB): "--zone takes a value: --zone=VALUE",
    ("run", "n", *SLICE, "--env=1A=b", "--", *JOB): "--env=NAME=VALUE",
    ("run", "n", *SLICE, "--env=A-B=c", "--", *JOB): "--env=NAME=VALUE",
    ("run", "n", *SLICE, "--price=1,5", "--", *JOB): "--price=1,5: must be a number",
    ("run", "n", "z", *SLICE, "--", *JOB): "too much: z",
    ("run", "n", *SLICE): "say behind -- what to run",
    ("run", "n", *SLICE, "--", "tarin"): "there are train, evaluate, vocab and cache",
    ("run", "n", *SLICE, "--", "vocab"): "vocab is made once, on one machine",
    ("run", "n", *SLICE, "--", "cache"): "train makes what a shared folder lacks",
    ("run", "n", *SLICE, "--", "train"): "give --gin.MODEL_DIR=gs://BUCKET/RUN",
    ("run", "n", *SLICE, "--", "train", "--gin.MODEL_DIR=runs/a"): "give --gin.MODEL_DIR=gs://",
    ("run", "n", *SLICE, "--", "train", "--gin.MODEL_DIR=hdfs://a/b"): "give --gin.MODEL_DIR=gs://",
    ("run", "n", *SLICE, "--", *JOB, "--gin.VOCABULARY=a/v.model"): "VOCABULARY=a/v.model is only",
    ("go", "n", *SLICE): "there is no action go",
    (): "say what to do",
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG, ids=lambda words: " ".join(words)[:40])
def test_wrong_arguments_cost_nothing(tpu_vm, world, words):
    run = tpu_vm(*words)
    assert run.returncode == 2 and not world.calls()
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: ") and WRONG[words] in line


def test_changes_that_are_in_no_commit_are_not_left_behind(tpu_vm, world, project):
    (project / "my languages.py").write_text("")
    try:
        run = tpu_vm("run", "n", *SLICE, "--", *JOB)
        assert run.returncode == 1 and not world.calls()
        assert "my languages.py" in errors(run)[0] and "--ref=HEAD" in errors(run)[0]
        assert tpu_vm("run", "n", *SLICE, "--ref=HEAD", "--dry_run", "--", *JOB).returncode == 0
        assert "there is no commit v9" in tpu_vm("run", "n", *SLICE, "--ref=v9", "--", *JOB).stderr
    finally:
        (project / "my languages.py").unlink()


def test_without_a_repository_one_line_says_so(tpu_vm, world, project):
    (project / ".git").rename(project / "git")
    try:
        run = tpu_vm("run", "n", *SLICE, "--", *JOB)
        assert run.returncode == 1 and "is no clone of a git repository" in errors(run)[0]
    finally:
        (project / "git").rename(project / ".git")


def test_a_script_is_called_from_anywhere(world, project, tmp_path):
    for words in (["--help"], ["run", "n", *SLICE, "--dry_run", "--", *JOB]):
        run = subprocess.run(
            ["bash", os.path.relpath(project / "launch/tpu_vm.sh", tmp_path), *words],
            env=world.environment, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == 0 and "tpu" in run.stdout
