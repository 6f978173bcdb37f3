"""Evaluations during training: when they run, what they log, which step is the best."""

import dataclasses
import types

import pytest

from xl_flax.checkpoints.description import Description
from xl_flax.errors import UserError
from xl_flax.evaluation.base import Evaluation, NotFiniteError
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.results import MACRO, Result
from xl_flax.models.config import EncoderConfig
from xl_flax.training.best import BestTracker
from xl_flax.training.config import Best, Periodic
from xl_flax.training.periodic import PeriodicEvaluations


@dataclasses.dataclass(frozen=True)
class Scripted(Evaluation):
    """Gives the value that `params` say."""

    data: str = "m/validation"
    layer: int | None = None

    def __call__(self, subject, context):
        if subject.params is None:
            raise NotFiniteError("m: the loss is not finite")
        return [
            Result("scripted", self.data, (name,), "score", subject.params, 1, "s", self.layer)
            for name in ("deu", MACRO)
        ]


def evaluations(*items, steps=10):
    config = types.SimpleNamespace(held_out=items, steps=steps, model_dir="run")
    encoder = EncoderConfig(
        vocab_size=8, num_layers=1, width=8, num_heads=1, mlp_width=8, max_positions=8
    )
    description = Description(encoder, {}, "v", {}, {})
    context = Context({}, None, None, training=True)
    return PeriodicEvaluations(config, None, description, context)


def test_an_evaluation_runs_at_the_start_every_so_often_and_at_the_end(capsys):
    held_out = evaluations(
        Periodic(Scripted("m/test"), every=4), Periodic(Scripted("n/test", 3), every=3)
    )
    due = {step: sorted(held_out(step, 0.5)) for step in range(11) if held_out.due(step)}
    m, n = (
        ["eval/m/score", "eval/m/score/deu"],
        ["eval/n/score/layer3", "eval/n/score/layer3/deu"],
    )
    assert due == {0: m + n, 3: n, 4: m, 6: n, 8: m, 9: n, 10: m + n}
    out = capsys.readouterr().out
    assert "step 4  held out  m: score 0.5000\n" in out
    assert "step 6  held out  n: score 0.5000 (layer 3)\n" in out


def test_scalars_of_one_name_need_names_of_their_own():
    twice = [Periodic(Scripted("m/test")), Periodic(Scripted("m/validation"))]
    with pytest.raises(UserError, match="give 'eval/m/score.*set Periodic.name"):
        evaluations(*twice)(0, 0.5)
    named = [twice[0], dataclasses.replace(twice[1], name="dev")]
    assert "eval/dev/m/score" in evaluations(*named)(0, 0.5)


def test_a_diverged_model_is_no_reason_to_stop(capsys):
    held_out = evaluations(Periodic(Scripted()))
    assert held_out(0, None) == {} and held_out(0, float("nan")) == {}
    assert "held out  m: the loss is not finite" in capsys.readouterr().out


@pytest.mark.parametrize("mode, values", [("min", (3, 2, 2, 5)), ("max", (3, 4, 4, 1))])
def test_the_best_step_and_patience_go_on_from_a_record(mode, values):
    config = Best("eval/m/score", mode, patience=2)
    best = BestTracker(config, None)
    best.check({"eval/m/score": 1.0})
    assert best.update(1, {"eval/m/score": values[0]})
    assert best.update(2, {"eval/m/score": values[1]})
    assert not best.update(3, {"eval/m/score": values[2]}) and not best.exhausted
    assert not best.update(4, {"eval/other": 9}) and not best.exhausted
    resumed = BestTracker(config, best.record)
    assert not resumed.is_new
    assert not resumed.update(5, {"eval/m/score": values[3]}) and resumed.exhausted
    # Text that said when to stop has a part in the last step, too.
    assert resumed.chosen_by(2) == "eval/m/score"
    assert resumed.chosen_by(5) == "last,patience:eval/m/score"
    impatient = dataclasses.replace(config, patience=None)
    assert BestTracker(impatient, resumed.record).chosen_by(5) is None
    assert resumed.record["step"] == 2 and str(resumed).endswith("at step 2")
    assert BestTracker(dataclasses.replace(config, metric="eval/other"), resumed.record).is_new


def test_an_unknown_metric_is_an_error_that_names_those_there_are():
    with pytest.raises(UserError, match="'eval/m/los': .*there are eval/m/loss, eval/m/accuracy"):
        BestTracker(Best("eval/m/los"), None).check({"eval/m/loss": 1, "eval/m/accuracy": 0})


def test_without_best_nothing_is_tracked():
    best = BestTracker(None, None)
    best.check({})
    assert not best.update(1, {"eval/m/score": 1.0}) and not best.exhausted and best.record is None


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Best("m", "least"), "Best.mode = 'least'"),
        (lambda: Best("m", patience=0), "Best.patience = 0"),
        (lambda: Periodic(Scripted(), every=0), "Periodic.every = 0"),
        (lambda: Periodic("m"), "Periodic.evaluation = 'm': must be an eval"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
