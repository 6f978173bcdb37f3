"""An example's loss and prediction do not depend on what else lies in its row."""

import types

import jax
import numpy as np
import pytest
from flax import nnx

from xl_flax.data.batch_packing import MOST, pack_batch
from xl_flax.data.features import FeatureSpec
from xl_flax.data.stream import Rows
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.objectives.base import Inputs
from xl_flax.objectives.classification import SequenceClassification, TokenClassification

LENGTH, PAD, LABELS = 32, 1, ("a", "b", "c")
ENCODERS = {
    "bert": {"token_types": 2},
    "xlmr": {"token_types": 1, "position_offset": 2},
}


def rows_of_one(texts, kind):
    rng, n = np.random.default_rng(0), 12
    batch = {
        name: np.full((n, LENGTH), empty, np.int32)
        for name, empty in (("tokens", PAD), ("segment_ids", 0), ("positions", 0))
    }
    batch["languages"] = np.zeros((n, texts), np.int32)
    batch["row_id"] = np.arange(n, dtype=np.int32)
    batch["example"] = np.arange(n, dtype=np.int32)[:, None]
    batch["piece"] = np.zeros((n, 1), np.int32)
    for i in range(n):
        at = 0
        for k in range(texts):
            size = int(rng.integers(3, 7))
            batch["tokens"][i, at : at + size] = [2, *rng.integers(5, 60, size - 2), 3]
            batch["segment_ids"][i, at : at + size] = k + 1
            batch["positions"][i, at : at + size] = np.arange(size)
            at += size
    shape = (n, 1) if kind == "example" else (n, LENGTH)
    labels = rng.integers(-1, len(LABELS), shape).astype(np.int32)
    batch["label"] = labels if kind == "example" else np.where(batch["segment_ids"], labels, -1)
    return batch


@pytest.mark.parametrize("encoder", ["bert", "xlmr"])
@pytest.mark.parametrize(
    ("objective", "texts", "kind", "settings"),
    [
        (SequenceClassification, 1, "example", {"dense": "tanh"}),
        (SequenceClassification, 2, "example", {"pooling": "mean", "double_separator": True}),
        (TokenClassification, 1, "token", {}),
    ],
)
def test_layouts_agree(encoder, objective, texts, kind, settings):
    specs = {"label": FeatureSpec(kind, labels=LABELS)}
    single = rows_of_one(texts, kind)
    packed = pack_batch(single, texts, specs, PAD, 1)
    assert len(packed["tokens"]) < len(single["tokens"])
    trained = objective(rows=Rows("t", LENGTH, packing="batch"), batch_size=12, **settings)
    config = EncoderConfig(
        vocab_size=64, num_layers=2, width=16, num_heads=2, mlp_width=32, max_positions=LENGTH,
        **ENCODERS[encoder],
    )  # fmt: skip
    streams = [
        types.SimpleNamespace(
            num_texts=texts, examples_per_row=places, languages=("x",), features=specs
        )
        for places in (1, MOST)
    ]
    model = build_model(config, trained.heads(streams[0]), nnx.Rngs(0))
    buffers = {
        "sep_id": np.int32(3),
        "pad_id": np.int32(PAD),
        "language_rows": np.zeros(1, np.int32),
    }
    losses, gradients = [], []
    for stream, batch in zip(streams, (single, packed), strict=True):
        inputs = Inputs(jax.random.key(0), stream, buffers, train=False)

        def loss(model, batch=batch, inputs=inputs):
            result = trained.loss(model, batch, inputs)
            return result.total, result.sums

        (total, sums), gradient = nnx.value_and_grad(loss, has_aux=True)(model)
        losses.append({"total": total} | {k: v for k, v in sums.items() if k != "positions"})
        gradients.append(gradient)
    assert losses[0]["count"] > 3
    for name, value in losses[0].items():
        np.testing.assert_allclose(losses[1][name], value, rtol=1e-5, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients[0], gradients[1]
    )
