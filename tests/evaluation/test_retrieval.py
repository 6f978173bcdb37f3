import dataclasses
import types

import numpy as np
import pytest

from xl_flax.data.build import write_split
from xl_flax.data.features import Example, FeatureSpec
from xl_flax.data.filtering import are_translations
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache
from xl_flax.data.prepare import CachedMixture, Caches, DatasetSpec
from xl_flax.data.vocabulary import SpecialIds
from xl_flax.errors import UserError
from xl_flax.evaluation import context as context_lib
from xl_flax.evaluation.context import Context, check_aligned
from xl_flax.evaluation.results import MACRO, Result
from xl_flax.evaluation.retrieval import SentenceRetrieval
from xl_flax.evaluation.sentences import Space, check_finite, is_about
from xl_flax.models.config import EncoderConfig

SPEC = DatasetSpec("m", "test", Layout(128))
RESULT = Result("retrieval", "m/test", ("a", "b"), "p@1", 0.5, 10, "s")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_nan_embeddings_are_an_error_that_names_the_language():
    x = normal(0, 4, 3)
    x[2, 1] = np.nan
    with pytest.raises(UserError, match="ntrex, layer 2: 1 of 4 embeddings of 'deu' are NaN"):
        check_finite({"eng": normal(1, 4, 3), "deu": x}, "ntrex, layer 2")


@pytest.mark.parametrize(
    "examples, message",
    [
        ({"eng": [1, 2], "deu": [1]}, "eng 2, deu 1.*one mixture per pair"),
        ({"eng": [1, 2], "deu": []}, "no examples in deu"),
        ({"eng": [1]}, "has one language"),
    ],
)
def test_tasks_that_are_not_aligned_are_an_error(examples, message):
    with pytest.raises(UserError, match=message):
        check_aligned("mixture 'm', split 'test'", examples)


HEADS = {"mlm": {}, "translation": {"kind": "sentence", "layer": -1, "pooling": "cls"}}


@pytest.fixture
def description():
    config = EncoderConfig(
        vocab_size=50, num_layers=4, width=16, num_heads=2, mlp_width=32, max_positions=64
    )
    return types.SimpleNamespace(encoder=config, heads=HEADS, step=1)


def test_layers_are_chosen_by_number_or_all(description):
    chosen = lambda layers: SentenceRetrieval("m", layers=layers).encoding(description).layers  # noqa: E731
    assert chosen("all") == (0, 1, 2, 3, 4)
    assert chosen([-1, 0, 2]) == (0, 2, 4)


@pytest.mark.parametrize("layers", [[5], [-6]])
def test_a_layer_that_does_not_exist_is_an_error(description, layers):
    with pytest.raises(UserError, match="from 0 .embeddings. to 4"):
        SentenceRetrieval("m", layers=layers).encoding(description)


def test_a_head_brings_its_layer_and_pooling(description):
    encoding = SentenceRetrieval("m", head="translation", layers=[1]).encoding(description)
    assert encoding == ((4,), "cls", "translation")


@pytest.mark.parametrize("head", ["mlm", "none such"])
def test_a_head_that_embeds_no_sentences_is_an_error(description, head):
    with pytest.raises(UserError, match=f"head = '{head}'.*it has translation"):
        SentenceRetrieval("m", head=head).encoding(description)


def test_an_unknown_pooling_is_an_error(description):
    with pytest.raises(UserError, match="pooling = 'max': must be 'cls', 'mean' or 'mean_all'"):
        SentenceRetrieval("m", pooling="max").encoding(description)


@pytest.mark.parametrize("similarity", ["cosine", [], ["cosine", "l2"]])
def test_similarities_are_a_list_of_known_ones(description, similarity):
    with pytest.raises(UserError, match="must be a list of some of 'cosine', 'csls', 'margin'"):
        SentenceRetrieval("m", similarity=similarity).signatures(description, context())


SPECIAL = SpecialIds(pad=1, unk=3, cls=0, sep=2, mask=49)


def context(n=20, languages=("deu", "eng")):
    """Of `n` sentences of five pieces; one in five is unknown in the last language."""
    sentences = {x: [np.arange(5) + 4 * (x != languages[-1])] * n for x in languages}
    vocabulary = types.SimpleNamespace(size=50, special=SPECIAL)
    made = Context({}, vocabulary, None)
    made.aligned = lambda spec: sentences
    return made


def test_signatures_differ_where_any_setting_does(description):
    settings = [
        {}, {"mixture": "other"}, {"mixture": ["m", "other"]}, {"mixture": ["m", "another"]},
        {"split": "validation"}, {"layers": [2]}, {"pooling": "cls"}, {"head": "translation"},
        {"center": True}, {"length": 32}, {"similarity": ["csls"]}, {"similarity": ["margin"]},
        {"pivot": "eng"}, {"languages": ["deu", "eng"]},
    ]  # fmt: skip
    made = [
        SentenceRetrieval(**{"mixture": "m", "layers": [4]} | changed).signatures(
            description, context()
        )[-1]
        for changed in settings
    ]
    made += SentenceRetrieval("m", layers=[4]).signatures(description, context(n=21))
    made += SentenceRetrieval("m", layers=[4]).signatures(description, context(languages="abc"))
    assert len(set(made)) == len(made)


