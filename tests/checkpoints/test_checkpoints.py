"""Checkpoints are complete or absent, describe themselves, and refuse what does not fit."""

import dataclasses
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xl_flax.checkpoints import load
from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.load import (
    best_checkpoint,
    find_checkpoints,
    load_model,
    replace_params,
    vocabulary_path,
)
from xl_flax.checkpoints.manager import CheckpointManager, Progress, kept, read_best, read_progress
from xl_flax.data.vocabulary import VOCABULARY_FILE
from xl_flax.errors import UserError
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.mesh import MeshConfig, make_partitioning

CONFIG = EncoderConfig(
    vocab_size=40, num_layers=2, width=16, num_heads=2, mlp_width=32, max_positions=16
)
DESCRIPTION = Description(
    encoder=CONFIG,
    heads={"mlm": {}},
    vocabulary="0" * 64,
    languages={"mlm": ("deu", "eng")},
    objectives={"mlm": {"kind": "MaskedLM", "rate": [[0, 0.15]]}},
)
VOCABULARY = b"not read here"


def build(seed=0):
    return build_model(CONFIG, {"mlm": {}}, nnx.Rngs(seed))


@pytest.fixture(scope="module")
def partitioning():
    return make_partitioning(MeshConfig(ici=(2, 2, 2)))


@pytest.fixture(scope="module")
def run(tmp_path_factory, partitioning):
    """A run's folder with checkpoints of steps 2, 3 and 4, and its parameters."""
    folder = str(tmp_path_factory.mktemp("run"))
    params = params_lib.create(build, partitioning)
    manager = CheckpointManager(folder, keep_last=2, keep_every=2)
    for step in (1, 2, 3, 4):
        description = dataclasses.replace(DESCRIPTION, step=step)
        files = {"model.json": description.to_json(), VOCABULARY_FILE: VOCABULARY}
        progress = Progress(step, {"mlm": 8 * step}, 0, {"loss": 0.1})
        manager.save(params, {"count": jnp.int32(step)}, progress, files)
    manager.close()
    return folder, params


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_last_and_every_nth_are_kept(run):
    assert [os.path.basename(c) for c in find_checkpoints(run[0])] == ["2", "3", "4"]


def best_of(step):
    return {"step": step, "metric": "eval/m/score", "mode": "max", "value": float(step), "bad": 0}


def marked(manager):
    best = read_best(manager.directory)
    return best and best["step"]


def test_the_best_checkpoint_is_marked_when_a_run_ends_by_an_error(tmp_path):
    def save(step, best):
        progress = Progress(step, {}, 0, {}, best=best_of(best))
        manager.save({"x": jnp.ones(4)}, {"y": jnp.ones(4)}, progress, {})

    manager = CheckpointManager(str(tmp_path), keep_last=1)
    save(1, 1)
    save(2, 2)
    assert marked(manager) == 1
    manager.close()  # as after an error, without `wait`
    assert marked(manager) == 2 and os.listdir(manager.directory).count("1") == 0
    (tmp_path / "checkpoints/2/model/model.json").write_text("{}")
    assert best_checkpoint(str(tmp_path)).endswith("/2")
    for damage in (("2.0", "3.0"), ('"step"', '"stop"'), ("{", "[")):
        path = tmp_path / "checkpoints/best.json"
        before = path.read_text()
        path.write_text(before.replace(*damage))
        with pytest.raises(UserError, match=r"best\.json .*delete it"):
            best_checkpoint(str(tmp_path))
        path.write_text(before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((None, 5, True), "all checkpoints stay"),
        ((1, None, False), "the newest one"),
        ((3, 100, True), "the newest 3 .*multiples of 100 steps .*the best one .*deleted"),
    ],
)
def test_what_will_be_kept_is_said_in_words(arguments, words):
    assert re.search(words, kept(*arguments))


def test_restoring_gives_the_same_bits_on_another_mesh(run):
    folder, params = run
    other = make_partitioning(MeshConfig(ici=(1, 4, 1)), jax.devices()[:4])
    layout = params_lib.abstract(build).layout(other)
    manager = CheckpointManager(folder)
    scalar = {"count": jax.ShapeDtypeStruct((), jnp.int32, sharding=other.sharding(()))}
    found, optimizer = manager.restore(4, layout, scalar)
    manager.close()
    assert_same(found, params)
    assert found["encoder"]["embeddings"]["tokens"].sharding.mesh.shape["fsdp"] == 4
    assert int(optimizer["count"]) == 4
    progress = Progress(4, {"mlm": 32}, 0, {"loss": 0.1})
    assert read_progress(find_checkpoints(folder)[-1]) == progress


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/4"])
def test_models_load_from_a_run_or_one_checkpoint(run, place):
    folder, params = run
    model, description, checkpoint = load_model(os.path.join(folder, place))
    assert_same(nnx.to_pure_dict(nnx.split(model)[1]), params)
    assert description == dataclasses.replace(DESCRIPTION, step=4)
    with open(vocabulary_path(checkpoint), "rb") as file:
        assert file.read() == VOCABULARY


def test_a_checkpoint_that_was_cut_off_is_not_seen(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    (folder / "4").rename(folder / "4.orbax-checkpoint-tmp")
    assert find_checkpoints(str(tmp_path / "run"))[-1].endswith("/3")


def test_no_checkpoint_is_an_error_that_says_what_to_give(tmp_path):
    with pytest.raises(UserError, match="no checkpoint under .*MODEL_DIR"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b'{"format": 1}', b'{"format": 3}'])
def test_a_damaged_description_is_named(text):
    with pytest.raises(
        UserError, match=r"model\.json( is damaged|: .*missing| was written by a newer)"
    ):
        Description.from_json(text, "4/model/model.json")


