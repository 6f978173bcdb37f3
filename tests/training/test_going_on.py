"""Going on with other settings: what is said, what is refused, which configurations stay."""

import errno
import re
import shutil
import types

import gin
import jax
import jax.numpy as jnp
import pytest

from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.manager import CheckpointManager, Progress
from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.training import folder, going_on
from xl_flax.training.divergence import unsaved
from xl_flax.training.folder import write_config
from xl_flax.training.optimizer import OptimizerConfig
from xl_flax.training.state import resume
from xl_flax.training.step import TrainState

BEFORE = {
    "OptimizerConfig.learning_rate": 6e-4,
    "OptimizerConfig.schedule": "linear",
    "OptimizerConfig.warmup_steps": 0,
    "OptimizerConfig.final_scale": 0.0,
    "TrainConfig.steps": 200,
}
NO_ARRAYS = {}


def going_on_from(folder, before, now, step=200, steps=300, optimizer=None, items=NO_ARRAYS):
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "settings.json").write_bytes(going_on.to_json(before))
    optimizer = optimizer or OptimizerConfig(learning_rate=6e-4)
    config = types.SimpleNamespace(model_dir="runs/x", steps=steps, optimizer=optimizer)
    return going_on.check(config, str(folder), step, items, now)


def test_every_difference_is_said(tmp_path):
    rates = {f"t{i}": 0.1 for i in range(8)}
    before = BEFORE | {"mlm.batch_size": 16, "mlm.rates of m": rates, "mlm.rate": 0.15}
    now = before | {
        "mlm.batch_size": 32,
        "TrainConfig.keep_last": 3,
        "InitFrom.checkpoint": "runs/y",
        "mlm.rates of m": rates | {"t1": 0.2, "new": 0.1},
    }
    lines = going_on_from(tmp_path, before, now, steps=200)
    assert lines == [
        "InitFrom.checkpoint was None and is now 'runs/y'; only a new run reads it",
        "TrainConfig.keep_last was None and is now 3",
        "mlm.batch_size was 16 and is now 32",
        "mlm.rates of m: new was None and is now 0.1, t1 was 0.1 and is now 0.2",
    ]
    now["mlm.rates of m"] = {}
    assert going_on_from(tmp_path, before, now, steps=200)[-1].endswith(", and 3 others")
    assert going_on_from(tmp_path, before, before, steps=200) == []


def test_a_schedule_that_is_drawn_anew_is_said_with_both_rates(tmp_path):
    now = BEFORE | {"TrainConfig.steps": 300}
    steps, rate = going_on_from(tmp_path, BEFORE, now)
    assert steps == "TrainConfig.steps was 200 and is now 300"
    assert "this draws the learning rate anew: 3.00e-06 in step 200, 2.00e-04 in step 201" in rate
    constant = BEFORE | {"OptimizerConfig.schedule": "constant"}
    optimizer = OptimizerConfig(learning_rate=6e-4, schedule="constant")
    now = constant | {"TrainConfig.steps": 300}
    assert going_on_from(tmp_path, constant, now, optimizer=optimizer) == [steps]


def test_fewer_steps_than_the_run_has_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"TrainConfig\.steps = 100, but runs/x has reached step 2"):
        going_on_from(tmp_path, BEFORE, BEFORE, steps=100)


def test_a_checkpoint_of_an_older_version_says_that_it_kept_no_settings(tmp_path):
    config = types.SimpleNamespace(steps=3)
    (line,) = going_on.check(config, str(tmp_path), 1, {}, {})
    assert "older version" in line