def test_a_signature_says_how(description):
    evaluation = SentenceRetrieval("m", layers=[2], similarity=["margin"], center=True)
    (found,) = evaluation.signatures(description, context())
    for part in (
        "retrieval|data:m/test|languages:2|n:20|layer:2|pooling:mean|head:none",
        "center:test_mean|direction:query>searched|similarity:ratio_margin|k:4",
        "length:64|version:",
    ):
        assert part in found


def test_some_of_a_mixtures_languages_are_chosen(description):
    three = context(languages=("deu", "eng", "fra"))
    chosen = SentenceRetrieval("m", layers=[4], languages=["fra", "deu"])
    assert list(chosen.texts(SPEC, three)) == ["deu", "fra"]
    (found,) = chosen.signatures(description, three)
    assert "|languages:deu,fra|" in found
    for languages, message in (
        (["deu", "tha"], "languages = .'deu', 'tha'.: m has no tha; it has deu, eng, fra"),
        (["deu"], "two or more are needed; there are deu, eng, fra"),
    ):
        with pytest.raises(UserError, match=message):
            SentenceRetrieval("m", languages=languages).signatures(description, three)


def test_the_text_by_which_layers_are_chosen_is_measured_alike_and_read_in_no_training():
    alike = {"pivot": "eng", "center": True, "pooling": "cls", "similarity": ["csls"]}
    evaluation = SentenceRetrieval("m", choose_on=["o", "p"], languages=["deu", "eng"], **alike)
    assert evaluation.datasets == [SPEC]
    other = [DatasetSpec(name, "validation", SPEC.layout) for name in "op"]
    assert evaluation.every_dataset == [SPEC, *other]
    test, choice = evaluation.parts
    assert test is evaluation
    assert choice == SentenceRetrieval(["o", "p"], split="validation", **alike)
    assert choice.parts == [choice]
    with pytest.raises(UserError, match="choose_on = 'm': m/validation is what is tested; name"):
        SentenceRetrieval(["m", "n"], split="validation", choose_on="m")
    SentenceRetrieval("m", choose_on="m")  # another split


def test_results_of_a_test_are_told_from_those_of_the_choice():
    specs = [DatasetSpec(name, "validation", SPEC.layout) for name in "op"]
    for data, about in (
        ("o/validation", True), ("o+1#0a1b2c/validation", True), ("p/validation", True),
        ("o/test", False), ("m/validation", False), ("m+1#0a1b2c/validation", False),
    ):  # fmt: skip
        result = dataclasses.replace(RESULT, data=data)
        assert is_about(result, specs) == about


def test_results_know_how_much_of_each_language_is_unknown(description):
    made = SentenceRetrieval("m").result_template(
        "spread", [SPEC], Space(64, 2, "mean"), context(languages=("deu", "eng", "tha"))
    )
    rest = {"metric": "p@1", "value": 0.5, "n": 20}
    assert made(languages=("deu", "tha"), **rest).unknown == (0.0, 0.2)
    assert made(languages=("eng",), **rest).unknown == (0.0,)
    assert made(languages=(MACRO,), **rest).unknown == (0.2,)
    assert made(languages=("something else",), **rest).unknown is None


@pytest.fixture
def scored(monkeypatch):
    """scored(vectors, shared, similarity, template): the results of all pairs, and their means."""

    def score(vectors, shared, similarity, template):
        monkeypatch.setattr(SentenceRetrieval, "_shared", lambda *_: shared)
        evaluation, pairs = SentenceRetrieval("m", similarity=(similarity,)), []
        space, both = Space(64, 1, "mean"), lambda a, b: (vectors[a], vectors[b])
        for way, number in evaluation.compare(SPEC, space, both, None):
            assert way == similarity
            pairs.append(template(**number._asdict()))
        return pairs, evaluation.means(pairs, template)

    return score


def make(**row):
    return Result("retrieval", "m/test", signature="s", similarity="cosine", **row)


def make_by(**row):
    return Result("retrieval", "m/test", signature="s", **row)


def test_means_are_over_ordered_pairs_and_by_the_language_on_either_side(scored):
    x = normal(0, 30, 8)
    vectors = {"a": x, "b": x.copy(), "c": normal(1, 30, 8)}
    shared = {pair: np.ones(30, bool) for pair in SentenceRetrieval("m").pairs(SPEC, vectors)}
    pairs, means = scored(vectors, shared, "cosine", make)
    of = {r.languages: r.value for r in pairs if r.metric == "p@1"}
    found = {r.languages: r for r in means}
    assert of["a", "b"] == of["b", "a"] == 1.0
    assert found["a", MACRO].value == pytest.approx((of["a", "b"] + of["a", "c"]) / 2)
    assert found[MACRO, "c"].value == pytest.approx((of["a", "c"] + of["b", "c"]) / 2)
    assert found[(MACRO,)].value == pytest.approx(np.mean(list(of.values())))
    assert found[(MACRO,)].n == 6 and len(found) == 7


