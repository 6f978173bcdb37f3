"""A small model, created under jit: op by op it takes seconds."""

import pytest
from flax import nnx

from xl_flax.models.heads import build_model


@pytest.fixture(scope="session")
def small_model():
    """small_model(config, heads) -> Model with random parameters."""
    return lambda config, heads: nnx.jit(lambda: build_model(config, heads, nnx.Rngs(0)))()
