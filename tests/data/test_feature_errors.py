"""Features that do not fit what their task declares are refused by name."""

import numpy as np
import pytest

from xl_flax.data.features import Example, FeatureSpec
from xl_flax.errors import UserError

SPECS = {
    "id": FeatureSpec("text", "string"),
    "label": FeatureSpec("example", labels=("no", "yes", "maybe")),
    "span": FeatureSpec("span"),
    "tag": FeatureSpec("token", labels=("A", "B")),
}


def label(value, specs=None, **more):
    texts = (np.array([5, 6, 7]),)
    return {
        "features": specs or {"label": SPECS["label"]},
        "example": (texts, {"label": value} | more),
    }


BAD = {
    "a label too many": (
        label(3),
        r"'xx', split 'test', example 1: feature 'label' has the label 3",
    ),
    "below none": (label(-2), r"has the label -2, but there are 3 \(no, yes, maybe\), from 0"),
    "no integer": (label(0.5), r"feature 'label' holds a number that is no int32: 0.5"),
    "an int64": (label(2**40), "holds a number that is no int32"),
    "the culprit of several": (label([1, 3e10, 2]), "is no int32: 30000000000.0"),
    "not a number": (label(float("nan")), "is no int32: nan"),
    "none at all": (label(None), "feature 'label' is None: it needs numbers of int32"),
    "a word": (label("yes"), "feature 'label' is 'yes': it needs numbers of int32"),
    "no token feature": (
        label(None, {"label": SPECS["tag"]}),
        "feature 'label' is None: a token feature is a tuple with one array per text, here 1",
    ),
    "one array": (
        label(np.array([0, 1, 0]), {"label": SPECS["tag"]}),
        r"is array\(\[0, 1, 0\]\): a token feature is a tuple with one array per text, here 1",
    ),
    "ragged": (label([[0], [1, 0]]), r"is \[\[0\], \[1, 0\]\]: it needs numbers of int32"),
    "several": (label([0, 1]), "feature 'label' has 2 numbers instead of one"),
    "another length": (
        label(([0, 1],), {"label": SPECS["tag"]}),
        r"example 1: feature 'label' has 2 numbers for 3 tokens",
    ),
    "a wrong tag": (
        label(([0, 1, 2],), {"label": SPECS["tag"]}),
        r"has the label 2, but .* \(A, B",
    ),
    "a span that ends late": (
        label((1, 3), {"label": SPECS["span"]}),
        r"span 'label' goes from token 1 to 3 of a text of 3",
    ),
    "half a span": (label((1,), {"label": SPECS["span"]}), "it needs the first and the last token"),
    "none": (
        label(0, {"label": SPECS["label"], "id": SPECS["id"]}),
        "example 1 has no feature 'id'",
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", BAD)
def test_bad_features_name_task_split_and_example(make_cache, case):
    what, message = BAD[case]
    texts, features = what["example"]
    (kind,) = {spec.kind for spec in what["features"].values() if spec.kind != "text"}
    good = {"example": 1, "span": (0, 1), "token": ([0, 1, 0],)}[kind]
    examples = [Example(0, texts, {"label": good, "id": ""}), Example(1, texts, features)]
    with pytest.raises(UserError, match=message):
        make_cache({"xx": examples}, split="test", features=what["features"])


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("example", "float32"), ("token", "float32"), ("text", "string"), ("span", "int32")],
)
def test_only_whole_numbers_are_labels(kind, dtype):
    FeatureSpec(kind, dtype)
    with pytest.raises(UserError, match=r"has labels \(no, yes\): only int32 of kind 'example'"):
        FeatureSpec(kind, dtype, ("no", "yes"))
