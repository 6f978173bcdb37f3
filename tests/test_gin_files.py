"""Every Gin file works as it stands, and opens by saying what it is."""

import glob
import os
import re

import gin
import pytest
from small_evaluations import WORDS, make_run, train_vocabulary

from xl_flax import cli
from xl_flax.data.required import required
from xl_flax.data.vocabulary import VocabularyConfig
from xl_flax.errors import UserError
from xl_flax.evaluation.config import EvaluateConfig
from xl_flax.parallel.mesh import MeshConfig
from xl_flax.training.config import TrainConfig

SET = [
    "MODEL_DIR = '/run'",
    "CACHE_DIR = '/cache'",
    "VOCABULARY = '/vocabulary.model'",
]
FINETUNED: list[str] = []  # what runs that fine-tune a checkpoint are given
FROM = ["InitFrom.checkpoint = '/checkpoint'"]  # of runs that go on from another one


@pytest.fixture(scope="module", autouse=True)
def checkpoint(tmp_path_factory):
    """A checkpoint for runs that fine-tune one; its path is bound as CHECKPOINT."""
    folder = tmp_path_factory.mktemp("gin")
    vocabulary = train_vocabulary(folder / "vocabulary.model", WORDS)
    run = make_run(str(folder / "run"), vocabulary, max_positions=512)
    FINETUNED[:] = [f"CHECKPOINT = {run!r}", *SET[:2]]
    yield
    FINETUNED.clear()


def files(folder):
    return sorted(glob.glob(os.path.join(cli.ROOT, "gin", folder, "*.gin")))


def finetunes(path):
    with open(path) as file:
        return "include 'gin/finetune.gin'" in file.read()


def load(path):
    """Reads a run's file; the encoder of some is a converted model's, or a checkpoint's."""
    if finetunes(path):
        cli.load_gin([path], FINETUNED)
        return
    converted = path.endswith("further.gin")
    model = ["gin/models/xlmr_tiny.gin"] if converted else []
    cli.load_gin([path, *model], SET + FROM + ["VOCAB_SIZE = 100"] * converted)


@pytest.mark.parametrize("path", files("**"), ids=os.path.basename)
def test_a_file_opens_with_what_it_does(path):
    with open(path) as file:
        assert file.readline().startswith("# ")


@pytest.mark.parametrize("path", files("runs"), ids=os.path.basename)
def test_a_run_is_complete(path):
    load(path)
    train, evaluate, vocabulary = TrainConfig(), EvaluateConfig(), VocabularyConfig()
    assert train.encoder.vocab_size == vocabulary.size
    assert train.model_dir == evaluate.model_dir == "/run"
    assert all(o.rows.length <= train.encoder.max_positions for o in train.objectives)
    assert {need.split for need in required()} > {"train"}  # and something to evaluate on
    with open(path) as file:
        assert "Expect" in file.read()


def built():
    """What a run's commands build from Gin, as text."""
    configs = TrainConfig(), EvaluateConfig(), VocabularyConfig()
    return repr((*configs, gin.query_parameter("run_vocabulary.path"), required()))


@pytest.mark.parametrize("path", files("runs"), ids=os.path.basename)
def test_what_a_run_sets_has_an_effect(path):
    """Another value of a macro is not ignored because a later file binds what it is for."""
    with open(path) as file:
        own = re.findall(r"^([A-Z_]+) = ", file.read(), re.MULTILINE)
    load(path)
    if path.endswith("parallel_bible.gin"):  # launch/parallel.sh gives its objectives
        gin.parse_config("TrainConfig.objectives = [@MaskedLM(), @TranslationLM(), @Contrastive()]")
    before = built()
    for name in {*own, *(() if finetunes(path) else ("VOCAB_SIZE",))}:
        value = gin.query_parameter(f"%{name}")
        if not isinstance(value, (int, str, list)):
            continue  # another macro
        phases = isinstance(value, list) and isinstance(value[0], tuple)
        other = value[:1] if phases else value + {int: 1, str: "x", list: ["x"]}[type(value)]
        gin.parse_config(f"{name} = {other!r}")
        assert built() != before, f"{name} is ignored"
        if name == "VOCAB_SIZE":
            assert TrainConfig().encoder.vocab_size == VocabularyConfig().size == value + 1
        gin.parse_config(f"{name} = {value!r}")


def test_the_quickstart_takes_phases():
    phases = "MIXTURE = [(0, 'synthetic_core'), (100, 'synthetic')]"
    quickstart = os.path.join(cli.ROOT, "gin", "runs", "quickstart.gin")
    cli.load_gin([quickstart], [*SET, phases, "VocabularyConfig.mixture = 'synthetic'"])
    assert {(spec.mixture, spec.split) for spec in required()} == {
        (name, split)
        for name in ("synthetic_core", "synthetic")
        for split in ("train", "validation", "test")
    } | {("synthetic_multiway", "validation")}


