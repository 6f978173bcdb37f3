import jax
import pytest


@pytest.fixture
def optimised():
    """What is compiled has the optimisations that users have."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
