"""What labels a head and its encoder have seen in earlier runs is not forgotten."""

import jax
import numpy as np
import pytest
from flax import nnx

from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.save import save_checkpoint
from xl_flax.evaluation.labelled import head_languages
from xl_flax.models.config import EncoderConfig
from xl_flax.models.heads import build_model
from xl_flax.training.config import InitFrom
from xl_flax.training.state import init_from

CONFIG = EncoderConfig(
    vocab_size=16, num_layers=1, width=8, num_heads=2, mlp_width=8, max_positions=8
)
TAGS = {"kind": "classification", "pooling": "tokens", "labels": ["a", "b"]}


def described(head, language, shots=None):
    """A model with a head, of the objective of its name, trained on one language's task."""
    trained = {"mixture": [[0, f"panx_{language}"]], "shots": shots}
    heads = {head: {} if head == "mlm" else TAGS}
    return Description(CONFIG, heads, "v", {head: (language,)}, {head: trained})


@pytest.fixture(scope="module")
def params():
    def of(description):
        build = lambda: nnx.state(build_model(CONFIG, description.heads, nnx.Rngs(0)))  # noqa: E731
        return nnx.to_pure_dict(jax.jit(build)())

    return of


@pytest.fixture
def begun_as(params, tmp_path):
    """begun_as(source, description, include) -> the description of a run that starts there."""

    def begin(source, description, include="encoder/.*"):
        folder = str(tmp_path / f"{len([*tmp_path.iterdir()])}")
        saved = jax.tree.map(np.asarray, params(source))
        save_checkpoint(folder, saved, {"model.json": source.to_json()})
        return init_from(params(description), InitFrom(folder, include), description)[2]

    return begin


def test_a_new_head_on_an_encoder_that_labels_trained_says_so(begun_as):
    first, second = described("tokens", "deu"), described("tokens", "eng")
    begun = begun_as(first, second)
    assert begun.heads_from == {}
    assert begun.encoder_from == {"trained": "panx_deu/train", "languages": ["deu"]}
    assert head_languages("tokens", begun) == {"deu", "eng"}
    # Pretraining between the two changes nothing of it.
    between = begun_as(first, described("mlm", "fin"))
    assert head_languages("tokens", begun_as(between, second)) == {"deu", "eng"}


def test_a_head_that_is_taken_over_has_its_own_history(begun_as):
    first, few = described("tokens", "eng"), described("tokens", "deu", shots=10)
    begun = begun_as(first, few, ".*")
    third = begun_as(begun, described("tokens", "fra"), ".*")
    assert third.heads_from["tokens"] == {
        "trained": "panx_eng/train>panx_deu/train[10]",
        "languages": ["deu", "eng"],
    }
    # A head of another name begins anew, on the same encoder.
    other = described("sequence", "fra")
    assert begun_as(begun, other).encoder_from == third.heads_from["tokens"]


def test_text_alone_leaves_no_trace(begun_as):
    begun = begun_as(described("mlm", "deu"), described("tokens", "eng"))
    assert begun.encoder_from == {} and head_languages("tokens", begun) == {"eng"}