def test_infoxlm_is_what_its_official_code_trains():
    """The command in infoxlm/README.md of microsoft/unilm, and src-infoxlm."""
    load(os.path.join(cli.ROOT, "gin", "runs", "infoxlm_base.gin"))
    config = TrainConfig()
    mlm, tlm, xlco = config.objectives
    assert (xlco.query, xlco.mask_rate, xlco.mixup, xlco.wait_full) == ("random", 0.15, True, True)
    assert (xlco.layer, xlco.projection, xlco.pooling, xlco.normalise) == (
        8,
        "linear",
        "cls",
        False,
    )
    assert (xlco.queue_size, xlco.momentum, 1 / xlco.scale) == (131_072, 0.9999, 0.25)
    assert not xlco.normalise
    assert not (tlm.double_separator or tlm.reset_positions)
    assert mlm.rate == tlm.rate == 0.15
    encoder = vars(config.encoder)
    assert not any(value for name, value in encoder.items() if name.endswith("dropout"))
    optimizer = config.optimizer
    assert (config.steps, optimizer.warmup_steps, optimizer.schedule) == (200_000, 10_000, "linear")
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.clip_norm) == (2e-4, 0.01, 1)
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.98, 1e-6)
    # One sum over all targets and examples: XlCo's 2,048 count as much as 2,048 tokens.
    targets = mlm.batch_size * mlm.rows.length * mlm.rate
    assert xlco.weight / mlm.weight == pytest.approx(2048 / targets, rel=0.01)


@pytest.mark.parametrize("path", files("meshes"), ids=os.path.basename)
def test_a_mesh_goes_with_any_run(path):
    cli.load_gin([files("runs")[0], path], SET)
    assert TrainConfig().mesh == MeshConfig()


@pytest.mark.parametrize("path", files("eval"), ids=os.path.basename)
def test_an_evaluation_stands_alone(path):
    name = os.path.basename(path)
    if name == "base.gin":
        pytest.skip("for others to include")
    bindings = SET[:2]
    own = {
        "masked_lm.gin": ["MaskedAccuracy"],
        "retrieval.gin": ["SentenceRetrieval"],
        "mining.gin": ["BitextMining"],
        "representation.gin": ["RepresentationSimilarity"],
        "both.gin": ["MaskedAccuracy", "SentenceRetrieval"],
        "classification.gin": ["ClassificationScores"],
        "tagging.gin": ["TaggingScores"],
        "parsing.gin": ["ParsingScores"],
        "questions.gin": ["AnswerScores"],
    }
    if name in own:
        bindings = [*bindings, "TASK_MODULES = ['tasks.synthetic']"]
        for evaluation in own[name]:
            bindings += [f"{evaluation}.mixture = 'm'", f"{evaluation}.length = 64"]
    cli.load_gin([path], bindings)
    assert EvaluateConfig().evaluations
    gin.clear_config()


def test_phases_may_be_named_wherever_a_mixture_is():
    phases = "MIXTURE=[(0, 'synthetic_core'), (1000, 'synthetic')]"
    cli.load_gin(["gin/runs/quickstart.gin"], [phases])
    try:
        splits = ("train", "validation", "test")
        expected = {(name, s) for name in ("synthetic_core", "synthetic") for s in splits}
        expected.add(("synthetic_multiway", "validation"))  # a layer is chosen there
        assert {(spec.mixture, spec.split) for spec in required()} == expected
    finally:
        gin.clear_config()


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        (
            "TrainConfig.held_out = [@MaskedAccuracy()]",
            r"held_out = .@MaskedAccuracy.*must be a list .*@Periodic",
        ),
        (
            "TrainConfig.objectives = @MaskedLM()",
            r"objectives = @MaskedLM\(\): must be a list .*\[@MaskedLM",
        ),
        ("EvaluateConfig.evaluations = [@Periodic()]", r"@Periodic\(\) belongs in .*held_out"),
        ("EvaluateConfig.evaluations = @MaskedAccuracy()", r"must be a list of evaluations"),
    ],
)
def test_what_is_listed_in_the_wrong_place_is_refused_by_each_command(binding, message):
    cli.load_gin(["gin/runs/quickstart.gin"], [*SET, binding])
    try:
        with pytest.raises(UserError, match=message):
            required()
        with pytest.raises(UserError, match=message):
            TrainConfig()
            EvaluateConfig()
    finally:
        gin.clear_config()
