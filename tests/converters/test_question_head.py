"""Starts and ends that were trained here are what Transformers answers questions with."""

import numpy as np
import pytest
from conversion import run

from xl_flax.checkpoints.load import load_model, read_description
from xl_flax.converters.verify import make_outputs
from xl_flax.data.stream import Rows
from xl_flax.models.heads import full_settings
from xl_flax.objectives.questions import QuestionAnswering

# What tells the families apart, and what stands before the scores.
FAMILIES = {
    "XLMRoberta": ({"token_types": 1, "position_offset": 2, "norm_eps": 1e-5}, None),
    "ModernBert": (
        {
            "positions": "rotary", "pre_norm": True, "first_attention_norm": False,
            "final_norm": True, "gated_mlp": True, "bias": False, "norm_bias": False,
            "norm_eps": 1e-5,
        },
        "gelu_norm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_answers_as_the_trained_head(native, family, tmp_path):
    import torch
    import transformers

    fields, dense = FAMILIES[family]
    heads = QuestionAnswering(Rows("m", 16), 4, dense=dense).heads(None)
    ours = native(heads, **fields)
    theirs = run(ours, tmp_path / "theirs")
    auto = transformers.AutoModelForQuestionAnswering
    model, told = auto.from_pretrained(theirs, output_loading_info=True)
    assert type(model).__name__ == f"{family}ForQuestionAnswering" and not told["missing_keys"]
    assert model.config.id2label == {0: "start", 1: "end"}
    tokens, real = np.arange(5, 21)[None], np.ones((1, 16), bool)
    with torch.no_grad():
        theirs_say = model.eval()(torch.tensor(tokens))
    ours_say = make_outputs(*load_model(ours)[:2], {"question"})(tokens, real)
    for name in ("start_logits", "end_logits"):
        np.testing.assert_allclose(ours_say[name], theirs_say[name], atol=1e-5)
    back = run(theirs, tmp_path / "back")
    heads = [read_description(folder).heads["question"] for folder in (back, ours)]
    assert full_settings("question", heads[0]) == full_settings("question", heads[1])
