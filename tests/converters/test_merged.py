"""Checkpoints are averaged, and merged by TIES, as a plain computation says."""

import os

import jax
import numpy as np
import pytest
from run_folders import flip, saved
from small_evaluations import WORDS, make_run, train_vocabulary

from xl_flax import convert
from xl_flax.checkpoints.load import read_description
from xl_flax.checkpoints.merging import DENSITY
from xl_flax.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged")
    vocabulary = train_vocabulary(folder / "v.model", WORDS)
    for seed, name in enumerate(("base", "a", "b", "c")):
        make_run(str(folder / name), vocabulary, seed=100 * seed)
    make_run(str(folder / "flat"), vocabulary, layers=1)
    return folder


def params(path):
    tree = saved(path, "params")
    return {name: np.asarray(leaf, np.float64) for name, leaf in tree.items()}


def run(folder, target, *flags):
    convert.main([f"--source={folder}", f"--target={target}", *flags])
    return str(target)


def test_a_mean_is_that_of_the_arrays(folder, tmp_path, capsys):
    target = run(folder / "a", tmp_path / "mean", "--average=last:2")
    out = capsys.readouterr().out
    assert "made of" in out and out.index("checkpoints/5") < out.index("checkpoints/10")
    one, two = (params(f"{folder}/a/checkpoints/{step}") for step in (5, 10))
    found = params(target)
    assert found.keys() == one.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, (one[name] + two[name]) / 2, rtol=1e-6, atol=1e-7)
    assert read_description(target) == read_description(f"{folder}/a/checkpoints/10")
    again = params(run(folder / "a", tmp_path / "steps", "--average=10, 5"))
    jax.tree.map(np.testing.assert_array_equal, again, found)


def test_ties_is_what_the_paper_says(folder, tmp_path):
    """Trim, elect and merge on flat vectors, place by place, as in the paper's algorithm 1."""
    others = [f"{folder}/{name}" for name in "abc"]
    target = run(f"{folder}/base", tmp_path / "ties", f"--ties={','.join(others)}")
    base, found = params(f"{folder}/base/checkpoints/10"), params(target)
    names = sorted(base)
    flat = lambda tree: np.concatenate([tree[n].ravel() for n in names])  # noqa: E731
    start = flat(base).astype(np.float32)
    tasks = [flat(params(f"{o}/checkpoints/10")).astype(np.float32) - start for o in others]
    trimmed = []
    for task in tasks:
        kept = np.argsort(-np.abs(task), kind="stable")[: round(DENSITY * task.size)]
        own = np.zeros_like(task)
        own[kept] = task[kept]
        trimmed.append(own)
    expected = start.astype(np.float64)
    for i, column in enumerate(zip(*trimmed, strict=True)):
        sign = np.sign(sum(map(float, column)))
        agree = [float(x) for x in column if x and np.sign(x) == sign]
        expected[i] += sum(agree) / len(agree) if agree else 0
    np.testing.assert_allclose(flat(found), expected, rtol=1e-5, atol=1e-6)
    changed = np.mean(flat(found) != start)
    assert DENSITY < changed < 3 * DENSITY


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--average=last:3"], "a has 2 checkpoints; say last:2 to last:2"),
        (["--average=last:1"], "say last:2"),
        (["--average=7"], "no checkpoint of step 7"),
        (["--average=latest"], "a mean needs two or more"),
        (["--ties={}/b"], "--ties needs two or more models"),
        (["--ties={0}/b,{0}/flat"], "flat.* is of another model than .*num_layers was 2 and is"),
        (["--ties={0}/b,{0}/a"], "a/checkpoints/10 does not differ from"),
        (["--ties={0}/b,{0}/c", "--average=all"], "two ways to merge"),
    ],
)
def test_what_cannot_be_merged_is_refused(folder, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        run(folder / "a", tmp_path / "target", *(flag.format(folder) for flag in flags))
    assert not os.path.exists(tmp_path / "target")


def test_a_damaged_one_is_named(folder, tmp_path):
    vocabulary = train_vocabulary(tmp_path / "v.model", WORDS)
    damaged = make_run(str(tmp_path / "damaged"), vocabulary)
    flip(f"{damaged}/checkpoints/5")
    with pytest.raises(UserError, match="checkpoints/5 is damaged"):
        run(damaged, tmp_path / "target", "--average=all")
    assert not os.path.exists(tmp_path / "target")