def test_damaged_settings_are_named(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "settings.json").write_text("[]")
    with pytest.raises(UserError, match=r"settings\.json is damaged"):
        going_on.read_settings(str(tmp_path))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of a small state, and that state."""
    folder = tmp_path_factory.mktemp("run")
    state = {
        "params": {"encoder": {"up": jnp.ones((2, 3))}},
        "optimizer": {
            "optimizer": ({"mu": {"encoder": {"up": jnp.ones((2, 3))}}},),
            "objectives": {"own": {"queue": jnp.ones((4, 2))}},
            "updates": jnp.int32(1),
        },
    }
    manager = CheckpointManager(str(folder))
    manager.save(state["params"], state["optimizer"], Progress(1, {}, 0, {}), {})
    manager.close()
    return folder / "checkpoints" / "1", state


def test_the_same_arrays_go_on(saved, tmp_path):
    folder, state = saved
    layout = jax.eval_shape(lambda: state)
    assert going_on_from(folder, BEFORE, BEFORE, steps=200, items=layout) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"tree_metadata": 3}', "{}"])
def test_what_tells_of_arrays_may_be_damaged(saved, tmp_path, text):
    folder, state = saved
    shutil.copytree(folder, tmp_path / "1")
    (tmp_path / "1" / "params" / "_METADATA").write_text(text)  # restoring says so
    layout = jax.eval_shape(lambda: state)
    assert going_on_from(tmp_path / "1", BEFORE, BEFORE, steps=200, items=layout) == []


@pytest.mark.parametrize(
    ("place", "before", "now", "message"),
    [
        (
            ("optimizer", "objectives", "own"),
            {"own.size": 4, "other.size": 1},
            {"own.size": 8, "other.size": 2},
            r"own\.size was 4 and is now 8; with this, the array objectives/own/queue was "
            r"float32\[4, 2\] and is now float32\[7\]\. Restore these settings",
        ),
        (("optimizer", "objectives", "own"), {}, {}, "what init_state of objective 'own' gives"),
        (
            ("optimizer", "optimizer"),
            {"OptimizerConfig.name": "adamw"},
            {"OptimizerConfig.name": "muon"},
            r"OptimizerConfig\.name was 'adamw' and is now 'muon'; with this",
        ),
        (("optimizer", "optimizer"), {}, {}, r"Restore OptimizerConfig\.name and Optimizer"),
        (("params", "encoder"), {}, {}, "the code of the module that makes encoder/queue"),
    ],
)
def test_other_arrays_are_refused_by_the_setting_that_differs(saved, place, before, now, message):
    folder, state = saved
    layout = jax.eval_shape(lambda: state)
    parent = layout
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = {"queue": jax.ShapeDtypeStruct((7,), jnp.float32)}
    with pytest.raises(UserError, match=message) as error:
        going_on_from(folder, BEFORE | before, BEFORE | now, items=layout)
    assert "move" not in str(error.value)


def test_another_vocabulary_or_objective_is_refused_before_anything_is_cached(tmp_path):
    encoder = EncoderConfig(
        vocab_size=8, num_layers=1, width=8, num_heads=1, mlp_width=8, max_positions=8
    )
    tlm = types.SimpleNamespace(name="tlm", description=lambda: {"rate": 0.15})
    config = types.SimpleNamespace(
        model_dir=str(tmp_path), encoder=encoder, steps=7, objectives=[tlm]
    )
    going_on.check_early(config, "a" * 64)  # nothing is there
    description = Description(encoder, {"own": {}}, "a" * 64, {}, {"tlm": {"rate": 0.15}}, step=7)
    model = tmp_path / "checkpoints" / "7" / "model"
    model.mkdir(parents=True)
    (model / "model.json").write_bytes(
        description.to_json().replace(b'"format": 2', b'"format": 1')
    )
    going_on.check_early(config, "a" * 64)
    with pytest.raises(UserError, match=r"the vocabulary \(run_vocabulary\.path\) was aaaa"):
        going_on.check_early(config, "b" * 64)
    tlm.name = "mlm"
    with pytest.raises(UserError, match=r"TrainConfig\.objectives was \['tlm'\]"):
        going_on.check_early(config, "a" * 64)
    config.steps = 6
    with pytest.raises(UserError, match="has reached step 7"):
        going_on.check_early(config, "a" * 64)
    (model / "model.json").write_text("{}")
    going_on.check_early(config, "a" * 64)  # damage is for `intact.newest`


def test_a_run_that_was_saved_inside_a_streak_begins_a_new_one():
    one = jnp.int32(1)
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=one.sharding)
    layout = TrainState({}, {}, {}, updates=count, skipped=count, bad_streak=count)
    there = {"optimizer": {}, "objectives": {}, "updates": one, "skipped": one, "bad_streak": one}
    manager = types.SimpleNamespace(restore=lambda *_: ({}, there))
    state = resume(manager, 1, layout)
    assert int(state.skipped) == 1 and int(state.bad_streak) == 0


@pytest.mark.parametrize(
    ("newest", "said"),
    [
        (None, "begins again at step 0. If that happens again: Lower"),
        (3, "of step 3. If that happens again: Lower"),
        (5, "of step 5, and no step after it was finite. Lower .* from an older checkpoint"),
    ],
)
def test_the_end_inside_a_streak_says_what_may_be_to_blame(newest, said):
    assert re.search(said, unsaved(types.SimpleNamespace(newest=newest), step=9, streak=4))


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_earlier_configurations_stay(tmp_path, monkeypatch):
    def write(value, step):
        gin.clear_config()
        gin.parse_config(f"STEPS = {value}")
        return write_config(str(tmp_path), step)

    assert write(200, 0) is None and write(200, 100) is None
    assert write(300, 200) == str(tmp_path / "config-0000200.gin")
    assert write(400, 200) == str(tmp_path / "config-0000200-2.gin")
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert [text.split()[-1] for _, text in sorted(kept.items())] == ["300", "200", "400"]
    monkeypatch.setattr(folder, "write_atomically", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write(500, 200)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == kept
