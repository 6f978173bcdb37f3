"""What every configuration class refuses: wrong values for each of its fields, in one line each."""

import dataclasses
import importlib
import math
import operator
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import gin
import pytest
from annotated_types import GroupedMetadata, Gt, Len
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from small_evaluations import WORDS as TEXT
from small_evaluations import make_run, train_vocabulary

from xl_flax import cli, settings
from xl_flax.data.manifest import Cache
from xl_flax.data.mixtures import Mixture
from xl_flax.data.required import required
from xl_flax.data.stream import Rows
from xl_flax.errors import UserError
from xl_flax.evaluation.masked_lm import MaskedAccuracy
from xl_flax.evaluation.retrieval import SentenceRetrieval
from xl_flax.models.config import EncoderConfig
from xl_flax.objectives.mlm import MaskedLM
from xl_flax.parallel.mesh import MeshConfig
from xl_flax.training.config import Periodic, TrainConfig
from xl_flax.training.optimizer import OptimizerConfig

ENCODER = {"vocab_size": 100, "num_layers": 2, "width": 8, "num_heads": 2, "mlp_width": 16}
ROWS = {"mixture": "m", "length": 64}
OBJECTIVE = {"rows": Rows(**ROWS), "batch_size": 8}


def configurables():
    """All that Gin can configure: classes, and the function that opens the vocabulary."""
    for module in cli.CONFIGURABLES:
        importlib.import_module(module)
    for module in [m for name, m in sorted(sys.modules.items()) if name.startswith("xl_flax.")]:
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) == module.__name__ and _is_configurable(name):
                yield value


def _is_configurable(name):
    try:
        gin.get_configurable(name)
    except ValueError:
        return False
    return True


ALL = {value.__name__: value for value in configurables()}
FIELDS = [(name, field) for name, value in ALL.items() for field in settings.kinds(value)]
REQUIRED = {  # what has no default
    "Cache": {"directory": "/c", "task_modules": ["m"]},
    "VocabularyConfig": {"mixture": "m", "path": "/v", "size": 100},
    "EvaluateConfig": {"model_dir": "/m", "cache": Cache("/c", ["m"]), "evaluations": []},
    "MaskedAccuracy": ROWS,
    "BitextMining": {"mixture": "m"},
    "RepresentationSimilarity": {"mixture": "m"},
    "SentenceRetrieval": {"mixture": "m"},
    "EncoderConfig": ENCODER,
    "Rows": ROWS,
    "Periodic": {"evaluation": MaskedAccuracy(**ROWS)},
    "Best": {"metric": "eval/m/loss"},
    "InitFrom": {"checkpoint": "/c"},
    "MomentumContrastive": OBJECTIVE | {"queue_size": 64},
    "TrainConfig": {
        "model_dir": "/m", "encoder": EncoderConfig(**ENCODER), "steps": 10,
        "objectives": [MaskedLM(**OBJECTIVE)], "optimizer": OptimizerConfig(),
        "cache": Cache("/c", ["m"]),
        "held_out": [Periodic(MaskedAccuracy(**ROWS))],
    },
    "MaskedLM": OBJECTIVE, "TranslationLM": OBJECTIVE, "Contrastive": OBJECTIVE,
    "SequenceClassification": OBJECTIVE, "TokenClassification": OBJECTIVE,
    "MultipleChoice": OBJECTIVE, "QuestionAnswering": OBJECTIVE,
    "DependencyParsing": OBJECTIVE | {"rows": Rows(**ROWS, too_long="drop")},
    "ClassificationScores": ROWS, "TaggingScores": ROWS, "ParsingScores": ROWS,
    "AnswerScores": ROWS, "ChoiceAccuracy": ROWS, "WordAlignment": {"mixture": "m"},
    "FineTuned": {"run": "gin/runs/finetune_sib200.gin", "folder": "/c"},
    "pretrained": {"source": "/c", "folder": "/c"},
}  # fmt: skip


