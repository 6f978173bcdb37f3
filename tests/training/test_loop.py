"""When a run saves, what it keeps, when it stops, and from where it goes on: one small model."""

import dataclasses
import itertools
import json
import os

import house
import numpy as np
import pytest
from run_folders import flip, lines_of, saved, steps_of

from xl_flax import cli
from xl_flax.checkpoints.load import find_checkpoints, load_model
from xl_flax.checkpoints.manager import read_best, read_progress
from xl_flax.errors import UserError
from xl_flax.evaluation.base import Evaluation
from xl_flax.evaluation.results import MACRO, Result
from xl_flax.training import loop, setup
from xl_flax.training.config import Best, Periodic, TrainConfig
from xl_flax.training.loop import train

RUN = {
    "STEPS": 12,
    "BATCH_SIZE": 8,
    "TrainConfig.log_every": 4,
    "TrainConfig.checkpoint_every": 3,
    "TrainConfig.keep_last": 2,
    "TrainConfig.held_out": (),
    "TrainConfig.best": None,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a vocabulary, a cache and a Gin file."""
    return house.made_in(tmp_path_factory.mktemp("loop"))


@pytest.fixture
def configure(data, tmp_path, monkeypatch):
    """configure(**bindings) -> TrainConfig of a run in a folder of its own."""
    monkeypatch.chdir(data)  # what the Gin file names is relative to it

    def make(**bindings):
        own = {name.replace("__", "."): value for name, value in bindings.items()}
        values = {"MODEL_DIR": str(tmp_path / "run")} | RUN | own
        cli.load_gin(["run.gin"], [f"{name} = {value!r}" for name, value in values.items()])
        return TrainConfig()

    return make


def test_a_window_of_steps_can_be_profiled(configure):
    config = configure(STEPS=3, TrainConfig__profile=(2, 5))  # the run ends inside the window
    train(config)
    found = [name for _, _, names in os.walk(f"{config.model_dir}/profile") for name in names]
    assert any(name.endswith(".xplane.pb") for name in found)


def test_batches_may_grow(configure):
    for steps in (2, 4):  # the second time it resumes, where batches have grown already
        config = configure(STEPS=steps, BATCH_SIZE=[(0, 8), (10, 16)])
        train(config)
    assert read_progress(find_checkpoints(config.model_dir)[-1]).rows == {"mlm": 8 + 8 + 16 + 16}
    lines = lines_of(config.model_dir)
    assert [(line["step"], line["phases"]) for line in lines if "phases" in line] == [
        (3, {"mlm/batch_size": 16})
    ]


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


def test_the_best_checkpoint_stays_and_patience_ends_the_run(configure, capsys):
    base = configure(STEPS=24, TrainConfig__checkpoint_every=10, TrainConfig__keep_last=1)
    best = Best("eval/m/score", "max", patience=2)
    scores = {0: 0.9, 3: 0.1, 6: 0.5, 9: 0.4, 12: 0.2}

    def run(**settings):
        held_out = [Periodic(Scripted(scores, **settings), every=3)]
        return train(dataclasses.replace(base, held_out=held_out, best=best))

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


def asked_in_turn(stop):
    """Asks a run to stop at its step of this number, counted from where it goes on."""
    places = itertools.count(1)  # the loop asks once a step
    return lambda: next(places) == stop


def test_a_run_that_is_asked_to_stop_saves_first_and_evaluates_later(
    configure, capsys, monkeypatch
):
    base = configure(STEPS=6, TrainConfig__keep_last=1)
    held_out = [Periodic(Scripted({0: 0.1, 3: 0.5, 6: 0.2}), every=3)]
    config = dataclasses.replace(base, held_out=held_out, best=Best("eval/m/score", "max"))
    for stop, finished in ((3, False), (3, False), (None, True)):
        monkeypatch.setattr(loop, "stop_here", asked_in_turn(stop))
        assert train(config) == finished
        assert ("asked to stop: saved step" in capsys.readouterr().out) != finished
    lines = lines_of(config.model_dir)
    assert [line["step"] for line in lines if "eval/m/score" in line] == [0, 3, 6]
    assert read_best(f"{config.model_dir}/checkpoints")["step"] == 3
    assert train(config) and lines_of(config.model_dir) == lines


@pytest.mark.parametrize("good", [3, None])
def test_after_divergence_a_lower_rate_goes_on_from_the_last_good_state(configure, good):
    """The checkpoint that the first step of that rate left is finite, and leads nowhere."""
    often = {"TrainConfig__checkpoint_every": 1, "TrainConfig__keep_last": None}
    if good:
        train(configure(STEPS=good, **often))
    config = configure(OptimizerConfig__learning_rate=1e30, TrainConfig__max_bad_steps=3, **often)
    spoilt = (good or 0) + 1
    after = f"on from its checkpoint of step {good}" if good else "begins again at step 0"
    message = f"not finite in 3 steps in a row.*step {spoilt}, .*set_aside/{spoilt};.*rate.*{after}"
    with pytest.raises(UserError, match=message):
        train(config)
    if good:
        assert steps_of(config.model_dir) == [1, 2, 3]
    train(configure(STEPS=6, TrainConfig__max_bad_steps=3))
    assert steps_of(config.model_dir)[-1] == 6
    assert all(np.isfinite(v).all() for v in saved(config.model_dir, "params").values())


def test_a_checkpoint_that_was_there_before_a_streak_is_left(configure):
    config = configure(STEPS=3, OptimizerConfig__learning_rate=1e30, TrainConfig__max_bad_steps=9)
    with pytest.raises(UserError, match="step 3 is not saved.*no checkpoint is there"):
        train(config)
    train(configure(STEPS=1, OptimizerConfig__learning_rate=1e30))
    for _ in range(2):
        with pytest.raises(UserError, match="step 1, which was left as it is.*Lower"):
            train(configure(TrainConfig__max_bad_steps=3))
    assert steps_of(config.model_dir) == [1]


@pytest.fixture
def bad_steps(monkeypatch):
    """bad_steps(first, last) makes a run believe that these were not finite."""

    def make(first, last):
        def set_up_so(*args):
            made = setup.set_up(*args)
            count = itertools.count(1)

            def step(*args):
                state, metrics = made.program.step(*args)
                at = next(count)
                metrics["step"]["bad_streak"] = max(0, at - first + 1) if at <= last else 0
                return state, metrics

            program = dataclasses.replace(made.program, step=step)
            return dataclasses.replace(made, program=program)

        monkeypatch.setattr(loop, "set_up", set_up_so)

    return make


def test_saving_waits_for_the_end_of_a_streak(configure, bad_steps):
    bad_steps(3, 7)
    config = configure(STEPS=9, TrainConfig__checkpoint_every=3, TrainConfig__keep_last=None)
    train(config)
    assert steps_of(config.model_dir) == [8, 9]


def test_a_run_that_is_asked_to_stop_inside_a_streak_says_what_is_saved(
    configure, bad_steps, monkeypatch, capsys
):
    bad_steps(4, 9)
    monkeypatch.setattr(loop, "stop_here", asked_in_turn(5))
    config = configure(STEPS=9, TrainConfig__checkpoint_every=3)
    assert not train(config)
    assert "step 5 is not saved" in (said := capsys.readouterr().out)
    assert "goes on from the newest checkpoint, of step 3" in said
    assert steps_of(config.model_dir) == [3]


def test_folders_that_are_no_checkpoint_do_not_keep_a_run_from_saving(configure, capfd):
    config = configure(STEPS=6)
    os.makedirs(f"{config.model_dir}/checkpoints/1000")
    train(config)
    assert "checkpoints/1000 is empty; moved to" in capfd.readouterr().err
    assert steps_of(config.model_dir) == [3, 6]
    value = saved(config.model_dir, "params")
    flip(f"{config.model_dir}/checkpoints/6")
    train(config)
    said = capfd.readouterr()
    assert "params" in said.err and "is not what was written" in said.err
    assert "resuming" in said.out and "at step 3" in said.out and "done" in said.out
    assert steps_of(config.model_dir) == [3, 6]
    for path, again in saved(config.model_dir, "params").items():
        np.testing.assert_array_equal(value[path], again)
