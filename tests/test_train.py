"""The training command end to end: same bits across kills, same losses on every mesh, bad input.

The run has an objective of each kind: text alone, one with a state of its own, labelled examples.
"""

import dataclasses
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from xl_flax import cli
from xl_flax.checkpoints.load import find_checkpoints, load_model, read_description
from xl_flax.checkpoints.manager import read_best
from xl_flax.data.synthetic.generator import corpus_sentence
from xl_flax.data.synthetic.language import FAMILY
from xl_flax.data.vocabulary import VocabularyConfig
from xl_flax.data.vocabulary_training import Corpus, train_model
from xl_flax.errors import UserError
from xl_flax.evaluation.base import Evaluation
from xl_flax.evaluation.results import MACRO, Result
from xl_flax.parallel.mesh import make_partitioning
from xl_flax.training import loop, setup
from xl_flax.training.config import Best, InitFrom, Periodic, TrainConfig
from xl_flax.training.folder import alone

TASKS = """
import functools
import tensorflow as tf
from tasks import synthetic_labelled
from tasks.labelled import add_labelled_task
from tasks.parallel import add_parallel_task
from tasks.synthetic import FAMILY, source
from tasks.synthetic_parallel import source as pair_source
from tasks.text import add_language_mixture, add_text_task
from xl_flax.data.synthetic.inference import LABELS

SIZES = {"train": 400, "validation": 60, "test": 60}
LANGUAGES = ("alpha", "gamma")
NAMES = [add_text_task(f"small_{n}", n, source(FAMILY[n], SIZES)).name for n in LANGUAGES]
add_language_mixture("small", NAMES)
add_language_mixture("small_even", NAMES, exponent=0)
add_parallel_task("small_pairs", LANGUAGES, pair_source([FAMILY[n] for n in LANGUAGES], SIZES))
SIGNATURE = {"text": tf.TensorSpec((2,), tf.string), "label": tf.TensorSpec((), tf.string)}
EXAMPLE = functools.partial(synthetic_labelled.inference, FAMILY["alpha"])
SOURCE = synthetic_labelled.source(EXAMPLE, SIGNATURE, SIZES)
add_labelled_task("small_inference", ("alpha", "alpha"), SOURCE, LABELS)
"""
VOCAB_SIZE = 300
RUN = """
include 'gin/base.gin'
include 'gin/models/bert_tiny.gin'
include 'gin/objectives/mlm.gin'
include 'gin/objectives/ppa.gin'
MODEL_DIR = '{folder}/run'
CACHE_DIR = '{folder}/cache'
VOCABULARY = '{folder}/vocabulary.model'
VOCAB_SIZE = 300
TASK_MODULES = ['small_tasks']
MIXTURE = [(0, 'small'), (80, 'small_even')]
VocabularyConfig.mixture = 'small'
LENGTH = 32
BATCH_SIZE = 16
STEPS = 12
EncoderConfig.num_layers = 2
EncoderConfig.width = 32
EncoderConfig.num_heads = 2
EncoderConfig.mlp_width = 64
TrainConfig.objectives = [@MaskedLM(), @MomentumContrastive(), @SequenceClassification()]
PAIRS = 'small_pairs'
PAIRS_LENGTH = 48
MOMENTUM_BATCH_SIZE = 16
QUEUE_SIZE = 256
MomentumContrastive.momentum = 0.9
MomentumContrastive.weight = 0.5
labelled/Rows.mixture = 'small_inference'
labelled/Rows.length = 48
SequenceClassification.rows = @labelled/Rows()
SequenceClassification.batch_size = 16
SequenceClassification.weight = 0.5
OptimizerConfig.learning_rate = 3e-3
OptimizerConfig.schedule = 'constant'
TrainConfig.log_every = 4
TrainConfig.checkpoint_every = 3
TrainConfig.keep_last = 2
TrainConfig.held_out = [@Periodic()]
Periodic.every = 6
Periodic.evaluation = @MaskedAccuracy()
MaskedAccuracy.mixture = 'small'
MaskedAccuracy.length = %LENGTH
MaskedAccuracy.rows_per_task = 4
"""
CLOCK = ("time", "tokens_per_second", "seconds_per_step", "input_wait", "model_tflops", "mfu")


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    """Most of what is compiled runs a few times only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A vocabulary, a module with tasks, and a Gin file; caches are built by the first run."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "small_tasks.py").write_text(TASKS)
    (folder / "run.gin").write_text(RUN.format(folder=folder))
    corpora = [
        Corpus(n, 400, [corpus_sentence(FAMILY[n], "train", i).text for i in range(400)], 1)
        for n in ("alpha", "gamma")
    ]
    config = VocabularyConfig("small", str(folder / "vocabulary.model"), VOCAB_SIZE)
    (folder / "vocabulary.model").write_bytes(train_model(corpora, config))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def configure(folder, tmp_path):
    """configure(**bindings) -> TrainConfig of a run in a folder of its own."""

    def make(**bindings):
        values = {"MODEL_DIR": str(tmp_path / "run")} | bindings
        lines = [f"{k.replace('__', '.')} = {v!r}" for k, v in values.items()]
        cli.load_gin([str(folder / "run.gin")], lines)
        return TrainConfig()

    return make


@pytest.fixture
def masked_only(configure):
    """As `configure`, with the first objective alone and no evaluations: it compiles fast."""

    def make(**bindings):
        config = configure(**bindings)
        return dataclasses.replace(config, objectives=config.objectives[:1], held_out=())

    return make


def train(config, folder, **kwargs):
    return loop.train(config, [f"--gin_file={folder}/run.gin"], **kwargs)


def lines_of(model_dir):
    """`metrics.jsonl` without what the clock says."""
    with open(os.path.join(model_dir, "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    return [{k: v for k, v in line.items() if not k.startswith(CLOCK)} for line in lines]


def saved(model_dir, item):
    """One item of the newest checkpoint as a dict of arrays by path."""
    path = os.path.join(find_checkpoints(model_dir)[-1], item)
    tree = ocp.PyTreeCheckpointer().restore(path)
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def texts_of(model_dir):
    """What the plain files of a run's folder hold, by name."""
    names = [name for name in os.listdir(model_dir) if name.endswith((".gin", ".txt", ".jsonl"))]
    return {name: Path(model_dir, name).read_text() for name in names}


