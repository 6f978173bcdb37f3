"""Languages in objectives: their sums, and their rows in the encoder's language table."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def language_sums(
    languages: int, language_Nx: jax.Array, **values_Nx: jax.Array
) -> dict[str, jax.Array]:
    """Sums by language, [languages]: the entries of `language_…` metrics."""
    flat = language_Nx.reshape(-1)
    return {
        f"language_{name}": jnp.zeros(languages).at[flat].add(values.reshape(-1))
        for name, values in values_Nx.items()
    }


def language_rows(names: Sequence[str], languages: Sequence[str]) -> np.ndarray:
    """Where names stand among `languages`, int32; behind the last one where they do not.

    The encoder adds no language embedding for a row beyond its table.
    """
    places = {language: i for i, language in enumerate(languages)}
    return np.array([places.get(name, len(languages)) for name in names], np.int32)