# Functions, not classes; those named here read what they are given.
FUNCTIONS = {"run_vocabulary", "pretrained", "pretrained_encoder"}
READERS = {"pretrained_vocabulary", "pretrained_vocab_size"}  # of what `pretrained` is given


@pytest.fixture(scope="module", autouse=True)
def nothing_bound(tmp_path_factory):
    """But for the checkpoint that `pretrained_encoder` reads."""
    gin.clear_config()
    folder = tmp_path_factory.mktemp("settings")
    run = make_run(str(folder / "run"), train_vocabulary(folder / "vocabulary.model", TEXT))
    gin.parse_config([f"pretrained.source = {run!r}", "pretrained.folder = '/c'"])


def make(kind, /, **values):
    """An object of a configuration class; what else it needs is right."""
    return ALL[kind](**REQUIRED.get(kind, {}) | values)


def test_nothing_that_gin_configures_is_left_out():
    assert {"TrainConfig", "MaskedLM", "Filter", "MeshConfig", "run_vocabulary"} <= set(ALL)
    for name, value in ALL.items():
        if name not in FUNCTIONS | READERS:
            assert issubclass(value, settings.Settings)
            make(name)


# ---- What is allowed is declared


def parts(kind, declared=()):
    """The annotations that one is made of, each with what stands around it."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        yield from parts(args[0], (*declared, *args[1:]))
    elif origin is Literal or not args:
        yield kind, declared
    else:
        for each in args:
            yield from parts(each)


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_every_number_declares_its_range(name, field):
    for kind, declared in parts(settings.kinds(ALL[name])[field]):
        assert kind is not typing.Any, "anything at all is allowed"
        assert kind not in (int, float) or declared, f"{name}.{field} has no range"


@dataclasses.dataclass(frozen=True)
class Stranger(settings.Settings):
    """Fits no field."""


WRONG_TYPES = [
    object(), Stranger(), {"a": 1}, {1}, b"x", 1j, math, len, Stranger, TrainConfig, {}, Ellipsis,
]  # fmt: skip
WORDS = ["", "x", "1", "None", "True", "hdfs://bucket/run", "(", "all"]
NUMBERS = [
    math.nan,
    math.inf,
    -math.inf,
    -1e300,
    1e300,
    -1.5,
    -1,
    0,
    0.5,
    1.5,
    2**31,
    10**400,
    True,
]
POOL = [None, *WRONG_TYPES, *WORDS, *NUMBERS]
LISTS = [[], [[]], [None], [object()], [()], [(1, 2, 3)], [("x",)], [(0, Stranger())], range(3)]


def fits(value, kind, declared=()):
    """Whether a value is of the kind, worked out as simply as can be, without the checker's help.

    Predicates are left out: what they refuse counts as fitting here.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return fits(value, args[0], (*declared, *args[1:]))
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in args)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in args)
    if origin is tuple:
        right = isinstance(value, (list, tuple)) and len(value) == len(args)
        return right and all(map(fits, value, args))
    if origin is Sequence:
        return isinstance(value, (list, tuple)) and all(fits(each, args[0]) for each in value)
    if origin is Mapping:
        return isinstance(value, dict)
    if kind in (int, float):
        right = isinstance(value, int if kind is int else int | float)
        return right and not isinstance(value, bool) and in_range(value, declared)
    return value is None if kind in (None, type(None)) else isinstance(value, kind)


def in_range(value, declared):
    within = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}
    bounds = []
    for item in declared:
        bounds += item if isinstance(item, GroupedMetadata) else [item]
    holds = [
        compare(value, getattr(bound, key))
        for bound in bounds
        for key, compare in within.items()
        if hasattr(bound, key)
    ]
    return all(holds) and abs(value) < math.inf