@pytest.fixture(scope="module")
def reference(folder):
    """A finished run on one device."""
    cli.load_gin([str(folder / "run.gin")])
    with pytest.MonkeyPatch.context() as patch:
        on_devices(patch, 1)
        assert train(TrainConfig(), folder)
    return str(folder / "run")


def on_devices(patch, count):
    patch.setattr(
        setup, "make_partitioning", lambda config: make_partitioning(config, jax.devices()[:count])
    )


def test_a_run_leaves_what_it_promises(reference):
    files = {"config.gin", "metrics.jsonl", "model-info.txt", "data-info.txt"}
    assert {*files, "metrics", "checkpoints"} <= set(os.listdir(reference))
    assert [os.path.basename(c) for c in find_checkpoints(reference)] == ["9", "12"]
    with open(os.path.join(reference, "model-info.txt")) as file:
        info = file.read()
    assert re.search(
        r"encoder/embeddings/tokens +300×32 +float32 +vocab, embed +tensor, fsdp", info
    )
    lines = lines_of(reference)
    assert [line["step"] for line in lines] == [0, 4, 6, 6, 8, 12, 12]
    assert lines[2]["phases"] == {"mlm/mixture": "small_even"}
    logged = lines[1]
    for key in ("loss", "grad_norm", "learning_rate", "skipped", "mlm/loss", "mlm/accuracy",
                "mlm/fill", "mlm/overflow", "mlm/loss/alpha", "mlm/accuracy/gamma"):  # fmt: skip
        assert key in logged, key
    assert {"eval/small/loss", "eval/small/accuracy/alpha"} <= set(lines[0])
    assert lines[-1]["eval/small/loss"] < lines[0]["eval/small/loss"]
    assert 0.5 < logged["mlm/fill"] <= 1


def test_checkpoints_describe_themselves(reference):
    model, description, checkpoint = load_model(reference)
    both = ("alpha", "gamma")
    languages = {"mlm": both, "momentum": both, "sequence": ("alpha",)}
    assert description.step == 12 and description.languages == languages
    assert description.heads["sequence"]["labels"] == ["entailment", "neutral", "contradiction"]
    assert set(model.heads) == {"mlm", "momentum", "sequence"}
    assert model.encoder.config.width == 32
    assert read_description(checkpoint).objectives["mlm"]["mixture"] == [
        [0, "small"],
        [80, "small_even"],
    ]


