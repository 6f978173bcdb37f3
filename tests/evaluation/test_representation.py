import types

import numpy as np
import pytest
from fake_context import FakeContext
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from xl_flax.errors import UserError
from xl_flax.evaluation import representation, search
from xl_flax.evaluation.representation import RepresentationSimilarity, linear_cka
from xl_flax.evaluation.results import MACRO
from xl_flax.evaluation.sentences import Space
from xl_flax.models.config import EncoderConfig


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cka_of(x, y):
    """It, and the same with the rows of y in another order."""
    return tuple(linear_cka([x, y], [(0, 1)])[0].tolist())


def by_kernels(x, y):
    """As eq. 3 of Kornblith et al.: HSIC of the two kernels, centred by H = 1 - 1/n."""
    n = len(x)
    h = np.eye(n) - 1 / n
    hsic = lambda a, b: np.trace(h @ (a @ a.T) @ h @ (b @ b.T))  # noqa: E731
    x, y = x.astype(np.float64), y.astype(np.float64)
    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(3, 40), d=st.integers(1, 12), e=st.integers(1, 12), shift=st.floats(-9, 9))
def test_cka_is_that_of_the_definition(n, d, e, shift):
    x, y = normal(n, n, d) + shift, normal(d, n, e) - shift
    assert cka_of(x, y)[0] == pytest.approx(by_kernels(x, y), rel=1e-4)
    sparse = cka_of(csr_array(x), csr_array(y))
    assert sparse == pytest.approx(cka_of(x, y), rel=1e-2, abs=1e-3)  # of float32


def test_sparse_vectors_are_taken_a_few_rows_at_a_time(monkeypatch):
    x, y = (normal(i, 50, 30) * (normal(i + 9, 50, 30) > 1) for i in range(2))
    whole = cka_of(csr_array(x), csr_array(y))
    monkeypatch.setattr("xl_flax.evaluation.representation.SIMILARITIES", 350)
    assert search.SIMILARITIES != 350
    assert cka_of(csr_array(x), csr_array(y)) == pytest.approx(whole, rel=1e-5)
    assert whole[0] == pytest.approx(by_kernels(x, y), rel=1e-4)


@pytest.mark.parametrize("form", ["features", "kernels"])
def test_many_languages_are_compared_at_once(monkeypatch, form):
    other = {"features": "kernels", "kernels": "features"}[form]
    monkeypatch.setattr(representation, "SUMMED", 500)  # ten rows
    monkeypatch.setattr(representation, f"_inner_products_of_{other}", None)
    n, more = (50, 0) if form == "features" else (30, 40)
    every = [normal(i, n, 4 + i + more) for i in range(4)]
    every[3] = np.concatenate([every[0], every[2]], axis=1)
    pairs = [(0, 1), (2, 0), (3, 1), (2, 2)]
    order = np.random.default_rng(0).permutation(n)
    found = linear_cka(every, pairs)
    assert found[3, 0] == pytest.approx(1)
    for (a, b), (cka, shuffled) in zip(pairs, found, strict=True):
        assert cka == pytest.approx(by_kernels(every[a], every[b]), rel=1e-4)
        assert shuffled == pytest.approx(by_kernels(every[a], every[b][order]), rel=1e-4)


def test_turned_and_stretched_vectors_have_one_shape_and_others_have_not():
    x = normal(0, 400, 8)
    turned, _ = np.linalg.qr(normal(1, 8, 8))
    cka, shuffled = cka_of(x, 3 * x @ turned + 5)
    assert cka == pytest.approx(1) and shuffled < 0.05
    assert cka_of(x, normal(2, 400, 8))[0] < 0.05
    # Few sentences for many dimensions look alike whatever they are: what "shuffled" is for.
    few, shuffled = cka_of(normal(3, 20, 200), normal(4, 20, 200))
    assert few > 0.8 and shuffled == pytest.approx(few, abs=0.05)