PROGRESS = b'{"step": %s, "rows": %s, "seed": 0, "window": %s}'


@pytest.mark.parametrize(
    "text",
    [
        *(b"{", b"[]", b"{}", b'{"step": 4, "colour": 1}', None),
        PROGRESS % (b'"4"', b"{}", b"{}"),
        PROGRESS % (b"4", b'{"mlm": -1}', b"{}"),
        PROGRESS % (b"4", b"3", b"{}"),
        PROGRESS % (b"4", b"{}", b"[1]"),
        (PROGRESS % (b"4", b"{}", b"{}"))[:-1] + b', "best": {"step": 3}}',
    ],
)
def test_damaged_progress_is_named(tmp_path, text):
    path = tmp_path / "model/progress.json"
    path.parent.mkdir()
    if text:
        path.write_bytes(text)
    with pytest.raises(UserError, match=r"progress\.json is (missing|damaged)"):
        read_progress(str(tmp_path))


def other_model(partitioning, **sizes):
    """The parameters of a model of other sizes, without values."""
    config = dataclasses.replace(CONFIG, **sizes)
    build = lambda: build_model(config, {"mlm": {}}, nnx.Rngs(1))  # noqa: E731
    return params_lib.abstract(build).layout(partitioning)


def test_parameters_are_taken_by_pattern(run, partitioning):
    fresh = params_lib.create(lambda: build(seed=1), partitioning)
    mixed, taken, _ = replace_params(fresh, run[0], "encoder/.*", ".*/up(_bias)?")
    theirs, ours = dict(params_lib.flat(run[1])), dict(params_lib.flat(fresh))
    assert "encoder/layers/up" not in taken and "encoder/layers/down" in taken
    for name, value in params_lib.flat(mixed):
        np.testing.assert_array_equal(value, (theirs if name in taken else ours)[name])


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        ("decoder/.*", "", "matches no parameter"),
        ("(", "", "no regular expression"),
    ],
)
def test_patterns_that_take_nothing_are_refused(run, partitioning, include, exclude, message):
    with pytest.raises(UserError, match=message):
        replace_params(other_model(partitioning), run[0], include, exclude)


def test_the_layers_of_a_shallower_model_are_stacked(run, partitioning):
    deeper = other_model(partitioning, num_layers=6)
    stacked, taken, _ = replace_params(deeper, run[0], ".*", "", stack=True)
    ours, theirs = dict(params_lib.flat(stacked)), dict(params_lib.flat(run[1]))
    layout = dict(params_lib.flat(deeper))
    assert set(taken) == set(ours) == set(theirs)
    for name, value in ours.items():
        if name.startswith("encoder/layers/"):
            copied = [theirs[name][layer] for layer in (0, 1, 0, 1, 0, 1)]
            np.testing.assert_array_equal(value, copied)
        else:
            np.testing.assert_array_equal(value, theirs[name])
        assert value.sharding == layout[name].sharding


@pytest.mark.parametrize("layers", [3, 1])
def test_layers_that_cannot_be_repeated_are_refused(run, partitioning, layers):
    other = other_model(partitioning, num_layers=layers)
    said = rf"stack: {layers} layers are not made of the 2 of .*/4; set .* to 2, 4, 6, 8 …"
    with pytest.raises(UserError, match=said):
        replace_params(other, run[0], "encoder/.*", "", stack=True)


def test_layers_are_repeated_only_if_that_is_asked_for(run, partitioning):
    other = other_model(partitioning, num_layers=4)
    with pytest.raises(UserError, match=r"has shape \(4, .* here and \(2, "):
        replace_params(other, run[0], "encoder/.*", "")


def test_a_first_layer_outside_the_stack_counts_as_a_layer(run, partitioning, monkeypatch):
    modern = {"pre_norm": True, "first_attention_norm": False}
    shallow = dataclasses.replace(CONFIG, num_layers=11, **modern)
    monkeypatch.setattr(
        load, "read_description", lambda _: dataclasses.replace(DESCRIPTION, encoder=shallow)
    )
    said = "22 layers are not made of the 11 of .* the first is not repeated; .* 11, 21, 31, 41 …"
    with pytest.raises(UserError, match=said):
        replace_params(
            other_model(partitioning, num_layers=22, **modern), run[0], ".*", "", stack=True
        )


def test_a_shape_that_differs_is_named(run, partitioning):
    wide = other_model(partitioning, mlp_width=64)
    with pytest.raises(UserError, match=r"encoder/layers/down has shape \(2, 64, 16\) here"):
        replace_params(wide, run[0], "encoder/.*", "")


def test_a_description_does_not_differ_from_what_was_saved_of_it():
    heads = {"own": {"sizes": (16, 8)}, "mlm": {}}
    objectives = {"mlm": {"kind": "MaskedLM", "rate": ((0, 0.15),)}}
    given = dataclasses.replace(DESCRIPTION, heads=heads, objectives=objectives)
    read = Description.from_json(given.to_json(), "model.json")
    assert read.differences(given) == []
    other = dataclasses.replace(given, heads={"own": {"sizes": (16, 4)}, "mlm": {}})
    assert "set of heads was" in read.differences(other)[0]


def test_differences_name_each_setting_but_not_how_it_is_computed():
    other = dataclasses.replace(
        DESCRIPTION,
        encoder=dataclasses.replace(
            CONFIG, num_layers=3, scan="unroll", dtype="bfloat16", attention="plain"
        ),
        vocabulary="1" * 64,
        objectives={"mlm": {"kind": "MaskedLM", "rate": [[0, 0.3]]}},
    )
    assert DESCRIPTION.differences(DESCRIPTION) == []
    lines = DESCRIPTION.differences(other)
    assert len(lines) == 3
    assert "EncoderConfig.num_layers was 2 and is now 3" in lines