@pytest.mark.parametrize(
    ("ici", "accumulate"), [((8, 1, 1), 1), ((2, 2, 2), 2), ((1, 4, 2), 4), ((1, 1, 8), 2)]
)
def test_eight_devices_learn_as_one(reference, configure, folder, ici, accumulate):
    config = configure(MeshConfig__ici=ici, TrainConfig__accumulate=accumulate, STEPS=8)
    train(config, folder)
    mine, theirs = lines_of(config.model_dir), lines_of(reference)
    for a, b in zip(mine[1:5], theirs[1:5], strict=True):
        for key in ("loss", "mlm/accuracy", "grad_norm", "eval/small/loss"):
            if key in b:
                assert a[key] == pytest.approx(b[key], rel=2e-3), (a["step"], key)


def test_a_run_goes_on_on_another_mesh_and_says_what_else_differs(
    reference, configure, folder, capsys
):
    with pytest.MonkeyPatch.context() as patch:
        on_devices(patch, 1)
        train(
            configure(
                STEPS=6, OptimizerConfig__schedule="linear", OptimizerConfig__final_scale=1.0
            ),
            folder,
        )
    model_dir = configure().model_dir
    first = texts_of(model_dir)["config.gin"]
    capsys.readouterr()
    train(configure(MeshConfig__ici=(2, 2, 2)), folder)
    output = capsys.readouterr().out
    for line in (
        f"resuming {model_dir} at step 6",
        "  MeshConfig.ici was [-1, 1, 1] and is now [2, 2, 2]",
        "  OptimizerConfig.schedule was 'linear' and is now 'constant'",
        "  TrainConfig.steps was 6 and is now 12",
        f"the configuration up to step 6 is now {model_dir}/config-0000006.gin",
    ):
        assert line in output.splitlines()
    assert "checkpoints that stay: the newest 2 (TrainConfig.keep_last)" in output
    assert "anew" not in output  # the same rates as before
    assert "from here on" not in output  # the second mixture began with step 6
    texts = texts_of(model_dir)
    assert texts["config-0000006.gin"] == first and "STEPS = 12" in texts["config.gin"]
    mine, theirs = lines_of(model_dir)[-1], lines_of(reference)[-1]
    assert mine["eval/small/loss"] == pytest.approx(theirs["eval/small/loss"], rel=2e-3)


def command(folder, model_dir, *flags, **variables):
    environment = (
        os.environ
        | {
            "PYTHONPATH": f"{folder}{os.pathsep}{cli.ROOT}",
            "XLA_FLAGS": "",  # one device, as most users have
            "NPROC": "2",
        }
        | variables
    )
    return subprocess.Popen(
        [sys.executable, "-m", "xl_flax.train", f"--gin_file={folder}/run.gin",
         f"--gin.MODEL_DIR={model_dir}", *flags],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process):
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


