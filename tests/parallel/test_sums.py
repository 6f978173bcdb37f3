"""Gradients by devices: divided parameters are gathered, and give the gradient of one device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xl_flax.data.stream import Rows
from xl_flax.models.config import EncoderConfig
from xl_flax.models.encoder import Encoder
from xl_flax.objectives.base import Inputs, Loss, Objective, row_keys
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.mesh import MeshConfig, make_partitioning
from xl_flax.planning.program import collectives
from xl_flax.training.gradients import objective_gradient

ROWS, LENGTH, VOCABULARY = 16, 8, 40
CONFIG = EncoderConfig(
    vocab_size=VOCABULARY,
    width=32,
    num_layers=3,
    num_heads=2,
    mlp_width=64,
    max_positions=LENGTH,
    mlp_out_dropout=0.1,
)
ROWS_READ = Rows("rows", LENGTH)


@dataclasses.dataclass(frozen=True)
class Copy(Objective):
    """Each token tells itself from the others, by its vector in the token table."""

    name: str = "copy"
    rows: Rows = ROWS_READ
    batch_size: int = ROWS

    def loss(self, model, batch, inputs):
        keys = row_keys(inputs.key, batch["row_id"])
        states = model(batch["tokens"], dropout_keys=keys).astype(jnp.float32)
        logits = jax.nn.log_softmax(states @ model.embeddings.tokens[...].T)
        own = jnp.take_along_axis(logits, batch["tokens"][..., None], axis=-1)
        return Loss(-own.sum(), {"count": jnp.float32(batch["tokens"].size)})


def gradient(ici, config=CONFIG, divided=(), accumulate=1, compiled=False, frozen=(), slices=1):
    """The gradient on a mesh, or the text of its program."""
    devices = jax.devices()[: slices * np.prod(ici)]
    mesh = MeshConfig(ici=ici, dcn=(slices, 1, 1), optimizer=divided)
    partitioning = make_partitioning(mesh, devices)
    build = lambda: Encoder(config, rngs=nnx.Rngs(0))  # noqa: E731
    abstract = params_lib.abstract(build)
    params = params_lib.create(build, partitioning)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (ROWS, LENGTH))
    batch = {"tokens": jnp.asarray(tokens, jnp.int32), "row_id": jnp.arange(ROWS)}
    is_frozen = {path: path in frozen for path, _ in params_lib.flat(params)}
    tree = jax.tree.unflatten(jax.tree.structure(params), list(is_frozen.values()))

    @jax.jit
    def compute(params, batch):
        with partitioning.activate():
            inputs = Inputs(jax.random.key(0), None, {})
            layouts = abstract.layouts(partitioning)
            return objective_gradient(
                *(
                    abstract.graph,
                    Copy(),
                    params,
                    batch,
                    inputs,
                    layouts,
                    accumulate,
                ),
                tree if frozen else None,
            )

    if compiled:
        return compute.lower(params, batch).compile().as_text()
    grads, loss = compute(params, batch)
    return dict(params_lib.flat(grads)), loss.total


@functools.cache
def on_one():
    return gradient((1, 1, 1))


@pytest.mark.parametrize(
    ("ici", "settings", "divided", "accumulate"),
    [
        ((1, 8, 1), {}, (), 1),
        ((2, 4, 1), {"remat": "none"}, ("data",), 2),
        ((4, 2, 1), {"remat": "full"}, (), 1),
        ((2, 4, 1), {"remat": "dots", "scan": "unroll"}, ("data",), 1),
        ((1, 4, 1), {"remat": "none", "scan": "unroll"}, (), 2),
        ((1, 4, 2), {"remat": "dots"}, (), 1),
    ],
)
def test_the_gradient_of_divided_parameters_is_that_of_one_device(
    ici, settings, divided, accumulate
):
    config = dataclasses.replace(CONFIG, **settings)
    grads, loss = gradient(ici, config, divided, accumulate)
    expected, expected_loss = on_one()
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for path, x in expected.items():
        scale = np.abs(x).max()
        np.testing.assert_allclose(grads[path], x, rtol=0, atol=1e-5 * scale, err_msg=path)


@pytest.mark.parametrize("ici", [(4, 1, 1), (2, 2, 1), (2, 1, 2)])
def test_slices_add_up_what_each_has_divided(ici):
    grads, loss = gradient(ici, divided=("data",), slices=2)
    expected, expected_loss = on_one()
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for path, x in expected.items():
        np.testing.assert_allclose(
            grads[path], x, rtol=0, atol=1e-5 * np.abs(x).max(), err_msg=path
        )
    if ici == (4, 1, 1):  # between slices goes a part
        sent = collectives(gradient(ici, divided=("data",), slices=2, compiled=True))
        between = sum(c.bytes for c in sent if c.kind == "all-reduce" and c.group == 2)
        whole = sum(4 * x.size for x in expected.values())
        assert between <= 0.3 * whole


def test_a_frozen_parameter_has_no_gradient_and_is_not_sent():
    frozen = ("embeddings/tokens", "layers/up")
    grads, _ = gradient((2, 4, 1), frozen=frozen)
    expected, _ = gradient((1, 1, 1), frozen=frozen)
    for path, x in expected.items():
        assert (not x.any()) == (path in frozen), path
        np.testing.assert_allclose(grads[path], x, rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_layers_are_gathered_once_in_each_pass_and_tables_once(remat):
    config = dataclasses.replace(CONFIG, remat=remat)
    sent = collectives(gradient((1, 8, 1), config, compiled=True))
    sizes = dict.fromkeys(("all-gather", "reduce-scatter", "all-reduce"), 0)
    table = VOCABULARY * CONFIG.width * 4
    for c in sent:
        sizes[c.kind] += c.bytes * c.turns
        if c.bytes == table:
            assert not c.loops
    abstract = params_lib.abstract(lambda: Encoder(config, rngs=nnx.Rngs(0)))
    parts = dict.fromkeys(("layers", "other"), 0)
    names = dict(params_lib.flat(abstract.axes, is_leaf=lambda x: isinstance(x, tuple)))
    for path, leaf in params_lib.flat(abstract.shapes):
        divided = "embed" in names[path]
        parts["layers" if path.startswith("layers") else "other"] += 4 * leaf.size * divided
    assert sizes["all-gather"] == 2 * parts["layers"] + parts["other"]
    assert sizes["reduce-scatter"] == parts["layers"] + parts["other"]
