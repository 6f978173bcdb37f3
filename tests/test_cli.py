"""Mistakes in Gin files and flags each give one line that names them and says what to do."""

import os

import gin
import jax
import pytest

from xl_flax import cache, cli, convert, evaluate, report, train, vocab
from xl_flax.data.manifest import Cache
from xl_flax.errors import UserError
from xl_flax.files.write import write_atomically
from xl_flax.parallel.mesh import MeshConfig
from xl_flax.training.config import InitFrom
from xl_flax.training.optimizer import OptimizerConfig


def parse(*flags):
    return cli.parse(flags, "test")


@pytest.fixture
def gin_file(tmp_path):
    def write(text):
        path = tmp_path / "run.gin"
        path.write_text(text)
        return f"--gin_file={path}"

    return write


def test_files_and_flags_configure_and_flags_win(gin_file):
    parse(
        gin_file("LR = 0.1\nOptimizerConfig.learning_rate = %LR\nMeshConfig.ici = (2, 4, 1)\n"),
        "--gin.LR=0.5",
        "--gin.OptimizerConfig.schedule=rsqrt",
    )
    assert OptimizerConfig().learning_rate == 0.5
    assert OptimizerConfig().schedule == "rsqrt"
    assert tuple(MeshConfig().ici) == (2, 4, 1)


def test_flags_are_kept_for_passing_on(gin_file):
    file = gin_file("X = 1\nOptimizerConfig.b1 = %X\n")
    assert parse(file, "--gin.X=2").gin_flags == [file, "--gin.X=2"]


def test_bare_words_and_paths_are_strings(gin_file):
    parse(gin_file("P = 1\nInitFrom.checkpoint = %P\n"), "--gin.P=/data/my run/x-1")
    assert InitFrom().checkpoint == "/data/my run/x-1"


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("OptimizerConfg.b1 = 0.5\n", [], "OptimizerConfg.*line 1.*Did you mean 'OptimizerConfig'"),
        ("OptimizerConfig.beta = 0.5\n", [], "doesn't have a parameter named 'beta'.*line 1"),
        ("TrainConfig.keeplast = 5\n", [], "line 1.*Did you mean 'keep_last'"),
        ("", ["--gin.EncoderConfig.widht=5"], "Did you mean 'width'"),
        ("OptimizerConfig.b1 = [1,\n", [], "run.gin"),
        ("include 'gin/nowhere.gin'\n", [], "gin/nowhere.gin"),
        ("import no_such_module\n", [], "no_such_module.*line 1"),
        ("TrainConfig.steps = %STEPS\n", ["--gin.STEPZ=5"], "STEPZ.*did you mean STEPS"),
        ("TrainConfig.steps = %STEPS\nSTEPZ = 5\n", [], "STEPZ.*did you mean STEPS"),
        ("MODEL_DIR = %gin.REQUIRED\n", [], "MODEL_DIR must be set"),
        (
            "MODEL_DIR = %gin.REQUIRED\nCACHE_DIR = %gin.REQUIRED\n",
            [],
            "CACHE_DIR, MODEL_DIR must be set: in a Gin file",
        ),
        ("TrainConfig.encoder = @EncoderConf()\n", [], "Did you mean 'EncoderConfig'"),
    ],
)
def test_mistakes_are_named(gin_file, text, flags, message):
    with pytest.raises(UserError, match=message):
        parse(gin_file(text), *flags)


def test_a_missing_file_is_named_with_the_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = f"{tmp_path}, {cli.ROOT}$"
    with pytest.raises(UserError, match=f"there is no Gin file nowhere.gin in {where}"):
        parse("--gin_file=nowhere.gin")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "ZeroDivisionError division by zero"),
        ("raise SystemExit(3)", "SystemExit 3"),
        ("raise ValueError('no')", "no"),
        ("import no_such_module", "No module named 'no_such_module'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_its_line(
    gin_file, tmp_path, monkeypatch, text, message
):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"broken_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(f"x = 1\n{text}\n")
    with pytest.raises(UserError, match=f"{name}.py, line 2: {message}"):
        parse(gin_file(f"import {name}\n"))


