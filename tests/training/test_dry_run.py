"""What a run would be, also where neither text nor a vocabulary is there."""

import dataclasses
import os
import subprocess
import sys
import types

import jax
import pytest
from small_evaluations import WORDS, train_vocabulary

from xl_flax import cli, train
from xl_flax.errors import UserError
from xl_flax.objectives.mlm import MaskedLM
from xl_flax.parallel.mesh import make_partitioning
from xl_flax.training import setup
from xl_flax.training.config import TrainConfig
from xl_flax.training.program import assumed_streams, lower_without_data, make_program

QUICKSTART = "gin/runs/quickstart.gin"


def flags(folder, **bindings):
    names = {"MODEL_DIR": "run", "CACHE_DIR": "cache", "VOCABULARY": "v.model"}
    values = {name: folder / file for name, file in names.items()} | bindings
    return [f"--gin_file={QUICKSTART}", *(f"--gin.{k}={v}" for k, v in values.items())]


def test_a_dry_run_needs_no_data_and_writes_nothing(tmp_path, capsys):
    assert train.main([*flags(tmp_path), "--dry_run"]) == cli.EXIT_DONE
    said = " ".join(capsys.readouterr().out.split())
    assert "v.model does not exist; train it with python -m xl_flax.vocab" in said
    assert "Assumed meanwhile: mlm: examples of one text" in said
    assert "the step compiles; per device" in said and "configurable" not in said
    assert not list(tmp_path.iterdir())


def test_settings_that_do_not_go_together_are_refused(tmp_path):
    with pytest.raises(UserError, match="batch_size=12 cannot be divided"):
        train.main([*flags(tmp_path, BATCH_SIZE=12), "--dry_run"])


def test_an_objective_that_reads_something_else_is_told_what_to_define(tmp_path, monkeypatch):
    def check(self, stream):
        raise UserError(f"needs three texts, not {stream.num_texts}")

    monkeypatch.setattr(MaskedLM, "check", check)
    with pytest.raises(
        UserError, match=r"needs three texts, not 1\): define MaskedLM.usual_example"
    ):
        train.main([*flags(tmp_path), "--dry_run"])


def test_with_a_vocabulary_its_size_is_checked(tmp_path):
    train_vocabulary(tmp_path / "v.model", WORDS)
    with pytest.raises(UserError, match="EncoderConfig.vocab_size=10; set it"):
        train.main([*flags(tmp_path, VOCAB_SIZE=10), "--dry_run"])


def test_it_simulates_devices(tmp_path):
    command = [sys.executable, "-m", "xl_flax.train", *flags(tmp_path), "--devices=4"]
    environment = os.environ | {"PYTHONPATH": cli.ROOT}
    run = lambda more: subprocess.run(  # noqa: E731
        [*command, *more], check=False, env=environment, capture_output=True, text=True
    )
    done = run(["--dry_run", "--gin_file=gin/meshes/fsdp.gin"])
    assert done.returncode == 0, done.stderr
    assert "mesh data 1 × fsdp 4 × tensor 1" in done.stdout
    done = run([])
    assert done.returncode == 1 and "add --dry_run" in done.stderr


@pytest.mark.parametrize(
    "objective",
    ["classification", "choice", "questions", "tagging", "parsing", "contrastive", "tlm", "xlco"],
)
def test_each_objective_says_what_it_usually_reads(tmp_path, objective):
    """The step is traced with it, on two devices."""
    files = [QUICKSTART, f"gin/objectives/{objective}.gin"]
    named = [f"MODEL_DIR = {str(tmp_path)!r}", "CACHE_DIR = '/c'", "VOCABULARY = '/v'"]
    cli.load_gin(files, [*named, "LENGTH = 256", "TrainConfig.held_out = []"])
    config = dataclasses.replace(TrainConfig(), best=None)
    partitioning = make_partitioning(config.mesh, jax.devices()[:2])
    program = make_program(config, assumed_streams(config), partitioning)
    assert "mhlo.num_partitions = 2" in lower_without_data(program, config).as_text()


def test_tables_that_others_rounded_up_may_be_trained_from_scratch():
    xlm_r_xl = types.SimpleNamespace(size=250_002, path="v")
    config = lambda rows: types.SimpleNamespace(  # noqa: E731
        encoder=types.SimpleNamespace(vocab_size=rows), init_from=None
    )
    setup._check_vocabulary(xlm_r_xl, config(250_880))
    for rows in (250_001, 253_000):
        with pytest.raises(UserError, match="has 250,002 pieces, but EncoderConfig.vocab_size"):
            setup._check_vocabulary(xlm_r_xl, config(rows))
