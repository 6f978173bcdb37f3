"""The examples of docs/architecture.md: how to add something."""

import importlib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from xl_flax import cli, convert, evaluate, train
from xl_flax.checkpoints.load import load_model
from xl_flax.converters import families
from xl_flax.data.manifest import Cache
from xl_flax.data.prepare import prepare
from xl_flax.data.required import required
from xl_flax.data.stream import Rows, open_stream
from xl_flax.data.synthetic.generator import corpus_sentence
from xl_flax.data.synthetic.inference import inference_pair
from xl_flax.data.synthetic.language import FAMILY
from xl_flax.data.vocabulary import VocabularyConfig, load_vocabulary
from xl_flax.data.vocabulary_training import Corpus, train_model
from xl_flax.errors import UserError
from xl_flax.evaluation import results as results_lib
from xl_flax.models import heads as heads_lib
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model, mlm_prediction
from xl_flax.objectives.base import Inputs
from xl_flax.parallel.mesh import MeshConfig, make_partitioning
from xl_flax.training import setup

DOC = Path(cli.ROOT, "docs", "architecture.md").read_text(encoding="utf-8")
COMMANDS = {"train": train, "evaluate": evaluate, "convert": convert}
EXAMPLES, VOCAB_SIZE, LAYERS = 120, 300, 2

# Two synthetic languages of few sentences in place of the quickstart's.
SMALL = """
from tasks.synthetic import FAMILY, source
from tasks.text import add_language_mixture, add_text_task

SIZES = {"train": 120, "validation": 30, "test": 30}
NAMES = [add_text_task(f"small_{n}", n, source(FAMILY[n], SIZES)).name for n in ("alpha", "gamma")]
add_language_mixture("small", NAMES)
"""
# The defect that the rule on zero gradients is for: weights behind the loss, where none flows.
BEHIND = """
import dataclasses

import gin
import jax.numpy as jnp

from xl_flax.objectives.mlm import MaskedLM


@gin.configurable
@dataclasses.dataclass(frozen=True)
class WeightsBehindTheLoss(MaskedLM):
    name: str = "behind"

    def _predict(self, model, hidden_BxLxD, at_BxK, slots, weights_BxK, inputs):
        result = super()._predict(model, hidden_BxLxD, at_BxK, slots, weights_BxK, inputs)
        weights_BxK = jnp.array([2.0, 1.0])[slots["languages"]]
        return result._replace(total=jnp.sum(weights_BxK * result.loss_BxK))
"""
SIZES = (
    f"--gin.VOCAB_SIZE={VOCAB_SIZE}", "--gin.BATCH_SIZE=8", "--gin.STEPS=4",
    f"--gin.EncoderConfig.num_layers={LAYERS}", "--gin.EncoderConfig.width=32",
    "--gin.EncoderConfig.num_heads=2", "--gin.EncoderConfig.mlp_width=64",
    "--gin.OptimizerConfig.warmup_steps=0", "--gin.TrainConfig.log_every=1",
)  # fmt: skip
TEXT = (
    "--gin.TASK_MODULES=['small_tasks']", "--gin.MIXTURE=small",
    "--gin.SentenceRetrieval.choose_on=None",
)  # fmt: skip
FEW = "--gin.Anisotropy.sentences=10"
UNWATCHED = ("--gin.TrainConfig.held_out=[]", "--gin.EvaluateConfig.evaluations=[]")


# ---- The examples


def blocks(language):
    """The code blocks of one language in the section on how to add something."""
    section = DOC[DOC.index("## How to add") :]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def commands():
    """The commands of the section as lists of words: the name of the command, then its flags."""
    lines = itertools.chain.from_iterable(block.splitlines() for block in blocks("bash"))
    words = [shlex.split(line) for line in lines if line.startswith("python")]
    return [[line[2].removeprefix("xl_flax."), *line[3:]] for line in words]


def command(name, needle):
    """The flags of the only command with this name that has `needle` in them."""
    (flags,) = [flags for n, *flags in commands() if n == name and needle in " ".join(flags)]
    return flags