def refusal(name, field, value):
    """The one line that refuses a value, or None."""
    try:
        make(name, **{field: value})
    except UserError as error:
        message, *rest = str(error).split("\n")
        assert all(line.lstrip().startswith("In call to configurable") for line in rest)
        assert len(message) < 500
        return message
    return None


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_wrong_values_are_refused_by_name(name, field):
    kind, refused = settings.kinds(ALL[name])[field], 0
    for value in POOL + LISTS:
        if name == "run_vocabulary" and isinstance(value, str) and value and "://" not in value:
            continue  # may be a path
        message = refusal(name, field, value)
        if not fits(value, kind):
            assert message is not None, f"{name}.{field} = {value!r} is accepted"
            assert message.startswith(f"{name}.{field} = ")
            assert ": must be " in message
        elif message is not None:  # a predicate, or another field
            assert message.startswith(f"{name}.")
        refused += message is not None
    assert refused > 20


values = st.recursive(
    st.sampled_from(POOL) | st.integers() | st.floats() | st.text(max_size=8) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=6,
)


@hypothesis_settings(max_examples=1500, deadline=None)
@given(st.sampled_from([f for f in FIELDS if f[0] != "run_vocabulary"]), values)
def test_no_value_whatever_ends_in_a_traceback(where, value):
    name, field = where
    message = refusal(name, field, value)
    if not fits(value, settings.kinds(ALL[name])[field]):
        assert message.startswith(f"{name}.{field} = ")


# ---- The cases that were accepted, or ended in tracebacks


@pytest.mark.parametrize(
    ("name", "values", "allowed"),
    [
        ("OptimizerConfig", {"learning_rate": -1e-3}, "a finite number, at least 0"),
        ("OptimizerConfig", {"learning_rate": 1e999}, "a finite number, at least 0"),
        ("OptimizerConfig", {"clip_norm": 0}, "a finite number, more than 0, or None"),
        ("OptimizerConfig", {"clip_norm": -1}, "a finite number, more than 0, or None"),
        ("OptimizerConfig", {"weight_decay": "x"}, "a finite number, at least 0"),
        ("OptimizerConfig", {"weight_decay": -0.1}, "a finite number, at least 0"),
        ("OptimizerConfig", {"b2": 2.0}, "a number, at least 0 and less than 1"),
        ("OptimizerConfig", {"warmup_steps": -5}, "a whole number, at least 0"),
        ("OptimizerConfig", {"warmup_steps": 0.1}, "a whole number, at least 0"),
        ("OptimizerConfig", {"schedule": "exp"}, "'constant', 'linear', "),
        ("OptimizerConfig", {"rate_factors": [("(", 1.0)]}, "pairs of a regular expression"),
        ("MeshConfig", {"ici": (1.0, 1, 1)}, "three sizes (data, fsdp, tensor)"),
        ("TrainConfig", {"profile": (5, -1)}, "(a whole number, at least 0; a"),
        ("TrainConfig", {"steps": "x"}, "a whole number, at least 1"),
        ("TrainConfig", {"steps": 10**30}, "a whole number, at least 1 (and less than 2^31)"),
        ("TrainConfig", {"encoder": EncoderConfig}, "an EncoderConfig, as in @Enc"),
        ("TrainConfig", {"objectives": [MaskedLM]}, "a list of objectives, as in"),
        ("TrainConfig", {"objectives": []}, "a list of objectives, as in [@MaskedLM()]"),
        ("TrainConfig", {"model_dir": None}, "a local path, or an address gs://BUCKET/FOLDER or"),
        ("MaskedAccuracy", {"rows_per_task": 0}, "a whole number, at least 1, or None"),
        ("MaskedAccuracy", {"rows_per_task": -5}, "a whole number, at least 1, or None"),
        ("Cache", {"task_modules": [3]}, "a list of module names, as in ['tasks.text']"),
        ("EvaluateConfig", {"model_dir": ["a", "s4://b"]}, "a local path"),
        ("run_vocabulary", {"path": ["v"]}, "a local path, or an address "),
        ("Rows", {"mixture": [(5, "m")]}, "the name of a mixture or task, or"),
        ("Rows", {"length": 2**17}, "a whole number from 3 to 65535"),
    ],
)  # fmt: skip
def test_an_error_says_what_is_allowed(name, values, allowed):
    ((field, value),) = values.items()
    message = refusal(name, field, value)
    assert message.startswith(f"{name}.{field} = ")
    assert message.split(": must be ", 1)[1].startswith(allowed)


