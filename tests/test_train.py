"""The training command end to end: same bits across kills, same losses on every mesh, bad input.

The run has an objective of each kind: text alone, one with a state of its own, labelled examples.
"""

import collections
import dataclasses
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import three_objectives
from run_folders import lines_of, saved, texts_of

from xl_flax import cli
from xl_flax.checkpoints.load import find_checkpoints, load_model, read_description
from xl_flax.errors import UserError
from xl_flax.parallel.mesh import make_partitioning
from xl_flax.training import loop, setup
from xl_flax.training.config import InitFrom, TrainConfig
from xl_flax.training.folder import alone


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A vocabulary, a module with tasks, and a Gin file; caches are built by the first run."""
    folder = tmp_path_factory.mktemp("train")
    three_objectives.make_data(folder)
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


def train(config, folder, **kwargs):
    return loop.train(config, [f"--gin_file={folder}/run.gin"], **kwargs)


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
    assert [line["step"] for line in lines] == [0, 3, 6, 6, 6, 9, 12, 12]
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


MESHES = ((-1, 1, 1), 1), ((2, 2, 2), 2), ((1, 4, 2), 4), ((1, 1, 8), 2)


def test_a_run_goes_on_on_any_mesh_and_says_what_else_differs(reference, configure, folder, capsys):
    """Eight devices learn as one, in every grid: three steps in each."""
    model_dir, outputs, texts = configure().model_dir, [], []
    expected = by_step(reference)
    for steps, (ici, accumulate) in zip((3, 6, 9, 12), MESHES, strict=True):
        own = {"STEPS": steps, "MeshConfig__ici": ici, "TrainConfig__accumulate": accumulate}
        if steps == 3:
            own |= {"OptimizerConfig__schedule": "linear", "OptimizerConfig__final_scale": 1.0}
        train(configure(**own), folder)
        outputs.append(capsys.readouterr().out)
        texts.append(texts_of(model_dir))
        found = by_step(model_dir)
        for step in range(steps - 3, steps + 1, 3):
            for key in {"loss", "mlm/accuracy", "grad_norm", "eval/small/loss"} & {*expected[step]}:
                assert found[step][key] == pytest.approx(expected[step][key], rel=2e-3), (ici, key)
    for line in (
        f"resuming {model_dir} at step 3",
        "  MeshConfig.ici was [-1, 1, 1] and is now [2, 2, 2]",
        "  OptimizerConfig.schedule was 'linear' and is now 'constant'",
        "  TrainConfig.steps was 3 and is now 6",
        f"the configuration up to step 3 is now {model_dir}/config-0000003.gin",
    ):
        assert line in outputs[1].splitlines()
    assert "checkpoints that stay: the newest 2 (TrainConfig.keep_last)" in outputs[1]
    assert not any("anew" in output for output in outputs)  # the same rates as before
    assert ["from here on" in output for output in outputs] == [False, True, False, False]
    assert texts[1]["config-0000003.gin"] == texts[0]["config.gin"]
    assert "STEPS = 6" in texts[1]["config.gin"]


def by_step(model_dir):
    """The values that a run logged, by step."""
    values = collections.defaultdict(dict)
    for line in lines_of(model_dir):
        values[line["step"]] |= line
    return values


def started(folder, *arguments):
    """A process of Python that finds the folder's tasks."""
    environment = os.environ | {
        "PYTHONPATH": f"{folder}{os.pathsep}{cli.ROOT}",
        "JAX_NUM_CPU_DEVICES": "1",  # one device, as most users have
        "NPROC": "2",
    }
    return subprocess.Popen(
        [sys.executable, *arguments],
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


# Trains, and the same in another folder, too.
ALSO = """
import sys
from xl_flax import train
folder, *flags = sys.argv[1:]
train.main(flags)
train.main([*flags, f"--gin.MODEL_DIR={folder}"])
"""


@pytest.mark.slow
def test_interrupted_runs_end_with_the_same_bits(reference, folder, tmp_path):
    """One is killed, goes on, is asked to stop, which it does with its state saved, and goes on."""
    straight, interrupted = tmp_path / "straight", tmp_path / "interrupted"

    def start(command=("-m", "xl_flax.train"), steps=4000):
        flags = f"--gin_file={folder}/run.gin", f"--gin.MODEL_DIR={interrupted}"
        return started(folder, *command, *flags, f"--gin.STEPS={steps}")

    rng = random.Random(os.getpid())  # another moment each time
    for step, asked in ((3, signal.SIGKILL), (9, signal.SIGTERM)):
        process = start()
        wait_for_step(process, step)
        time.sleep(rng.uniform(0, 0.5) if asked == signal.SIGKILL else 0)
        process.send_signal(asked)
        output = process.communicate(timeout=120)[0]
    assert process.returncode == cli.EXIT_PREEMPTED
    step = int(re.search(r"saved step ([\d,]+)", output)[1].replace(",", ""))
    assert find_checkpoints(str(interrupted))[-1].endswith(f"/{step}")
    output = finish(start(("-c", ALSO, straight), step + 6))
    assert f"resuming {interrupted} at step {step}" in output
    for item in ("params", "optimizer"):
        expected = saved(straight, item)
        found = saved(interrupted, item)
        assert expected.keys() == found.keys()
        for path, value in expected.items():
            np.testing.assert_array_equal(value, found[path], err_msg=f"{item}{path}")
    assert lines_of(interrupted) == lines_of(straight)


def test_a_divided_optimizer_goes_on_with_the_same_bits(reference, configure, folder, tmp_path):
    """ZeRO-1 on eight devices, which each save and restore their part."""
    for name, ends in (("straight", (6,)), ("stopped", (3, 6))):
        for steps in ends:
            own = {"MeshConfig__optimizer": ("data",), "MODEL_DIR": str(tmp_path / name)}
            config = configure(STEPS=steps, **own)
            masked_lm = config.objectives[:1]  # alone it compiles faster
            train(dataclasses.replace(config, objectives=masked_lm, held_out=[]), folder)
    for item in ("params", "optimizer"):
        expected, found = (saved(tmp_path / name, item) for name in ("straight", "stopped"))
        assert expected.keys() == found.keys()
        for path, value in expected.items():
            np.testing.assert_array_equal(value, found[path], err_msg=f"{item}{path}")


# Joins with the other process once, and trains twice.
TWICE = """
import sys
from xl_flax import train
flags, joining = sys.argv[1:4], sys.argv[4:]
train.main([*flags, *joining, "--gin.STEPS=6"])
train.main(flags)
"""


@pytest.mark.slow
def test_two_processes_train_as_one(reference, folder, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = tmp_path / "run"
    flags = f"--gin_file={folder}/run.gin", f"--gin.MODEL_DIR={run}", "--gin.MeshConfig.ici=(1,2,1)"
    joining = f"--coordinator=127.0.0.1:{port}", "--num_processes=2"
    processes = [
        started(folder, "-c", TWICE, *flags, *joining, f"--process_id={i}") for i in range(2)
    ]
    outputs = [finish(process) for process in processes]
    assert not any("Traceback" in output for output in outputs)
    assert f"resuming {run} at step 6" in outputs[0]
    mine, theirs = lines_of(run)[-1], lines_of(reference)[-1]
    assert mine["step"] == 12
    assert mine["eval/small/loss"] == pytest.approx(theirs["eval/small/loss"], rel=2e-3)


def test_a_run_that_another_process_trains_is_left_alone(reference, configure, folder):
    with alone(reference), pytest.raises(UserError, match="another process is training"):
        train(configure(MODEL_DIR=reference, STEPS=20), folder)
    assert find_checkpoints(reference)[-1].endswith("/12")


def test_parameters_can_start_from_another_checkpoint(reference, configure, folder, capsys):
    config = configure(STEPS=1, OptimizerConfig__learning_rate=0.0, OptimizerConfig__weight_decay=0)
    init = InitFrom(reference, include="encoder/.*", exclude=".*/positions")
    masked_lm = config.objectives[:1]  # alone it compiles faster
    train(dataclasses.replace(config, init_from=init, objectives=masked_lm, held_out=[]), folder)
    mine, theirs = saved(config.model_dir, "params"), saved(reference, "params")
    np.testing.assert_array_equal(
        mine["['encoder']['embeddings']['tokens']"], theirs["['encoder']['embeddings']['tokens']"]
    )
    for path in ("['encoder']['embeddings']['positions']", "['heads']['mlm']['dense']"):
        assert (mine[path] != theirs[path]).any()
    assert "parameter arrays from" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(reference, configure, folder, capsys):
    config = configure()
    assert train(config, folder, dry_run=True)
    output = capsys.readouterr().out
    assert "the step compiles" in output
    table = output[output.index("part ") : output.index("parameters;")]
    assert all(len(line) <= 80 for line in table.splitlines())
    assert not os.path.exists(config.model_dir)


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