def write_data(folder):
    """Vocabulary, and files of labelled text, where the examples expect them."""
    names = {"bre": "alpha", "cym": "gamma"}
    for name in ("sts", "nli", "pos", "runs/quickstart"):
        (folder / name).mkdir(parents=True)
    corpora = []
    for code, name in names.items():
        sentences = [corpus_sentence(FAMILY[name], "train", i) for i in range(EXAMPLES)]
        pairs = [inference_pair(FAMILY[name], "train", i) for i in range(EXAMPLES)]
        texts = [s.text for s in sentences]
        corpora.append(Corpus(name, len(texts), texts, 1))
        scored = [
            f"{a}\t{b}\t{4 + i % 2 / 2}" for i, (a, b) in enumerate(itertools.pairwise(texts))
        ]
        answers = [f"{p.label}\t{p.premise.text}\t{p.hypothesis.text}" for p in pairs]
        tagged = ["\n".join(map("\t".join, zip(s.words, s.upos, strict=True))) for s in sentences]
        (folder / f"sts/{code}.train.tsv").write_text("\n".join(scored))
        header = "answer\tpremise\thypothesis"
        (folder / f"nli/{code}.train.tsv").write_text("\n".join([header, *answers]))
        (folder / f"pos/{code}.train.txt").write_text("\n\n".join(tagged))
    path = folder / "runs/quickstart/vocabulary.model"
    path.write_bytes(train_model(corpora, VocabularyConfig("small", str(path), VOCAB_SIZE)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The working directory: all files of the examples, a vocabulary, data, and their cache."""
    folder = tmp_path_factory.mktemp("examples")
    for block in blocks("python") + blocks("gin"):
        name = re.match(r"# (\S+\.(?:py|gin))\n", block)[1]
        (folder / name).write_text(block)
    (folder / "small_tasks.py").write_text(SMALL)
    (folder / "weights_behind.py").write_text(BEHIND)
    write_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setenv("XL_FLAX_DATA_DIR", str(folder))
        patch.setattr(families, "FAMILIES", list(families.FAMILIES))
        one_device = lambda config: make_partitioning(config, jax.devices()[:1])  # noqa: E731
        for module in (setup, evaluate):
            patch.setattr(module, "make_partitioning", one_device)
        yield folder
    heads_lib.HEADS.pop("regression", None)


@pytest.fixture(scope="module")
def cached(folder):
    """What the documented cache command prints, which here caches what all examples read."""
    specs = {}
    for name in ("weighted", "labels", "similarity", "anisotropy"):
        text = {"weighted": (*TEXT, *UNWATCHED), "anisotropy": TEXT}.get(name, ())
        cli.parse([f"--gin_file={name}.gin", *SIZES, *text], "")
        specs |= dict.fromkeys(required())
    flags = [*command("cache", "similarity.gin"), *SIZES, *(f"--dataset={spec}" for spec in specs)]
    flags += ["--module_import=my_labels", "--module_import=small_tasks"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([".", cli.ROOT])}
    run = subprocess.run(
        [sys.executable, "-m", "xl_flax.cache", *flags],
        env=environment, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def quickstart(cached):
    """A run of the quickstart, with the evaluation that the examples add to it."""
    flags = command("train", "anisotropy.gin")
    run("train", flags, *TEXT, FEW, "--gin.MODEL_DIR=runs/quickstart")
    return "runs/quickstart"


def run(name, flags, *more):
    """Runs a command in this process, with smaller sizes."""
    sizes = () if name == "convert" else SIZES
    COMMANDS[name].main([*flags, *sizes, *more])


def logged(model_dir):
    """The lines of `metrics.jsonl`."""
    return [json.loads(line) for line in Path(model_dir, "metrics.jsonl").read_text().splitlines()]


def head_params(model_dir, name):
    """The parameters of a trained head by name."""
    model, description, _ = load_model(
        model_dir, make_partitioning(MeshConfig(), jax.devices()[:1])
    )
    return description.heads[name], nnx.to_pure_dict(nnx.state(model.heads[name]))


def test_all_blocks_are_used():
    assert len(blocks("python")) == 8 and len(blocks("gin")) == 4
    assert [f"{name} {flags[0]}" for name, *flags in commands()] == [
        "cache --gin_file=similarity.gin",
        "train --gin_file=weighted.gin",
        "train --gin_file=labels.gin",
        "train --gin_file=similarity.gin",
        "convert --module_import=electra",
        "evaluate --gin_file=anisotropy.gin",
        "train --gin_file=anisotropy.gin",
    ]


def test_the_readme_shows_the_same_objective():
    readme = Path(cli.ROOT, "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```\n(@gin\.configurable.*?)```", readme, re.DOTALL)
    for line in filter(None, shown.splitlines()):
        assert f"\n{line}" in DOC


def test_a_feature_of_ones_own_is_in_the_batch(cached):
    assert re.search(r"sts_bre +119", cached)
    vocabulary = load_vocabulary("runs/quickstart/vocabulary.model")
    rows = Rows("sts", 64)
    cache = Cache("runs/quickstart/cache", ("my_sts",), on_missing="stop")
    batch = open_stream(rows, prepare(rows.datasets, cache, vocabulary), 0, vocabulary).rows(
        range(8)
    )
    assert batch["score"].dtype == np.float32 and batch["score"].ndim == 2
    here = batch["example"] >= 0
    np.testing.assert_array_equal(batch["score"], np.where(here, 4 + batch["example"] % 2 / 2, 0))
    assert here.any() and not here.all()


def test_objectives_of_ones_own_train(quickstart):
    run("train", command("train", "weighted.gin"), *TEXT, *UNWATCHED)
    lines = logged("runs/weighted")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for name in ("distillation", "layer_match", "weighted_mlm"):
        assert all(line[f"{name}/grad_norm"] > 0 for line in lines)
    assert 0 < lines[0]["distillation/loss"] < 2
    assert lines[0]["loss"] == pytest.approx(
        lines[0]["weighted_mlm/loss"]
        + 0.1 * (lines[0]["distillation/loss"] + lines[0]["layer_match/loss"])
    )


def test_labelled_tasks_train(quickstart, capsys):
    run("train", command("train", "labels.gin"))
    assert "runs/quickstart" in capsys.readouterr().out  # whose encoder is taken
    last = logged("runs/labels")[-1]
    for name, labels in (("sequence", 3), ("tokens", 11)):
        assert 0 <= last[f"{name}/accuracy/bre"] <= 1 and last[f"{name}/grad_norm"] > 0
        settings, params = head_params("runs/labels", name)
        assert len(settings["labels"]) == labels
        assert np.abs(params["bias"]).min() > 0  # it began as zeros


def test_a_head_of_ones_own_trains(quickstart):
    run("train", command("train", "similarity.gin"))
    settings, params = head_params("runs/similarity", "similarity")
    assert settings == {"kind": "regression"} and params["out"].shape == (32,)
    assert params["bias"] > 0  # from 0 towards the scores
    lines = logged("runs/similarity")
    assert 10 < lines[-1]["similarity/loss"] < lines[0]["similarity/loss"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(heads_lib.HEADS, "regression")
        with pytest.raises(UserError, match="unknown heads regression.*`import my_head`"):
            load_model("runs/similarity")


def test_a_family_of_ones_own_is_read(folder):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 48, "max_position_embeddings": 40}  # fmt: skip
    config = transformers.ElectraConfig(vocab_size=VOCAB_SIZE, embedding_size=32, **sizes)
    torch.manual_seed(0)
    theirs = transformers.ElectraForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    source = "google/electra-base-discriminator"
    theirs.save_pretrained(source)
    flags = command("convert", "electra")
    assert f"--source={source}" in flags
    run("convert", flags, "--tokenizer=runs/quickstart/vocabulary.model")
    ours, description, _ = load_model("runs/electra")
    assert description.encoder.num_layers == 2 and not description.heads
    tokens = np.random.default_rng(0).integers(5, VOCAB_SIZE, (2, 12))
    with torch.no_grad():
        states = theirs.electra(torch.tensor(tokens), output_hidden_states=True).hidden_states
    for got, expected in zip(
        ours.encoder(jnp.asarray(tokens), layers=(0, 1, 2)), states, strict=True
    ):
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-4, rtol=0)
    narrow = transformers.ElectraConfig(vocab_size=VOCAB_SIZE, embedding_size=16, **sizes)
    transformers.ElectraModel(narrow).save_pretrained("narrow")
    with pytest.raises(UserError, match="embedding_size = 16 .*as wide as layers"):
        run("convert", ["--source=narrow", "--target=runs/narrow"])
    with pytest.raises(UserError, match="--module_import=elektra: .*PYTHONPATH"):
        run("convert", ["--module_import=elektra", "--source=narrow", "--target=runs/narrow"])


def test_an_evaluation_of_ones_own_measures_every_layer(quickstart):
    run("evaluate", command("evaluate", "anisotropy.gin"), *TEXT, FEW)
    every = results_lib.read(f"{quickstart}/results.jsonl")
    rows = [row for row in every if row.model is None]
    untrained = [row for row in every if row.model == "untrained"]
    assert len(untrained) == len(rows) and all(len(row.seeds) == 3 for row in untrained)
    keys = {(row.layer, *row.languages): row.value for row in rows}
    assert len(rows) == len(keys) == (LAYERS + 1) * 2
    for (layer, language), value in keys.items():
        assert value == pytest.approx(mean_cosine(quickstart, layer, language), abs=1e-4)
    lines = [line for line in logged(quickstart) if "eval/small/cosine/layer0/alpha" in line]
    assert [line["step"] for line in lines] == [0, 4]
    names = [f"eval/small/cosine/layer{layer}/{language}" for layer, language in keys]
    assert set(names) <= set(lines[0]) and lines[0][names[-1]] != lines[1][names[-1]]


def mean_cosine(model_dir, layer, language):
    """Of all pairs of ten sentences, each encoded alone."""
    model, _, _ = load_model(model_dir, make_partitioning(MeshConfig(), jax.devices()[:1]))
    vocabulary = load_vocabulary(f"{model_dir}/vocabulary.model")
    special, vectors = vocabulary.special, []
    for i in range(10):
        text = corpus_sentence(FAMILY[language], "validation", i).text
        tokens = [special.cls, *vocabulary.encode(text), special.sep]
        tokens, size = np.pad(tokens, (0, 64 - len(tokens)))[None], len(tokens)
        real = (np.arange(64) < size)[None].astype(np.int32)
        (states,) = model.encoder(
            jnp.asarray(tokens), segment_ids=jnp.asarray(real), layers=(layer,)
        )
        vector = np.asarray(states[0, 1 : size - 1], np.float64).mean(axis=0)
        vectors.append(vector / np.linalg.norm(vector))
    return np.mean([a @ b for a, b in itertools.combinations(vectors, 2)])


# ---- The defect that started the contract of objectives


def test_a_loss_without_a_gradient_is_an_error_at_the_first_step(quickstart):
    flags = ["--gin_file=gin/runs/quickstart.gin", "--gin.MODEL_DIR=runs/behind", *UNWATCHED]
    Path("behind.gin").write_text("import weights_behind")
    with pytest.raises(UserError) as error:
        run("train", ["--gin_file=behind.gin", *flags], *TEXT,
            "--gin.TrainConfig.objectives=[@WeightsBehindTheLoss()]",
            "--gin.WeightsBehindTheLoss.rows=@Rows()",
            "--gin.WeightsBehindTheLoss.batch_size=8")  # fmt: skip
    message = str(error.value)
    assert message.startswith("objective 'behind' has a loss of") and "slot_weights" in message
    assert "\n" not in message and not Path("runs/behind/checkpoints/4").exists()


def test_weights_of_slots_have_the_gradient_of_a_direct_computation(folder):
    weighted = importlib.import_module("weighted_mlm").LanguageWeightedMLM

    class Direct(weighted):
        def _predict(self, model, hidden_BxLxD, at_BxK, slots, weights_BxK, inputs):
            head, table_VxD, bias_V = mlm_prediction(model)
            hidden_BxKxD = jnp.take_along_axis(hidden_BxLxD, at_BxK[..., None], axis=1)
            logits_BxKxV = head.features(hidden_BxKxD) @ table_VxD.T + bias_V
            losses_BxK = optax.softmax_cross_entropy_with_integer_labels(
                logits_BxKxV, slots["tokens"]
            )
            factors_BxK = jnp.where(slots["languages"] == 0, 2.0, 1.0) * slots["filled"]
            return types.SimpleNamespace(
                total=jnp.sum(factors_BxK * losses_BxK), loss_BxK=losses_BxK, correct_BxK=losses_BxK
            )

    vocab, rng = 64, np.random.default_rng(0)
    config = EncoderConfig(vocab_size=vocab, num_layers=1, width=16, num_heads=2, mlp_width=32)
    graph, params = nnx.split(nnx.jit(lambda: build_model(config, {"mlm": {}}, nnx.Rngs(0)))())
    stream = types.SimpleNamespace(languages=("alpha", "gamma"), num_texts=1)
    vocabulary = types.SimpleNamespace(
        special=types.SimpleNamespace(mask=4), special_mask=lambda: np.arange(vocab) < 5
    )
    batch = {
        "tokens": rng.integers(5, vocab, (6, 32)).astype(np.int32),
        "segment_ids": np.ones((6, 32), np.int32),
        "positions": np.tile(np.arange(32, dtype=np.int32), (6, 1)),
        "languages": np.arange(6, dtype=np.int32)[:, None] % 2,
        "row_id": np.arange(6, dtype=np.int32),
    }

    def gradient(kind):
        objective = kind(rows=Rows("text", 32), batch_size=6, language_weights={"alpha": 2.0})
        buffers = objective.buffers(vocabulary, stream, stream.languages)
        inputs = Inputs(jax.random.key(0), stream, jax.device_put(buffers), phase=0.15)

        def mean(params):
            result = objective.loss(nnx.merge(graph, params), batch, inputs)
            return result.total / result.sums["count"]

        return jax.tree.leaves(jax.jit(jax.grad(mean))(params))

    found, expected = map(gradient, (weighted, Direct))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert max(np.abs(a).max() for a in found) > 1e-3
