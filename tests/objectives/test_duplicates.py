"""Sentences that mean the same are no negatives, wherever and in whatever language they stand."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xl_flax.data.stream import Rows
from xl_flax.objectives.base import Inputs
from xl_flax.objectives.contrastive import Contrastive


def perfect(batch, meanings_BxS, sides, **settings):
    """Loss, sums and largest gradient, each text having its meaning as its vector.

    Args:
      batch: rows whose texts stand for S meanings.
      meanings_BxS: their numbers.
      sides: texts of an example.
      settings: of the objective; a sigmoid judges cosines above a half as translations.
    """
    objective = Contrastive(rows=Rows("pairs", 64), batch_size=2, scale=60.0, **settings)
    stream = types.SimpleNamespace(
        num_texts=sides, examples_per_row=meanings_BxS.shape[1] // sides, languages=("ces", "eng")
    )
    head = types.SimpleNamespace(log_scale=None, bias=jnp.float32(-30))
    model = types.SimpleNamespace(heads={"contrastive": head})

    def loss(vectors):
        total, sums, _ = objective.loss(model, batch, Inputs(None, stream, {}, encoded=vectors))
        return total, sums

    vectors = np.eye(meanings_BxS.max() + 1, dtype=np.float32)[meanings_BxS]
    (total, sums), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(vectors)
    return total, sums, np.abs(gradient).max()


def draw(count):
    """Texts that have nothing in common."""
    return np.random.default_rng(2).permutation(np.arange(5, 96))[: 4 * count].reshape(count, 4)


@pytest.mark.parametrize("settings", [{"margin": 0.3}, {}, {"loss_kind": "sigmoid"}])
def test_a_verse_in_two_pairs_of_languages_costs_nothing(pack_rows, settings):
    """Sorted by name, English is the second of ces_eng and the first of eng_fin."""
    ces_eng, eng_fin = np.split(draw(12), 2)
    eng_fin[0] = ces_eng[1]
    meanings = np.array([[0, 0, 1, 1, 2, 2], [0, 0, 3, 3, 4, 4]])
    loss, sums, gradient = perfect(pack_rows([ces_eng, eng_fin]), meanings, 2, **settings)
    assert loss < 1e-5 and gradient < 1e-4
    assert sums["correct"] == sums["count"] == 12


def test_a_text_in_two_examples_joins_all_their_languages(pack_rows):
    first, second = np.split(draw(18), 2)
    second[2] = first[0]
    meanings = np.array([[0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 0, 3, 3, 3, 4, 4, 4]])
    loss, sums, gradient = perfect(pack_rows([first, second], sides=3), meanings, 3)
    assert loss < 1e-5 and gradient < 1e-4
    assert sums["correct"] == sums["count"] == 6 * 6
