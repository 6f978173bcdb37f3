"""Our encoder computes what Hugging Face's BERT, XLM-R and ModernBERT compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model, token_table

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCAB, WIDTH, HEADS, MLP, LENGTH, PAD = 97, 48, 4, 80, 40, 1
SIZES = {"vocab_size": VOCAB, "width": WIDTH, "num_heads": HEADS, "mlp_width": MLP}
FAMILIES = ("bert", "xlmr", "modernbert")


def family(name):
    """(Hugging Face model in eval mode, our config) with random weights, biases and norms."""
    sizes = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_attention_heads": HEADS}
    sizes |= {"intermediate_size": MLP, "pad_token_id": PAD, "attn_implementation": "eager"}
    torch.manual_seed(0)
    if name == "bert":
        model = transformers.BertForMaskedLM(
            transformers.BertConfig(**sizes, num_hidden_layers=3, max_position_embeddings=64)
        )
        ours = {"num_layers": 3, "max_positions": 64, "token_types": 2}
    elif name == "xlmr":
        model = transformers.XLMRobertaForMaskedLM(
            transformers.XLMRobertaConfig(
                **sizes,
                num_hidden_layers=3,
                max_position_embeddings=66,
                type_vocab_size=1,
                layer_norm_eps=1e-5,
            )
        )
        ours = {"num_layers": 3, "max_positions": 64, "position_offset": 2, "token_types": 1}
        ours |= {"norm_eps": 1e-5}
    else:
        model = transformers.ModernBertForMaskedLM(
            transformers.ModernBertConfig(
                **sizes, num_hidden_layers=5, max_position_embeddings=64, local_attention=8
            )
        )
        ours = {"num_layers": 5, "max_positions": 64, "positions": "rotary", "pre_norm": True}
        ours |= {"first_attention_norm": False, "final_norm": True, "norm_eps": 1e-5}
        ours |= {"bias": False, "norm_bias": False, "gated_mlp": True, "local_window": 8}
    with torch.no_grad():
        for parameter in model.parameters():  # far from the init, where biases and norms do nothing
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (0.5 if parameter.ndim == 1 else 0))
    return model.eval(), EncoderConfig(**SIZES, **ours)


def put(parameter, value):
    assert parameter.shape == value.shape
    parameter[...] = jnp.asarray(value)


def put_norm(norm, weights, name):
    put(norm.scale, weights[f"{name}.weight"])
    if norm.bias is not None:
        put(norm.bias, weights[f"{name}.bias"])


def stack(weights, names, shape):
    """[len(names), *shape] from linear weights stored as [out, in], or from biases."""
    return np.stack([weights[name].T.reshape(shape) for name in names])


def from_bert(model, weights):
    prefix = "bert" if "cls.predictions.bias" in weights else "roberta"
    encoder, head, heads = model.encoder, model.heads["mlm"], (HEADS, WIDTH // HEADS)
    tables = ("word", "tokens"), ("position", "positions"), ("token_type", "token_types")
    for theirs, ours in tables:
        table = weights[f"{prefix}.embeddings.{theirs}_embeddings.weight"]
        put(getattr(encoder.embeddings, ours), table)
    put_norm(encoder.embeddings.norm, weights, f"{prefix}.embeddings.LayerNorm")
    names = [f"{prefix}.encoder.layer.{i}" for i in range(encoder.config.num_layers)]
    layers = encoder.layers
    for kind, kernel, bias in ("weight", "qkv", "out"), ("bias", "qkv_bias", "out_bias"):
        qkv = [
            stack(weights, [f"{n}.attention.self.{x}.{kind}" for n in names], (-1, *heads))
            for x in ("query", "key", "value")
        ]
        qkv = np.stack(qkv, 2 if kind == "weight" else 1)
        put(getattr(layers, kernel), qkv.reshape(getattr(layers, kernel).shape))
        shape = (*heads, WIDTH) if kind == "weight" else (WIDTH,)
        out = stack(weights, [f"{n}.attention.output.dense.{kind}" for n in names], shape)
        put(getattr(layers, bias), out)
    linear = ("intermediate.dense", "up"), ("output.dense", "down")
    for theirs, ours in linear:
        kernel = getattr(layers, ours)
        put(kernel, stack(weights, [f"{n}.{theirs}.weight" for n in names], kernel.shape[1:]))
        bias = getattr(layers, f"{ours}_bias")
        put(bias, stack(weights, [f"{n}.{theirs}.bias" for n in names], bias.shape[1:]))
    norms = ("attention.output.LayerNorm", "attention_norm"), ("output.LayerNorm", "mlp_norm")
    for theirs, ours in norms:
        put(getattr(layers, ours).scale, np.stack([weights[f"{n}.{theirs}.weight"] for n in names]))
        put(getattr(layers, ours).bias, np.stack([weights[f"{n}.{theirs}.bias"] for n in names]))
    if prefix == "bert":
        dense, norm = "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"
        bias = "cls.predictions.bias"
    else:
        dense, norm, bias = "lm_head.dense", "lm_head.layer_norm", "lm_head.bias"
    put(head.dense, weights[f"{dense}.weight"].T)
    put(head.dense_bias, weights[f"{dense}.bias"])
    put_norm(head.norm, weights, norm)
    put(head.bias, weights[bias])


def from_modernbert(model, weights):
    encoder, head = model.encoder, model.heads["mlm"]
    put(encoder.embeddings.tokens, weights["model.embeddings.tok_embeddings.weight"])
    put_norm(encoder.embeddings.norm, weights, "model.embeddings.norm")
    put_norm(encoder.final_norm, weights, "model.final_norm")
    kernels = ("attn.Wqkv", "qkv"), ("attn.Wo", "out"), ("mlp.Wi", "up"), ("mlp.Wo", "down")
    names = [f"model.layers.{i}" for i in range(encoder.config.num_layers)]
    for theirs, ours in kernels:
        first, rest = getattr(encoder.first, ours), getattr(encoder.layers, ours)
        stacked = stack(weights, [f"{n}.{theirs}.weight" for n in names], first.shape)
        put(first, stacked[0])
        put(rest, stacked[1:])
    put(encoder.first.mlp_norm.scale, weights["model.layers.0.mlp_norm.weight"])
    for theirs, ours in ("attn_norm", "attention_norm"), ("mlp_norm", "mlp_norm"):
        scales = np.stack([weights[f"{n}.{theirs}.weight"] for n in names[1:]])
        put(getattr(encoder.layers, ours).scale, scales)
    put(head.dense, weights["head.dense.weight"].T)
    put_norm(head.norm, weights, "head.norm")
    put(head.bias, weights["decoder.bias"])


def convert(model, weights):
    if "model.final_norm.weight" in weights:
        from_modernbert(model, weights)
    else:
        from_bert(model, weights)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    theirs, config = family(request.param)
    graph, abstract = nnx.split(
        nnx.eval_shape(lambda: build_model(config, {"mlm": {}}, nnx.Rngs(0)))
    )
    model = nnx.merge(graph, jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan), abstract))
    weights = {k: v.numpy() for k, v in theirs.state_dict().items()}
    convert(model, weights)
    return theirs, model


def logits_of(model, tokens, segment_ids, positions):
    hidden = model.encoder(tokens, segment_ids=segment_ids, positions=positions)
    head = model.heads["mlm"]
    return head.features(hidden) @ token_table(model).T + head.bias[...]


def padded_batch():
    lengths = np.array([LENGTH, LENGTH - 7, 5])
    real = np.arange(LENGTH) < lengths[:, None]
    tokens = np.random.default_rng(0).integers(PAD + 1, VOCAB, real.shape)
    return np.where(real, tokens, PAD), real


def their_logits(model, tokens, real):
    return model(torch.tensor(tokens), attention_mask=torch.tensor(real.astype(int))).logits


def test_logits_equal_hugging_face_padded_and_packed(pair):
    theirs, model = pair
    tokens, real = padded_batch()
    with torch.no_grad():
        expected = their_logits(theirs, tokens, real).numpy()
    graph, params = nnx.split(model)
    run = jax.jit(lambda params, *inputs: logits_of(nnx.merge(graph, params), *inputs))

    arange = np.broadcast_to(np.arange(LENGTH), tokens.shape)
    ours = run(params, tokens, real.astype(np.int32), arange)
    np.testing.assert_allclose(ours[real], expected[real], atol=1e-4, rtol=0)

    # The two shorter examples back to back in one row: each as if it stood alone.
    n, m = real[2].sum(), real[1].sum()
    row = np.concatenate([tokens[2, :n], tokens[1, :m], tokens[0, n + m :]])[None]
    segments = np.repeat([1, 2, 0], [n, m, LENGTH - n - m])[None]
    positions = np.concatenate([np.arange(n), np.arange(m), np.arange(LENGTH - n - m)])[None]
    ours = run(params, row, segments, positions)[0]
    np.testing.assert_allclose(ours[:n], expected[2, :n], atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours[n : n + m], expected[1, :m], atol=1e-4, rtol=0)


def test_gradients_equal_hugging_face(pair):
    theirs, model = pair
    tokens, real = padded_batch()
    targets = np.random.default_rng(1).integers(0, VOCAB, tokens.shape)

    theirs.zero_grad()
    logits = their_logits(theirs, tokens, real)[torch.tensor(real)]
    torch.nn.functional.cross_entropy(logits, torch.tensor(targets[real])).backward()
    graph, params = nnx.split(model)

    def loss(params):
        logits = logits_of(nnx.merge(graph, params), tokens, real.astype(np.int32), None)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        return (losses * real).sum() / real.sum()

    ours = jax.jit(jax.grad(loss))(params)
    expected = nnx.clone(model)
    named = theirs.named_parameters(remove_duplicate=False)  # tied tables under both names
    convert(expected, {name: value.grad.numpy() for name, value in named})

    def same(path, ours, expected):
        atol = 1e-4 * max(1, np.abs(expected).max())
        np.testing.assert_allclose(ours, expected, atol=atol, rtol=0, err_msg=str(path))

    jax.tree_util.tree_map_with_path(same, ours, nnx.state(expected))
