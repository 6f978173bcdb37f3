"""What is read from Hugging Face computes what Hugging Face computes: every family and head."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from xl_flax.converters import read, tensors
from xl_flax.converters.verify import make_outputs
from xl_flax.models.heads import mlm_prediction
from xl_flax.parallel import params as params_lib

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
FAMILIES = ("bert", "xlm_roberta", "xlm_roberta_xl", "xlm", "modernbert", "eurobert")


@settings(max_examples=2, deadline=None, derandomize=True, phases=[Phase.generate])
@given(data=st.data())
def test_outputs_equal_those_of_transformers(zoo, family_and_head, tmp_path_factory, data):
    family, head = family_and_head
    config = data.draw(zoo.configs(family))
    theirs = zoo.make(family, head, config)
    folder = zoo.save(theirs, str(tmp_path_factory.mktemp(family)))
    model, description = zoo.load(folder)
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    longest = description.encoder.max_positions
    tokens, real = zoo.padded_batch(rng, config["vocab_size"], longest)
    shifted = data.draw(st.booleans())
    if shifted:  # padding also before what is real, and inside
        real[1, 3], real[2] = False, np.roll(real[2], longest // 2)
        tokens = np.where(real, np.maximum(tokens, 5), 1)
    inputs = torch.tensor(tokens), torch.tensor(real.astype(int))
    if "Choice" in head:  # [B, choices, L]
        inputs = tuple(array[:, None] for array in inputs)
    with torch.no_grad():
        out = theirs(inputs[0], attention_mask=inputs[1])
    renamed = {"last_hidden_state": "hidden", "prediction_logits": "logits"}
    expected = {renamed.get(k, k): v.numpy() for k, v in out.items() if hasattr(v, "numpy")}
    expected.pop("seq_relationship_logits", None)
    found = make_outputs(model, description, description.heads)(tokens, real)
    assert set(expected) <= set(found), "an output that ours does not have"
    for name, value in expected.items():
        per_token = value.shape[:2] == real.shape and "pool" not in name
        if shifted and not per_token:
            continue  # theirs take the first position for the first token
        a, b = (x[real] if per_token else x for x in (found[name], value))
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=0, err_msg=f"{head}: {name}")
    # Shorter ones, packed in one row, are as if each were alone.
    tokens, real = zoo.padded_batch(rng, config["vocab_size"], longest // 3)
    with torch.no_grad():
        out = theirs.base_model(torch.tensor(tokens), attention_mask=torch.tensor(real.astype(int)))
    sizes = real.sum(axis=1)
    hidden = nnx.jit(type(model.encoder).__call__)(
        model.encoder,
        jnp.asarray(tokens[real])[None],
        segment_ids=jnp.repeat(jnp.arange(1, len(sizes) + 1), sizes)[None],
        positions=jnp.concatenate([jnp.arange(n) for n in sizes])[None],
    )
    expected = out.last_hidden_state.numpy()[real]
    np.testing.assert_allclose(hidden[0], expected, atol=1e-4, rtol=0, err_msg=f"{head}: packed")


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_those_of_transformers(zoo, family, tmp_path):
    head = next(h for h in zoo.HEADS[family] if "LM" in h)
    config = zoo.simple(family)
    theirs = zoo.make(family, head, config)
    folder = zoo.save(theirs, str(tmp_path))
    tokens, real = zoo.padded_batch(np.random.default_rng(0), config["vocab_size"], 8)
    targets = np.random.default_rng(1).integers(0, config["vocab_size"], tokens.shape)
    logits = theirs(torch.tensor(tokens), attention_mask=torch.tensor(real.astype(int))).logits
    chosen = torch.tensor(real)
    torch.nn.functional.cross_entropy(logits[chosen], torch.tensor(targets)[chosen]).backward()

    model, _ = zoo.load(folder)
    graph, params = nnx.split(model)

    @jax.jit
    @jax.grad
    def gradient(params):
        merged = nnx.merge(graph, params)
        hidden = merged.encoder(jnp.asarray(tokens), segment_ids=jnp.asarray(real.astype(np.int32)))
        head, table_VxD, bias_V = mlm_prediction(merged)
        logits = head.features(hidden) @ table_VxD.T + bias_V
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        return (losses * real).sum() / real.sum()

    # Their gradients, in the places of their parameters.
    found = read.open_model(folder)
    named = dict(theirs.named_parameters(remove_duplicate=False))
    grads = {}
    for name in found.tensors:
        grad = next(p.grad for n, p in named.items() if name.endswith(n))
        value = np.zeros(named[name].shape, np.float32) if grad is None else grad.numpy()
        grads[name] = tensors.Tensor(value.shape, value.dtype, lambda v=value: v)
    expected = read.read_params(dataclasses.replace(found, tensors=grads), lambda _: None)
    for path, value in params_lib.flat(nnx.to_pure_dict(gradient(params))):
        atol = 1e-4 * max(1, np.abs(expected[path]).max())
        np.testing.assert_allclose(value, expected[path], atol=atol, rtol=0, err_msg=path)


def test_language_embeddings_are_added(zoo, tmp_path):
    config = zoo.simple("xlm") | {
        "n_langs": 3,
        "lang2id": {"de": 0, "en": 1, "fr": 2},
    }
    theirs = zoo.make("xlm", "Model", config)
    model, description = zoo.load(zoo.save(theirs, str(tmp_path)))
    assert description.all_languages == ["de", "en", "fr"]
    tokens, real = zoo.padded_batch(np.random.default_rng(0), config["vocab_size"], 8)
    languages = np.broadcast_to(np.array([[0], [2], [1]]), tokens.shape)
    inputs = {"attention_mask": torch.tensor(real.astype(int)), "langs": torch.tensor(languages)}
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), **inputs).last_hidden_state.numpy()
    found = model.encoder(
        jnp.asarray(tokens),
        segment_ids=jnp.asarray(real.astype(np.int32)),
        languages=jnp.asarray(languages),
    )
    np.testing.assert_allclose(np.asarray(found)[real], expected[real], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_no_farther_off_than_theirs(zoo, family, tmp_path):
    config = zoo.simple(family)
    head = next(h for h in zoo.HEADS[family] if "LM" in h)
    theirs = zoo.make(family, head, config).to(torch.bfloat16)
    folder = zoo.save(theirs, str(tmp_path))
    params = read.read_params(read.open_model(folder), lambda _: None)
    assert {str(value.dtype) for value in params.values()} == {"bfloat16"}
    tokens, real = zoo.padded_batch(np.random.default_rng(0), config["vocab_size"], 8)
    mask = torch.tensor(real.astype(int))
    with torch.no_grad():
        rough = theirs(torch.tensor(tokens), attention_mask=mask).logits.float().numpy()
        # The rounded weights, in an arithmetic that adds nothing.
        exact = theirs.float()(torch.tensor(tokens), attention_mask=mask).logits.numpy()
    ours = make_outputs(*zoo.load(folder), {"mlm"})(tokens, real)["logits"]
    np.testing.assert_allclose(ours[real], exact[real], atol=1e-4, rtol=0)
    ours = make_outputs(*zoo.load(folder, "bfloat16"), {"mlm"})(tokens, real)["logits"]
    error = lambda logits: np.sqrt(np.square((logits - exact)[real]).mean())  # noqa: E731
    assert 0 < error(ours) < 1.5 * error(rough), (error(ours), error(rough))
