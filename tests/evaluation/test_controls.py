"""Controls of a small evaluation, and what makes them be measured again."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from flax import nnx

from xl_flax.checkpoints.description import Description
from xl_flax.data.layout import Layout
from xl_flax.data.prepare import CachedMixture, Caches, DatasetSpec
from xl_flax.evaluation import controls, results
from xl_flax.evaluation.base import Baseline, Evaluation, Subject
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.results import Result, signature
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.mesh import MeshConfig, make_partitioning

SPEC = DatasetSpec("m", "test", Layout(16))
CONFIG = EncoderConfig(vocab_size=50, num_layers=1, width=8, num_heads=2, mlp_width=16)
HEADS = {"mlm": {}, "sentence": {}}
DESCRIPTION = Description(CONFIG, HEADS, "v", {"mlm": ("deu",)}, {}, step=7)
SIGN = signature("table", data="m/test")


@pytest.fixture
def context():
    return lambda mark=1: Context(
        Caches({SPEC: CachedMixture(None, {"t": types.SimpleNamespace(mark=mark)}, {})}),
        types.SimpleNamespace(fingerprint="v"),
        None,
    )


@pytest.fixture
def made(monkeypatch):
    """The descriptions of untrained models that are made; their parameter is their seed."""
    made = []

    def untrained(description, seeds, partitioning):
        made.append(description)
        for seed in seeds:
            yield Subject(None, {"x": float(seed)}, description, ("untrained", seed))

    monkeypatch.setattr(Subject, "untrained", untrained)
    return made


@dataclasses.dataclass(frozen=True)
class Table(Evaluation):
    """A parameter; notes the seeds of the models that it is asked for."""

    calls: list = dataclasses.field(default_factory=list)

    @property
    def datasets(self):
        return [SPEC]

    def untrained(self, description):
        return dataclasses.replace(description, heads={})

    def baselines(self, description, context):
        sign = results.of_model(SIGN, "none#v")
        made = Result("table", "m/test", ("deu",), "value", 0.5, 1, sign, model="none")
        return [Baseline("none", [sign], [SPEC], lambda: (self.calls.append("none"), [made])[1])]

    def signatures(self, description, context):
        return [SIGN]

    def __call__(self, subject, context):
        self.calls.append(subject.key[-1])
        value = subject.params["x"] ** 2
        made = Result("table", "m/test", ("deu",), "value", value, 1, SIGN, interval=(0.0, 9.0))
        return [made]


def test_an_untrained_model_is_what_a_run_with_its_seed_begins_with():
    partitioning = make_partitioning(MeshConfig(), jax.devices()[:1])
    (subject,) = Subject.untrained(DESCRIPTION, [5], partitioning)
    begun = params_lib.create(lambda: build_model(CONFIG, HEADS, nnx.Rngs(5)), partitioning)
    jax.tree.map(np.testing.assert_allclose, subject.params, begun)
    assert nnx.merge(subject.graph, subject.params).encoder.config == CONFIG


def test_values_are_means_over_seeds_with_signatures_of_their_own(context, tmp_path, made):
    evaluation = Table()
    ((untrained, baseline),) = controls.measure(
        [evaluation], DESCRIPTION, context(), str(tmp_path / "kept.jsonl")
    )
    assert evaluation.calls == [0, 1, 2, "none"]
    (result,) = untrained.results
    assert result.seeds == (0, 1, 4) and result.value == pytest.approx(5 / 3)
    assert result.spread == pytest.approx(np.std([0, 1, 4], ddof=1))
    assert result.interval is None  # that of one start says nothing of the mean
    digest = controls.shape(dataclasses.replace(DESCRIPTION, heads={}))
    assert f"|model:untrained*3#{digest}|version:" in result.signature
    assert result.model == "untrained" and baseline.results[0].model == "none"


def test_controls_are_measured_once_for_data_vocabulary_and_shape(context, tmp_path, made):
    kept = str(tmp_path / "kept.jsonl")
    evaluation = Table()

    def measure(description=DESCRIPTION, mark=1):
        evaluation.calls.clear()
        (found,) = controls.measure([evaluation], description, context(mark), kept)
        controls.add(kept, found)
        return found, list(evaluation.calls)

    def changed(**fields):
        return dataclasses.replace(DESCRIPTION, encoder=dataclasses.replace(CONFIG, **fields))

    first, _ = measure()
    for same in (
        dataclasses.replace(DESCRIPTION, step=9, heads={"mlm": {}}),
        changed(mlp_out_dropout=0.5, remat="full"),
    ):
        again, calls = measure(same)
        assert again == first and not calls
    for other in (changed(width=4), changed(init_std=0.5)):
        again, calls = measure(other)
        assert calls == [0, 1, 2] and again[0].source.id != first[0].source.id
    _, calls = measure(dataclasses.replace(DESCRIPTION, vocabulary="w"))
    assert calls == [0, 1, 2]
    again, calls = measure(mark=2)  # other text under the same name
    assert calls == [0, 1, 2, "none"] and again[1].source.id != first[1].source.id
    # Each shape is kept; of the first one the newer text's.
    assert len(results.read(kept)) == 4 + 1


def test_a_file_takes_over_what_was_measured_again(context, tmp_path, made):
    path = str(tmp_path / "results.jsonl")
    ((untrained, baseline),) = controls.measure([Table()], DESCRIPTION, context(), path)
    controls.add(path, [untrained, baseline])
    again = [dataclasses.replace(result, value=0.25) for result in baseline.results]
    controls.add(path, [untrained, baseline._replace(results=again)])
    assert [row.value for row in results.read(path)] == [pytest.approx(5 / 3), 0.25]


def test_a_command_remembers_what_it_measured(context, tmp_path, made):
    own, evaluation = context(), Table()
    first = controls.measure([evaluation], DESCRIPTION, own, str(tmp_path / "kept.jsonl"))
    assert controls.measure([evaluation], DESCRIPTION, own, str(tmp_path / "kept.jsonl")) == first
    assert evaluation.calls == [0, 1, 2, "none"]  # though nothing was kept


def test_evaluations_of_one_shape_share_its_models(context, tmp_path, made):
    @dataclasses.dataclass(frozen=True)
    class WithHead(Table):
        def untrained(self, description):
            return description

    kept = str(tmp_path / "kept.jsonl")
    twice = controls.measure([Table(), Table()], DESCRIPTION, context(), kept)
    assert [d.heads for d in made] == [{}]
    assert twice[0] == twice[1] and len(twice[0][0].results[0].seeds) == 3
    controls.measure([Table(), WithHead()], DESCRIPTION, context(), kept)
    assert [d.heads for d in made[1:]] == [{}, HEADS]


def test_evaluations_have_no_controls_unless_they_say_so(context, tmp_path):
    class Nothing(Evaluation):
        datasets = ()

    assert controls.measure([Nothing()], DESCRIPTION, context(), str(tmp_path / "kept")) == [[]]