def wait_for_step(process, step):
    """Reads the run's output up to its line about a step."""
    for line in process.stdout:
        match = re.match(r"step +(\d+)", line)
        if match and int(match[1]) >= step:
            return
    raise AssertionError("the run ended early")


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits(reference, folder, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    flags = ("--gin.STEPS=24",)
    finish(command(folder, straight, *flags))
    rng = random.Random(os.getpid())  # another moment each time
    for step in (4, 12):
        process = command(folder, killed, *flags)
        wait_for_step(process, step)
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    output = finish(command(folder, killed, *flags))
    assert "resuming" in output
    for item in ("params", "optimizer"):
        expected = saved(straight, item)
        found = saved(killed, item)
        assert expected.keys() == found.keys()
        for path, value in expected.items():
            np.testing.assert_array_equal(value, found[path], err_msg=f"{item}{path}")
    assert lines_of(killed) == lines_of(straight)


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_saves_and_says_so(reference, folder, tmp_path):
    process = command(folder, tmp_path / "run", "--gin.STEPS=4000")
    wait_for_step(process, 8)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == cli.EXIT_PREEMPTED
    step = int(re.search(r"saved step ([\d,]+)", output)[1].replace(",", ""))
    assert find_checkpoints(str(tmp_path / "run"))[-1].endswith(f"/{step}")


@pytest.mark.slow
def test_two_processes_train_as_one(reference, folder, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def start(*flags):
        return [
            command(folder, tmp_path / "run", "--gin.MeshConfig.ici=(1,2,1)", "--num_processes=2",
                    f"--coordinator=127.0.0.1:{port}", f"--process_id={i}", *flags,
                    JAX_DISABLE_MOST_OPTIMIZATIONS="1")
            for i in range(2)
        ]  # fmt: skip

    for flags in (("--gin.STEPS=6",), ()):  # the second time they resume
        for output in [finish(process) for process in start(*flags)]:
            assert "Traceback" not in output
    mine, theirs = lines_of(tmp_path / "run")[-1], lines_of(reference)[-1]
    assert mine["step"] == 12
    assert mine["eval/small/loss"] == pytest.approx(theirs["eval/small/loss"], rel=2e-3)


def test_a_run_that_another_process_trains_is_left_alone(reference, configure, folder):
    with alone(reference), pytest.raises(UserError, match="another process is training"):
        train(configure(MODEL_DIR=reference, STEPS=20), folder)
    assert find_checkpoints(reference)[-1].endswith("/12")


def test_parameters_can_start_from_another_checkpoint(reference, configure, folder, capsys):
    config = configure(STEPS=1, OptimizerConfig__learning_rate=0.0, OptimizerConfig__weight_decay=0)
    init = InitFrom(reference, include="encoder/.*", exclude=".*/positions")
    train(dataclasses.replace(config, init_from=init), folder)
    mine, theirs = saved(config.model_dir, "params"), saved(reference, "params")
    np.testing.assert_array_equal(
        mine["['encoder']['embeddings']['tokens']"], theirs["['encoder']['embeddings']['tokens']"]
    )
    for path in ("['encoder']['embeddings']['positions']", "['heads']['mlm']['dense']"):
        assert (mine[path] != theirs[path]).any()
    assert "parameter arrays from" in capsys.readouterr().out


def test_a_window_of_steps_can_be_profiled(reference, configure, folder):
    config = configure(STEPS=3, TrainConfig__profile=(2, 5))  # the run ends inside the window
    train(config, folder)
    found = [name for _, _, names in os.walk(f"{config.model_dir}/profile") for name in names]
    assert any(name.endswith(".xplane.pb") for name in found)


def test_a_dry_run_writes_nothing(reference, configure, folder, capsys):
    config = configure()
    assert train(config, folder, dry_run=True)
    output = capsys.readouterr().out
    assert "the step compiles" in output
    table = output[output.index("part ") : output.index("parameters;")]
    assert all(len(line) <= 80 for line in table.splitlines())
    assert not os.path.exists(config.model_dir)


@dataclasses.dataclass(frozen=True)
class Scripted(Evaluation):
    """Scores a run by its step, or breaks it off as a kill does."""

    scores: dict
    kill_at: int | None = None
    datasets = ()

    def signatures(self, description, context):
        return ["scripted"]

    def __call__(self, subject, context):
        step = subject.description.step
        if step == self.kill_at:
            raise KeyboardInterrupt
        return [Result("scripted", "m/dev", (MACRO,), "score", self.scores[step], 1, "scripted")]


def test_the_best_checkpoint_stays_and_patience_ends_the_run(configure, folder, capsys):
    base = configure(STEPS=24, TrainConfig__checkpoint_every=10, TrainConfig__keep_last=1)
    best = Best("eval/m/score", "max", patience=2)
    scores = {0: 0.9, 3: 0.1, 6: 0.5, 9: 0.4, 12: 0.2}

    def run(**settings):
        held_out = [Periodic(Scripted(scores, **settings), every=3)]
        return train(dataclasses.replace(base, held_out=held_out, best=best), folder)

    steps = lambda: [os.path.basename(c) for c in find_checkpoints(base.model_dir)]  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        run(kill_at=12)
    assert steps() == ["6", "10"]
    for _ in range(2):  # it goes on with best and patience, ends, and does not go on from there
        capsys.readouterr()
        assert run()
        message = "done: stopped early at step 12: best eval/m/score 0.5000 at step 6"
        assert message in capsys.readouterr().out
        assert steps() == ["6", "12"]
    with open(os.path.join(base.model_dir, "checkpoints", "best.json")) as file:
        assert json.load(file) == {"step": 6, "metric": best.metric, "mode": "max", "value": 0.5}
    assert load_model(f"{base.model_dir}:best")[1].step == 6
    logged = {line["step"]: line.get("eval/m/score") for line in lines_of(base.model_dir)}
    assert logged[9] == 0.4 and logged[12] == 0.2


def test_a_run_that_is_asked_to_stop_saves_first_and_evaluates_later(
    configure, folder, capsys, monkeypatch
):
    base = configure(STEPS=6, TrainConfig__keep_last=1)
    held_out = [Periodic(Scripted({0: 0.1, 3: 0.5, 6: 0.2}), every=3)]
    best, objectives = Best("eval/m/score", "max"), base.objectives[:1]
    config = dataclasses.replace(base, objectives=objectives, held_out=held_out, best=best)
    for stop, finished in ((3, False), (6, False), (None, True)):
        monkeypatch.setattr(loop.Preemption, "reached", lambda _, step, stop=stop: step == stop)
        assert train(config, folder) == finished
        assert ("asked to stop: saved step" in capsys.readouterr().out) != finished
    lines = lines_of(config.model_dir)
    assert [line["step"] for line in lines if "eval/m/score" in line] == [0, 3, 6]
    assert read_best(f"{config.model_dir}/checkpoints")["step"] == 3
    assert train(config, folder) and lines_of(config.model_dir) == lines


def steps_of(model_dir):
    return [int(os.path.basename(c)) for c in find_checkpoints(model_dir)]


@pytest.mark.parametrize("good", [3, None])
def test_after_divergence_a_lower_rate_goes_on_from_the_last_good_state(
    reference, masked_only, folder, good
):
    """The checkpoint that the first step of that rate left is finite, and leads nowhere."""
    often = {"TrainConfig__checkpoint_every": 1, "TrainConfig__keep_last": None}
    if good:
        train(masked_only(STEPS=good, **often), folder)
    config = masked_only(OptimizerConfig__learning_rate=1e30, TrainConfig__max_bad_steps=3, **often)
    spoilt = (good or 0) + 1
    after = f"on from its checkpoint of step {good}" if good else "begins again at step 0"
    message = f"not finite in 3 steps in a row.*step {spoilt}, .*set_aside/{spoilt};.*rate.*{after}"
    with pytest.raises(UserError, match=message):
        train(config, folder)
    if good:
        assert steps_of(config.model_dir) == [1, 2, 3]
    train(masked_only(STEPS=6, TrainConfig__max_bad_steps=3), folder)
    assert steps_of(config.model_dir)[-1] == 6
    assert all(np.isfinite(v).all() for v in saved(config.model_dir, "params").values())


def test_a_checkpoint_that_was_there_before_a_streak_is_left(reference, masked_only, folder):
    config = masked_only(STEPS=3, OptimizerConfig__learning_rate=1e30, TrainConfig__max_bad_steps=9)
    with pytest.raises(UserError, match="step 3 is not saved.*no checkpoint is there"):
        train(config, folder)
    train(masked_only(STEPS=1, OptimizerConfig__learning_rate=1e30), folder)
    for _ in range(2):
        with pytest.raises(UserError, match="step 1, which was left as it is.*Lower"):
            train(masked_only(TrainConfig__max_bad_steps=3), folder)
    assert steps_of(config.model_dir) == [1]


@pytest.fixture
def bad_steps(monkeypatch):
    """bad_steps(first, last) makes a run believe that these were not finite."""

    def make(first, last):
        def set_up_so(*args):
            made = setup.set_up(*args)
            count = itertools.count(1)

            def step(*args):
                state, metrics = made.step(*args)
                at = next(count)
                metrics["step"]["bad_streak"] = max(0, at - first + 1) if at <= last else 0
                return state, metrics

            return dataclasses.replace(made, step=step)

        monkeypatch.setattr(loop, "set_up", set_up_so)

    return make


def test_saving_waits_for_the_end_of_a_streak(masked_only, folder, bad_steps):
    bad_steps(3, 7)
    config = masked_only(STEPS=9, TrainConfig__checkpoint_every=3, TrainConfig__keep_last=None)
    train(config, folder)
    assert steps_of(config.model_dir) == [8, 9]


def test_a_run_that_is_asked_to_stop_inside_a_streak_says_what_is_saved(
    masked_only, folder, bad_steps, monkeypatch, capsys
):
    bad_steps(4, 9)
    monkeypatch.setattr(loop.Preemption, "reached", lambda _, step: step == 5)
    config = masked_only(STEPS=9, TrainConfig__checkpoint_every=3)
    assert not train(config, folder)
    assert "step 5 is not saved" in (said := capsys.readouterr().out)
    assert "goes on from the newest checkpoint, of step 3" in said
    assert steps_of(config.model_dir) == [3]


def test_folders_that_are_no_checkpoint_do_not_keep_a_run_from_saving(
    reference, masked_only, folder, capfd
):
    config = masked_only(STEPS=6)
    os.makedirs(f"{config.model_dir}/checkpoints/1000")
    train(config, folder)
    assert "checkpoints/1000 is empty; moved to" in capfd.readouterr().err
    assert steps_of(config.model_dir) == [3, 6]
    value = saved(config.model_dir, "params")
    flip(f"{config.model_dir}/checkpoints/6")
    train(config, folder)
    said = capfd.readouterr()
    assert "params" in said.err and "is not what was written" in said.err
    assert "resuming" in said.out and "at step 3" in said.out and "done" in said.out
    assert steps_of(config.model_dir) == [3, 6]
    for path, again in saved(config.model_dir, "params").items():
        np.testing.assert_array_equal(value[path], again)


def flip(checkpoint):
    """Changes one bit of the largest file of the parameters."""
    files = [os.path.join(w, n) for w, _, names in os.walk(f"{checkpoint}/params") for n in names]
    path = max(files, key=os.path.getsize)
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        ({"VOCAB_SIZE": 1000}, r"has 300 pieces, but EncoderConfig.vocab_size=1,000"),
        ({"VOCABULARY": "/nowhere.model"}, r"/nowhere\.model does not exist.*xl_flax\.vocab"),
        ({"BATCH_SIZE": 12}, r"batch_size=12 .* multiple of 8"),
        ({"MeshConfig__ici": (3, 1, 1)}, r"but there are 8"),
        ({"MIXTURE": "smal"}, r"'smal'.*did you mean 'small'"),
        ({"STEPS": 0}, r"TrainConfig\.steps = 0"),
        ({"LENGTH": 1024}, r"rows of 1024 tokens .*max_positions=512"),
        ({"TrainConfig__seed": -1}, r"TrainConfig\.seed = -1"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(
    reference, configure, folder, tmp_path, bindings, message
):
    with pytest.raises(UserError, match=message):
        train(configure(**bindings), folder)
    assert not os.path.exists(tmp_path / "run")


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        ({"EncoderConfig__num_layers": 3}, r"EncoderConfig\.num_layers was 2 and is now 3"),
        ({"MaskedLM__rate": 0.3}, r"mlm\.rate was"),
        ({"SEED": 5}, r"TrainConfig\.seed was 0 and is now 5"),
        ({"STEPS": 6}, r"TrainConfig\.steps = 6, but .* has reached step 12 already"),
        (
            {"OptimizerConfig__name": "muon"},
            r"OptimizerConfig\.name was 'adamw' and is now 'muon'; with this, the array optimizer/",
        ),
        (
            {"OptimizerConfig__rate_factors": [("heads/.*", 2.0)]},
            r"OptimizerConfig\.rate_factors was \[\] and is now \[\['heads/\.\*', 2\.0\]\]",
        ),
        ({"MomentumContrastive__momentum": 0.5}, r"momentum\.momentum was 0\.9 and is now 0\.5"),
    ],
)
def test_a_folder_of_another_run_is_refused_and_left_alone(
    reference, configure, folder, capsys, bindings, message
):
    before, texts = saved(reference, "params"), texts_of(reference)
    config = configure(**{"MODEL_DIR": reference, "STEPS": 20} | bindings)
    with pytest.raises(UserError, match=message) as error:
        train(config, folder)
    assert not re.search("move .* away", str(error.value))
    assert "parameters" not in capsys.readouterr().out  # no tables before an error
    assert texts_of(reference) == texts
    for path, value in saved(reference, "params").items():
        np.testing.assert_array_equal(value, before[path])
