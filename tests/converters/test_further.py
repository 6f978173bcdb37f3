"""A converted model is trained further, evaluated and sent back, with its own tokenizer."""

import dataclasses
import json
import random

import gin
import numpy as np
import pytest
from flax import nnx

from xl_flax import convert
from xl_flax.checkpoints.load import load_model, read_description
from xl_flax.converters import tensors
from xl_flax.errors import UserError
from xl_flax.training import state
from xl_flax.training.config import TrainConfig

TASKS = """
from tasks import text

for language in ("aaa", "bbb"):
    files = {split: f"{language}.txt" for split in ("train", "validation", "test")}
    text.add_text_task(f"letters_{language}", language, text.TextFiles(files))
text.add_language_mixture("letters", ["letters_aaa", "letters_bbb"])
"""
FLAGS = (
    "--gin_file=gin/runs/further.gin", "--gin.TASK_MODULES=['letter_tasks']",
    "--gin.MIXTURE=letters", "--gin.LENGTH=32", "--gin.BATCH_SIZE=8", "--gin.STEPS=6",
    "--gin.OptimizerConfig.warmup_steps=2",
)  # fmt: skip


@pytest.fixture
def run(tmp_path, run_here, monkeypatch):
    """Runs a command with the Gin flags, tasks and text of this test."""
    (tmp_path / "letter_tasks.py").write_text(TASKS)
    rng = random.Random(0)
    for language in ("aaa", "bbb"):
        words = ["".join(rng.choices("abcdef", k=4)) for _ in range(20)]
        lines = [" ".join(rng.choices(words, k=5)) for _ in range(80)]
        (tmp_path / f"{language}.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)  # also of what builds the cache
    monkeypatch.setenv("XL_FLAX_DATA_DIR", str(tmp_path))
    return lambda command, *flags: run_here(command, [*FLAGS, *flags])


@pytest.mark.slow
def test_in_further_evaluated_and_out_again(zoo, run, tmp_path):
    import transformers

    config = zoo.simple("xlm_roberta") | {"max_position_embeddings": 40}
    folder = zoo.save(zoo.make("xlm_roberta", "ForMaskedLM", config), str(tmp_path / "theirs"))
    ours, further, back = tmp_path / "ours", tmp_path / "further", tmp_path / "back"
    convert.main([f"--source={folder}", f"--target={ours}"])
    flags = (
        f"--gin_file={ours}/model.gin", f"--gin.MODEL_DIR={further}",
        f"--gin.CACHE_DIR={tmp_path / 'cache'}",
    )  # fmt: skip
    run("train", *flags)
    description = read_description(str(further / "checkpoints" / "6"))
    assert description.languages["mlm"] == ("aaa", "bbb")
    assert description.vocabulary == read_description(str(ours)).vocabulary
    assert "by frequency: what" in run("evaluate", *flags)
    convert.main([f"--source={further}", f"--target={back}"])

    before, after = (tensors.open_folder(str(f)) for f in (folder, back))
    moved = [n for n in after if not np.array_equal(before[n].read(), after[n].read())]
    assert len(moved) == len(after)
    model = transformers.AutoModelForMaskedLM.from_pretrained(str(back))
    assert model.config.num_hidden_layers == 3
    card = (back / "README.md").read_text()
    for part in (
        "# further, step 6",
        '"letters"',
        "MIXTURE = 'letters'",
        r"masked_lm\|data:letters",
    ):
        assert part in card, part
    assert 'language: ["aaa", "bbb"]' in card and str(tmp_path) not in card
    with open(back / "tokenizer.json") as a, open(f"{folder}/tokenizer.json") as b:
        assert json.load(a) == json.load(b)
    again = tmp_path / "again"
    convert.main([f"--source={back}", f"--target={again}"])
    assert load_model(str(again))[1] == load_model(str(further))[1]


def test_fine_tuning_begins_from_a_folder_of_hugging_face(zoo, tmp_path):
    config = zoo.simple("bert") | {"max_position_embeddings": 40}
    folder = zoo.save(zoo.make("bert", "Model", config), str(tmp_path / "theirs"))
    bindings = f"""
    include 'gin/runs/finetune_panx.gin'
    CHECKPOINT = {folder!r}
    CACHE_DIR = '{tmp_path}/cache'
    EncoderConfig.num_layers = 99  # of another model; what is converted has its own
    """
    gin.parse_config(bindings)
    try:
        run = gin.get_configurable(TrainConfig)()
        size = gin.query_parameter("VOCAB_SIZE/macro.value").scoped_configurable_fn()
    finally:
        gin.clear_config()
    assert (run.encoder.num_layers, run.encoder.embedding_dropout) == (3, 0.1)
    assert size == run.encoder.vocab_size == config["vocab_size"]
    assert read_description(run.init_from.checkpoint).encoder.width == config["hidden_size"]


def test_a_language_table_is_for_its_languages(zoo, tmp_path):
    config = zoo.simple("xlm") | {"n_langs": 2, "lang2id": {"de": 0, "en": 1}}
    folder = zoo.save(zoo.make("xlm", "WithLMHeadModel", config), str(tmp_path / "theirs"))
    convert.main([f"--source={folder}", f"--target={tmp_path / 'ours'}"])
    model, description, _ = load_model(str(tmp_path / "ours"))
    params = nnx.to_pure_dict(nnx.state(model))
    taken = state.InitFrom(checkpoint=str(tmp_path / "ours"))
    assert "left behind" not in state.init_from(params, taken, description)[1]
    without_head = dataclasses.replace(description, heads={})
    assert "its heads mlm are left behind" in state.init_from(params, taken, without_head)[1]
    other = dataclasses.replace(description, languages={"mlm": ("fi", "sw")})
    with pytest.raises(UserError, match="are de, en, and the objectives read fi, sw; exclude"):
        state.init_from(params, taken, other)
    without = dataclasses.replace(taken, exclude=".*languages")
    state.init_from(params, without, other)