def test_where_all_are_equal_nothing_is_alike():
    assert cka_of(np.ones((9, 3), np.float32), normal(0, 9, 3)) == (0, 0)
    other = csr_array(normal(0, 9, 3))
    for same in (csr_array((9, 3), dtype=np.float32), csr_array(np.full((9, 3), 3**-0.5))):
        assert cka_of(same, other) == (0, 0)
    # Nearly equal is not equal: float32 around 100 knows differences of 1e-3.
    x = normal(0, 30, 4)
    assert cka_of(1e-3 * x + 100, x)[0] == pytest.approx(1, abs=0.01)
    for factor in (1e-30, 3e7, 1e30):  # float32 does not have their fourth powers
        assert cka_of(factor * x, x)[0] == pytest.approx(1)


DESCRIPTION = types.SimpleNamespace(
    encoder=EncoderConfig(
        vocab_size=50, num_layers=2, width=16, num_heads=2, mlp_width=32, max_positions=64
    ),
    heads={},
)


def sentences(n, seed=0):
    sizes = np.random.default_rng(seed).integers(2, 9, n)
    return [
        np.random.default_rng([seed, i]).integers(5, 1000, size) for i, size in enumerate(sizes)
    ]


def test_each_pair_each_language_and_all():
    context = FakeContext({name: sentences(60, i) for i, name in enumerate(("deu", "eng", "fra"))})
    own = {"deu": normal(0, 60, 4), "eng": normal(1, 60, 4), "fra": normal(0, 60, 4) * 2}
    evaluation, space = RepresentationSimilarity("m"), Space(64, 1, "mean")
    (spec,) = evaluation.datasets
    results = evaluation.score([(spec, space, lambda a, b: (own[a], own[b]))], context)
    cka = {r.languages: r for r in results if r.metric == "cka"}
    pairs = {("deu", "eng"), ("deu", "fra"), ("eng", "fra")}
    assert {*cka} == pairs | {(x, MACRO) for x in own} | {(MACRO,)}
    assert cka["deu", "fra"].value == pytest.approx(1) and cka["deu", "eng"].value < 0.4
    mean = lambda *of: np.mean([cka[pair].value for pair in of])  # noqa: E731
    assert cka[(MACRO,)].value == pytest.approx(mean(*pairs))
    assert cka["eng", MACRO].value == pytest.approx(mean(("deu", "eng"), ("eng", "fra")))
    assert {r.n for r in results if MACRO not in r.languages} == {60}
    (sign,) = {r.signature for r in results}
    assert sign.startswith("representation|data:m/test|languages:3|n:60|layer:1|pooling:mean|")
    assert evaluation.signatures(DESCRIPTION, context)[1] == sign
    table = evaluation.table(results)
    assert sign in table and "CKA · 100, mean over all pairs, by layer" in table
    (line,) = [line for line in table.splitlines() if line.startswith("eng ")]
    assert line.split()[1] == f"{100 * cka['eng', MACRO].value:.1f}"


def test_controls_need_no_model():
    eng = sentences(80)
    context = FakeContext({"deu": [s + 1000 for s in eng], "eng": eng, "fra": [*eng]})
    evaluation = RepresentationSimilarity("m")
    by_name = {b.name: b for b in evaluation.baselines(DESCRIPTION, context)}
    assert list(by_name) == ["tf-idf", "length"]
    for name in by_name:
        found = {r.languages: r for r in by_name[name].measure() if r.metric == "cka"}
        # deu shares no piece with eng, but the same sentences have pieces in common in both.
        assert [found[pair].value for pair in (("deu", "eng"), ("eng", "fra"))] == pytest.approx(
            [1, 1], abs=0.05
        )
        assert {r.model for r in found.values()} == {name}


def test_signatures_differ_where_any_setting_does_and_means_are_refused():
    context = FakeContext({"deu": sentences(9), "eng": sentences(9, 1)})
    settings = [{}, {"pivot": "eng"}, {"layers": [1]}, {"pooling": "cls"}, {"length": 32}]
    made = [
        RepresentationSimilarity(**{"mixture": "m", "layers": [2]} | changed).signatures(
            DESCRIPTION, context
        )
        for changed in settings
    ]
    assert len({sign for (sign,) in made}) == len(settings)
    with pytest.raises(UserError, match="RepresentationSimilarity.center = True: means do not"):
        RepresentationSimilarity("m", center=True)
    with pytest.raises(UserError, match="pivot = 'spa' is no language of m"):
        RepresentationSimilarity("m", pivot="spa").signatures(DESCRIPTION, context)
