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


def language_rows(stream_languages: Sequence[str], languages: Sequence[str]) -> np.ndarray:
    """Where each language of a stream stands in the encoder's language table, int32."""
    return np.array([languages.index(x) for x in stream_languages], np.int32)