def test_queries_that_share_a_string_are_left_out_but_stay_candidates(scored):
    x = normal(0, 12, 8)
    x[3] = x[8]  # query 8 finds 3 as near as 8, also when 3 is no query
    shared = {("a", "b"): np.arange(12) < 5, ("a", "c"): np.arange(12) < 12}
    vectors = {"a": x, "b": x.copy(), "c": x.copy()}
    for similarity in ("cosine", "csls", "margin"):
        pairs, means = scored(vectors, shared, similarity, make_by)
        found = {(r.metric, r.languages): (r.value, r.n) for r in pairs}
        for pair in (("a", "b"), ("b", "a")):
            assert found["p@1", pair] == (pytest.approx(11 / 12), 12)
            assert found["p@1_unshared", pair] == (pytest.approx(6.5 / 7), 7)
        assert found["p@1", ("a", "c")][1] == 12
        assert ("p@1_unshared", ("a", "c")) not in found  # no query is left
    means = {(r.metric, r.languages): r for r in means}
    assert means["p@1_unshared", (MACRO,)].n == 2 and means["p@1", (MACRO,)].n == 4


def test_a_pivot_keeps_the_pairs_it_is_part_of():
    with_b, with_d = (SentenceRetrieval("m", pivot=pivot) for pivot in "bd")
    assert with_b.pairs(SPEC, "abc") == [("a", "b"), ("b", "c")]
    with pytest.raises(
        UserError, match="SentenceRetrieval.pivot = 'd' is no language of m: a, b, c"
    ):
        with_d.pairs(SPEC, "abc")


def test_embeddings_are_remembered_for_the_other_evaluations_of_a_subject(monkeypatch):
    shared, made = Context({}, None, None), []

    def get(subject, size=4, name="m"):
        def encode():
            made.append((subject, name))
            return np.ones(size, np.float32)

        return shared.once_per_subject(subject, name, encode)

    # Checkpoints of one step, of two runs.
    a, b = ("runs/a/checkpoints/5", 17), ("runs/b/checkpoints/5", 17)
    assert get(a) is get(a) and get(a, name="other") is not get(a)
    assert made == [(a, "m"), (a, "other")]
    first = get(a)
    assert get(b) is not first and get(a) is not first  # one subject's at a time
    monkeypatch.setattr(context_lib, "REMEMBERED_BYTES", 20)
    assert get(a, name="large") is not get(a, name="large")


def test_texts_that_are_no_translations_are_refused(tmp_path):
    def manifest(languages, features):
        return types.SimpleNamespace(
            languages=languages,
            num_texts=len(languages),
            features=features,
            translations=are_translations(languages, features),
        )

    for languages, features in (("eng", "eng"), {}), (("eng", "deu"), {"label": None}):
        dataset = CachedMixture(None, {"nli": manifest(languages, features)}, {"nli": tmp_path})
        context = Context(Caches({SPEC: dataset}), None, None)
        with pytest.raises(
            UserError, match=r"mixture 'm', split 'test': .*'nli' are no transl.*eng"
        ):
            context.aligned(SPEC)


def labelled(folder, layout, sizes, split="test"):
    """A context with a labelled task for each language, of sentences of these sizes."""
    vocabulary = types.SimpleNamespace(size=50, special=SPECIAL)
    cache, spec = Cache(str(folder), ["none"]), DatasetSpec("m", split, layout)
    manifests = {}
    for task, own in sizes.items():
        examples = [Example(i, (np.full(size, 4 + i),), {"label": i}) for i, size in enumerate(own)]
        manifests[task] = write_split(
            *(cache, task, split, layout, examples), languages=(task,), vocabulary=vocabulary,
            fingerprint={}, features={"label": FeatureSpec("example")},
        )  # fmt: skip
    folders = {task: cache.folder(task, split, layout) for task in sizes}
    return spec, Context(Caches({spec: CachedMixture(None, manifests, folders)}), None, None)


def test_labelled_sentences_are_aligned_by_number_in_any_order_of_rows(tmp_path):
    sizes = {"deu": [3, 1, 9, 2, 9, 5], "eng": [1, 7, 2, 2, 8, 1]}
    spec, context = labelled(tmp_path, Layout(16), sizes, "train")
    texts = context.aligned(spec)
    for language, own in sizes.items():
        assert [(len(x), x[0]) for x in texts[language]] == [(n, 4 + i) for i, n in enumerate(own)]


@pytest.mark.parametrize(
    "layout, message", [("8", "too long 1"), ("8-truncate", "truncated 1"), ("8-cut", None)]
)
def test_labelled_tasks_that_lost_examples_are_not_aligned(tmp_path, layout, message):
    sizes = {"deu": [9, 1, 2], "eng": [1, 2, 9]}  # as many are left, but others
    spec, context = labelled(tmp_path, Layout.parse(layout), sizes)
    if message is None:
        assert [len(x) for x in context.aligned(spec)["eng"]] == sizes["eng"]
        return
    with pytest.raises(
        UserError, match=rf"task 'deu': .* 3 examples .*\({message}\): raise .* length"
    ):
        context.aligned(spec)