def test_values_are_shown_as_gin_writes_them():
    held_out = [MaskedAccuracy(**ROWS), SentenceRetrieval]
    message = refusal("TrainConfig", "held_out", held_out)
    assert message == (
        "TrainConfig.held_out = [@MaskedAccuracy(), @SentenceRetrieval]: must be a list of "
        "Periodic evaluations, as in [@Periodic()]; its parentheses are missing: "
        "@SentenceRetrieval()"
    )
    assert len(refusal("InitFrom", "checkpoint", list(range(10_000)))) < 300


def test_lists_and_tuples_whole_numbers_and_floats_are_as_gin_users_write_them():
    assert MeshConfig(ici=[2, 1, 1]).ici == [2, 1, 1]
    assert make("TrainConfig", profile=[5, 2]).profile == [5, 2]
    assert OptimizerConfig(learning_rate=1, rate_factors=[["heads/.*", 2]]).learning_rate == 1


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        ("TrainConfig.objectives = 3", "TrainConfig.objectives = 3: must be a list of objectives"),
        ("TrainConfig.held_out = 'x'", "TrainConfig.held_out = 'x': must be a list of"),
        ("EvaluateConfig.evaluations = 'x'", "EvaluateConfig.evaluations = 'x': must be a list of"),
    ],
)
def test_the_cache_command_checks_what_it_reads(bindings, message):
    cli.load_gin([], [bindings])
    try:
        with pytest.raises(UserError) as error:
            required()
        assert str(error.value).startswith(message)
    finally:
        gin.clear_config()


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"a": 0.0, "b": 0.0}, "mixture 'm': the rates of all its tasks are 0"),
        ({"a": 1.0, "b": -1.0}, "mixture 'm': the rate of 'b' is -1.0: .* at least 0"),
        ({"a": math.nan}, "mixture 'm': the rate of 'a' is nan: .* finite"),
        ({"a": math.inf}, "mixture 'm': the rate of 'a' is inf: .* finite"),
    ],
)
def test_rates_without_a_meaning_are_named(rates, message):
    with pytest.raises(UserError, match=message):
        Mixture("m", {}, rates, dict.fromkeys(rates, 1))


# ---- Classes of one's own


@dataclasses.dataclass(frozen=True)
class Own(settings.Settings):
    counts: Mapping[str, Annotated[float, Gt(0)]]
    names: Sequence[str] = ()
    which: ClassVar[str] = "x"


def test_what_a_base_class_declares_holds_for_fields_with_another_default():
    @dataclasses.dataclass(frozen=True)
    class Later(MaskedLM):
        rate: float = 0.3
        name: str = "later"

    Later(**OBJECTIVE)
    for field, value in (("name", "a/b"), ("name", "step"), ("rate", 2.0)):
        with pytest.raises(UserError, match=rf"Later\.{field} = .*: must be "):
            Later(**OBJECTIVE, **{field: value})


def test_a_list_of_what_may_stand_alone_is_said_shortly():
    paths = settings.LocalPath | Annotated[Sequence[settings.LocalPath], Len(1)]
    assert settings.describe(paths) == f"{settings.LOCAL} or a list of such"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ({"a": 0},),
            "Own.counts = {'a': 0}: must be a dictionary {a string: a",
        ),
        (({}, [1]), "Own.names = [1]: must be a list, each item of it a string"),
        (({}, "ab"), "Own.names = 'ab': must be a list, each item of it a string"),
    ],
)
def test_classes_of_ones_own_are_checked_by_their_annotations(values, message):
    Own({"a": 1}, ["b"])
    with pytest.raises(UserError) as error:
        Own(*values)
    assert str(error.value).startswith(message)
