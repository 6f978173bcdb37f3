"""Schedules have the published shapes; decay and orthogonalisation reach the right parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xl_flax.errors import UserError
from xl_flax.training.layer_rates import scale_by_depth
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
        ("wsd_sqrt", (10, 80, 85, 100), (1.0, 1.0, 0.5, 0.0)),
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


@pytest.mark.parametrize("name", ["adamw", "stable_adamw", "muon"])
def test_weight_decay_spares_norms_and_biases(name):
    config = OptimizerConfig(name=name, learning_rate=0.1, schedule="constant", weight_decay=0.5)
    optimizer, _ = make_optimizer(config, 10, AXES)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zero, optimizer.init(PARAMS), PARAMS)
    assert not any(updates[name].any() for name in ("norm", "bias", "qkv_bias"))
    np.testing.assert_allclose(updates["table"], -0.05 * PARAMS["table"], rtol=1e-5)
    np.testing.assert_allclose(updates["kernel"], -0.05 * PARAMS["kernel"], rtol=1e-5)


def gradients(seed):
    return jax.tree.map(lambda p: jax.random.normal(jax.random.key(seed), p.shape), PARAMS)


def run(optimizer, params, grads):
    state = optimizer.init(params)
    for each in grads:
        updates, state = optimizer.update(each, state, params)
        params = optax.apply_updates(params, updates)
    return params


def stable_adamw(weight, grads, rate, b1, b2, eps, decay):
    """Wortsman et al. 2023, arXiv:2304.13013, algorithm 2, of one weight."""
    m, v = np.zeros_like(weight), np.zeros_like(weight)
    for t, g in enumerate(grads, 1):
        b1_t, b2_t = b1 * (1 - b1 ** (t - 1)) / (1 - b1**t), b2 * (1 - b2 ** (t - 1)) / (1 - b2**t)
        m, v = b1_t * m + (1 - b1_t) * g, b2_t * v + (1 - b2_t) * g**2
        eta = rate / max(1, np.sqrt(np.mean(g**2 / np.maximum(v, eps**2))))
        weight = weight - eta * decay * weight - eta * m / (np.sqrt(v) + eps)
    return weight


@pytest.mark.parametrize("rate_factors", [(), [("norm", 0.0)]])
def test_stable_adamw_is_the_published_algorithm_of_each_layer(rate_factors):
    settings = {"learning_rate": 0.01, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    config = OptimizerConfig(
        "stable_adamw", schedule="constant", rate_factors=rate_factors, **settings
    )
    # The gradients grow in one layer: its step is divided, that of the others is not.
    grads = [gradients(seed) for seed in range(4)]
    grads[3]["kernel"] = grads[3]["kernel"].at[1].multiply(100)
    result = run(make_optimizer(config, 10, AXES)[0], PARAMS, grads)
    own = [0.01, 0.9, 0.95, 1e-8]
    for layer in range(3):
        kernel = [np.float64(g["kernel"][layer]) for g in grads]
        expected = stable_adamw(np.float64(PARAMS["kernel"][layer]), kernel, *own, 0.1)
        np.testing.assert_allclose(result["kernel"][layer], expected, rtol=2e-5, atol=1e-6)
    bias = stable_adamw(np.float64(PARAMS["bias"]), [np.float64(g["bias"]) for g in grads], *own, 0)
    np.testing.assert_allclose(result["bias"], bias, rtol=2e-5)
    assert bool(rate_factors) == np.array_equal(result["norm"], PARAMS["norm"])


def test_what_muon_does_not_train_is_left_to_adamw():
    settings = {"learning_rate": 0.1, "schedule": "constant", "weight_decay": 0.5}
    grads = [gradients(seed) for seed in range(3)]
    muon, adamw = (
        run(make_optimizer(OptimizerConfig(name, **settings), 10, AXES)[0], PARAMS, grads)
        for name in ("muon", "adamw")
    )
    for name in ("table", "norm", "qkv_bias", "bias"):
        np.testing.assert_allclose(muon[name], adamw[name], rtol=1e-5)
    assert not np.allclose(muon["kernel"], adamw["kernel"], rtol=1e-2)


def test_muon_trains_the_keys_and_values_that_queries_share():
    axes = {"kv": ("layers", "embed", None, "kv_heads", "head_dim")}
    params = {"kv": jax.random.normal(jax.random.key(2), (3, 8, 2, 2, 2))}
    config = OptimizerConfig("muon", learning_rate=1.0, schedule="constant", weight_decay=0.0)
    optimizer, _ = make_optimizer(config, 10, axes)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    keys_and_values = np.moveaxis(updates["kv"], 2, 1).reshape(6, 8, 4)
    assert all(condition(matrix) < 2.5 for matrix in keys_and_values)


def test_muon_orthogonalises_each_layer_on_its_own():
    config = OptimizerConfig(name="muon", learning_rate=1.0, schedule="constant", weight_decay=0.0)
    optimizer, _ = make_optimizer(config, 10, AXES)
    grads = gradients(1)
    updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    qkv = np.moveaxis(updates["qkv"], 2, 1).reshape(9, 4, 4)  # each of Q, K, V is a matrix
    raw = np.moveaxis(grads["qkv"], 2, 1).reshape(9, 4, 4)
    assert all(condition(a) < 2.5 for a in updates["kernel"])
    assert np.median([*map(condition, qkv)]) < 0.5 * np.median([*map(condition, raw)])


def condition(matrix):
    singular = np.linalg.svd(matrix, compute_uv=False)
    return singular.max() / singular.min()


def encoder_params(first=False):
    ones = jnp.ones
    encoder = {
        "embeddings": {"tokens": ones((5, 2))},
        "layers": {"up": ones((3, 2, 2)), "norm": {"scale": ones((3, 2))}},
        "final_norm": {"scale": ones(2)},
    }
    if first:
        encoder["first"] = {"up": ones((2, 2))}
    return {"encoder": encoder, "heads": {"tokens": {"out": ones((2, 4))}}}


@pytest.mark.parametrize("first", [False, True])
def test_lower_layers_learn_more_slowly(first):
    params, layers = encoder_params(first), 3 + first
    transformation = scale_by_depth(0.5, 0)
    scaled, _ = transformation.update(params, transformation.init(params), params)
    encoder = scaled["encoder"]
    assert scaled["heads"]["tokens"]["out"][0, 0] == encoder["final_norm"]["scale"][0] == 1
    assert encoder["embeddings"]["tokens"][0, 0] == 0.5**layers
    np.testing.assert_array_equal(encoder["layers"]["up"][:, 0, 0], [0.25, 0.5, 1])
    np.testing.assert_array_equal(encoder["layers"]["norm"]["scale"][:, 1], [0.25, 0.5, 1])
    if first:
        assert encoder["first"]["up"][0, 0] == 0.125


def test_frozen_layers_stay_as_they_are():
    params = encoder_params()
    axes = jax.tree.map(lambda x: (None,) * x.ndim, params)
    config = OptimizerConfig(learning_rate=0.1, schedule="constant", frozen_layers=2)
    result = run(make_optimizer(config, 10, axes)[0], params, [params])
    moved = jax.tree.map(lambda a, b: np.asarray(a != b), result, params)
    assert not moved["encoder"]["embeddings"]["tokens"].any()
    assert moved["encoder"]["layers"]["up"].all(axis=(1, 2)).tolist() == [False, False, True]
    assert moved["heads"]["tokens"]["out"].all()
    with pytest.raises(UserError, match=r"frozen_layers = 9: the encoder has 3 layers"):
        too_many = dataclasses.replace(config, frozen_layers=9)
        run(make_optimizer(too_many, 10, axes)[0], params, [params])


def test_depth_is_known_where_layers_are_frozen_by_name():
    params = encoder_params()
    axes = jax.tree.map(lambda x: (None,) * x.ndim, params)
    config = OptimizerConfig(
        learning_rate=0.1, schedule="constant", weight_decay=0.0, layer_decay=0.5,
        rate_factors=[("encoder/layers/.*", 0.0)],
    )  # fmt: skip
    result = run(make_optimizer(config, 10, axes)[0], params, [params])
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)), result, params)
    assert not moved["encoder"]["layers"]["up"].any()
    head = moved["heads"]["tokens"]["out"][0, 0]
    np.testing.assert_allclose(moved["encoder"]["embeddings"]["tokens"], head / 8, rtol=1e-4)