@pytest.mark.parametrize("included", [False, True])
def test_what_is_no_gin_file_is_named(tmp_path, monkeypatch, included):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.gin").mkdir()
    os.mkfifo("fifo.gin")
    (tmp_path / "binary.gin").write_bytes(b"\x80\x81\xff")
    (tmp_path / "zeros.gin").write_bytes(bytes(100))
    for name, message in (
        ("folder", "folder.gin is a folder"),
        ("fifo", "fifo.gin is no regular file"),
        ("binary", "is no UTF-8 text: .*binary.gin" if included else "binary.gin.* is no UTF-8"),
        ("zeros", "zeros.gin"),
    ):
        if included:
            (tmp_path / "run.gin").write_text(f"include '{name}.gin'\n")
        with pytest.raises(UserError, match=message) as error:
            parse("--gin_file=run.gin" if included else f"--gin_file={name}.gin")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "module", [cache, convert, evaluate, report, train, vocab], ids=lambda m: m.__name__
)
def test_help_fits_on_a_terminal(module, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        module.main(["--help"])
    said = capsys.readouterr().out.splitlines()
    assert len(said) > 9 and max(map(len, said)) <= 80


def test_addresses_are_refused_that_are_not_read(gin_file):
    with pytest.raises(UserError, match="--gin_file = 'gs://b/run.gin': must be a local path"):
        parse("--gin_file=gs://b/run.gin")
    parse(gin_file("Cache.directory = %D\nD = 'hdfs://bucket/cache'\nCache.task_modules = ['m']\n"))
    with pytest.raises(UserError, match="Cache.directory = 'hdfs://bucket/cache': must be a local"):
        Cache()
    gin.clear_config()
    for main, flags, name in (
        (convert.main, ["--source=hdfs://b/run"], "source"),
        (convert.main, ["--source=run", "--target=gs://b/../x"], "target"),
        (convert.main, ["--source=run", "--text=gs://b/x"], "text"),
        (report.main, ["gs://b/run"], "folders"),
        (report.main, ["run", "--out=hdfs://b/x"], "out"),
    ):
        with pytest.raises(UserError, match=f"--{name} = '[a-z]+://b/.*: must be a local path"):
            main(flags)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OptimizerConfig.name = %NAME\n", "NAME must be set: in a Gin file (--gin_file), or with"),
        ("OptimizerConfig.name = %gin.REQUIRED\n", r"OptimizerConfig\.name must be set"),
    ],
)
def test_a_value_missing_when_it_is_needed_is_one_line(gin_file, text, message, capsys):
    def main(argv):
        parse(gin_file(text))
        OptimizerConfig()

    with pytest.raises(SystemExit) as exit_:
        cli.run(main)
    assert exit_.value.code == cli.EXIT_ERROR
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message.replace("\\", "") in error


def test_chips_that_cannot_be_used_are_one_line(capsys):
    def main(argv):
        raise RuntimeError("Unable to initialize backend 'tpu': UNKNOWN: chip 3 failed\n  at x.cc")

    with pytest.raises(SystemExit) as exit_:
        cli.run(main)
    assert exit_.value.code == cli.EXIT_ERROR
    said = "error: Unable to initialize backend 'tpu': UNKNOWN: chip 3 failed at x.cc\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("INTERNAL: Program hung: TPU core 3 halted", cli.EXIT_LOST),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3 bytes", None),
    ],
)
def test_a_device_that_fails_may_be_tried_again_but_not_one_that_is_too_small(
    message, code, capsys
):
    def main(argv):
        raise jax.errors.JaxRuntimeError(message)

    with pytest.raises(SystemExit if code else jax.errors.JaxRuntimeError) as exit_:
        cli.run(main)
    assert getattr(exit_.value, "code", None) == code
    if code:
        assert "error: a device failed: run the same command again" in capsys.readouterr().err


def test_an_unknown_flag_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse("--steps=3")
    assert exit_.value.code == cli.EXIT_USAGE
    assert "--gin.NAME=VALUE" in capsys.readouterr().err


def test_files_of_the_project_are_found_from_any_folder(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.gin").write_text("include 'gin/models/bert_tiny.gin'\n")
    parse("--gin_file=own.gin")
    assert not caplog.records  # Gin logs an error for each folder that lacks the file


def test_what_cannot_be_replaced_is_named_and_not_its_temporary_file(tmp_path, capsys):
    (tmp_path / "table.txt").mkdir()
    with pytest.raises(SystemExit):
        cli.run(lambda _: write_atomically(tmp_path / "table.txt", "a table"))
    assert capsys.readouterr().err == f"error: {tmp_path}/table.txt: Is a directory\n"
