"""Schedules have the published shapes; decay and orthogonalisation reach the right parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xl_flax.errors import UserError
from xl_flax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule


def at(config, steps, points):
    schedule = make_schedule(config, steps)
    return [float(schedule(jnp.int32(p))) for p in points]


@pytest.mark.parametrize(
    ("schedule", "points", "expected"),
    [
        ("constant", (9, 50, 99), (1.0, 1.0, 1.0)),
        ("linear", (10, 55, 100), (1.0, 0.5, 0.0)),
        ("cosine", (10, 55, 100), (1.0, 0.5, 0.0)),
        ("rsqrt", (10, 30, 80), (1.0, 0.5**0.5 * (20 / 30) ** 0.5, 0.3535)),
        ("wsd", (10, 80, 90, 100), (1.0, 1.0, 0.5, 0.0)),
    ],
)
def test_schedules(schedule, points, expected):
    config = OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup_steps=10, decay_steps=20)
    np.testing.assert_allclose(at(config, 100, (0, 9)), (0.1, 1.0), rtol=1e-5)
    np.testing.assert_allclose(at(config, 100, points), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"warmup_steps = 200 is longer than the run, TrainConfig\.steps = 100: .*_steps=5$"),
        ({"schedule": "wsd"}, r"warmup_steps = 200 \+ decay_steps = 10 is longer .*_steps=4$"),
    ],
)
def test_a_warmup_longer_than_the_run_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make_schedule(OptimizerConfig(warmup_steps=200, **settings), 100)


@pytest.mark.parametrize("field", ["name", "schedule"])
def test_unknown_names_list_the_known_ones(field):
    with pytest.raises(UserError, match="adamw|constant"):
        make_optimizer(OptimizerConfig(**{field: "sgdr"}), 10, {"w": ("embed",)})


AXES = {
    "table": ("vocab", "embed"),
    "kernel": ("layers", "embed", "mlp"),
    "norm": ("layers", "embed"),
    "qkv": ("layers", "embed", None, "heads", "head_dim"),
    "qkv_bias": ("layers", None, "heads", "head_dim"),
    "bias": ("vocab",),
}
PARAMS = {
    "table": jnp.ones((20, 4)),
    "kernel": jax.random.normal(jax.random.key(0), (3, 4, 8)),
    "norm": jnp.ones((3, 4)),
    "qkv": jax.random.normal(jax.random.key(2), (3, 4, 3, 2, 2)),
    "qkv_bias": jnp.ones((3, 3, 2, 2)),
    "bias": jnp.ones(20),
}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_spares_norms_and_biases(name):
    config = OptimizerConfig(name=name, learning_rate=0.1, schedule="constant", weight_decay=0.5)
    optimizer, _ = make_optimizer(config, 10, AXES)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zero, optimizer.init(PARAMS), PARAMS)
    assert not any(updates[name].any() for name in ("norm", "bias", "qkv_bias"))
    np.testing.assert_allclose(updates["table"], -0.05 * PARAMS["table"], rtol=1e-5)
    np.testing.assert_allclose(updates["kernel"], -0.05 * PARAMS["kernel"], rtol=1e-5)


def test_muon_orthogonalises_each_layer_on_its_own():
    config = OptimizerConfig(name="muon", learning_rate=1.0, schedule="constant", weight_decay=0.0)
    optimizer, _ = make_optimizer(config, 10, AXES)
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(1), p.shape), PARAMS)
    updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    qkv = np.moveaxis(updates["qkv"], 2, 1).reshape(9, 4, 4)  # each of Q, K, V is a matrix
    raw = np.moveaxis(grads["qkv"], 2, 1).reshape(9, 4, 4)
    assert all(condition(a) < 2.5 for a in updates["kernel"])
    assert np.median([*map(condition, qkv)]) < 0.5 * np.median([*map(condition, raw)])


def condition(matrix):
    singular = np.linalg.svd(matrix, compute_uv=False)
    return singular.max() / singular.min()
