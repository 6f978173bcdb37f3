"""The generator: determinism, translations, annotation, and the knobs of a language."""

import collections
import dataclasses
import itertools
import random
import subprocess
import sys

import pytest

from xl_flax.data.synthetic import meaning
from xl_flax.data.synthetic.generator import align, corpus_sentence, parallel_sentence
from xl_flax.data.synthetic.inference import inference_pair
from xl_flax.data.synthetic.language import AFFIXES, FAMILY, Language, ending, lexicon
from xl_flax.data.synthetic.passages import passage
from xl_flax.data.synthetic.splits import EIGHTHS
from xl_flax.errors import UserError

ALPHA = FAMILY["alpha"]


def parallel(name: str, count: int = 200) -> list:
    return [parallel_sentence(FAMILY[name], "test", i) for i in range(count)]


def test_a_sentence_follows_from_its_index_alone_also_in_another_process():
    program = (
        "import sys\n"
        "from xl_flax.data.synthetic.generator import corpus_sentence\n"
        "from xl_flax.data.synthetic.language import FAMILY\n"
        "sys.stdout.reconfigure(encoding='utf-8')\n"
        "print([corpus_sentence(FAMILY['beta'], 'train', i).text for i in (12, 3, 7)])\n"
        "assert not {'jax', 'tensorflow', 'seqio'} & set(sys.modules)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    ).stdout
    here = [corpus_sentence(FAMILY["beta"], "train", i).text for i in range(13)]
    assert out.strip() == str([here[12], here[3], here[7]])


def contents(sentences) -> set:
    """What is said, whatever the language: the trees of concepts."""
    return {sentence.meaning for sentence in sentences}


def test_no_two_languages_say_the_same_and_no_split_says_what_another_does():
    train = [
        contents(corpus_sentence(FAMILY[name], "train", i) for i in range(500)) for name in FAMILY
    ]
    train.append(contents(parallel_sentence(ALPHA, "train", i) for i in range(500)))
    assert len(set.union(*train)) == sum(map(len, train))
    held_out = {
        split: contents(parallel_sentence(ALPHA, split, i) for i in range(500))
        | contents(corpus_sentence(ALPHA, split, i, corpus="pos") for i in range(500))
        for split in ("validation", "test")
    }
    assert not held_out["validation"] & held_out["test"]
    assert set.union(*held_out.values()).isdisjoint(set.union(*train))
    # Without a part for each it would be otherwise: meanings do recur.
    free = [
        {meaning.draw_meaning(random.Random(f"{name}/{i}")) for i in range(500)} for name in "ab"
    ]
    assert len(free[0] & free[1]) > 1


def test_a_language_of_your_own_does_not_say_what_the_family_says():
    mine = contents(corpus_sentence(Language("mine"), "train", i) for i in range(500))
    assert mine.isdisjoint(contents(corpus_sentence(ALPHA, "train", i) for i in range(500)))


def test_splits_share_no_labelled_meaning():
    said = {split: set() for split in EIGHTHS}
    for split, i in itertools.product(said, range(300)):
        pair = inference_pair(ALPHA, split, i)
        said[split] |= contents([pair.premise, pair.hypothesis])
        passages = passage(ALPHA, split, i).sentences if i < 30 else ()
        said[split].add(tuple(sorted(s.meaning for s in passages)))
    said = [content - {()} for content in said.values()]
    assert len(set.union(*said)) == sum(map(len, said)) > 1500


def test_words_and_lengths_of_a_part_are_those_of_the_whole():
    def frequencies(meanings) -> tuple[dict[str, float], float]:
        counts = collections.Counter(node.concept for m in meanings for node in m)
        total = counts.total()
        return {c: n / total for c, n in counts.items()}, total / len(meanings)

    drawn = [meaning.draw_meaning(random.Random(i)) for i in range(2000)]
    part = [corpus_sentence(ALPHA, "train", i).meaning for i in range(2000)]
    (free, length), (own, own_length) = frequencies(drawn), frequencies(part)
    assert sum(abs(free[c] - own.get(c, 0)) for c in free) / 2 < 0.08  # 0.05 between two free draws
    assert own_length == pytest.approx(length, rel=0.02)


@pytest.mark.parametrize("name", FAMILY)
def test_annotation_is_consistent(name):
    for i in range(300):
        s = corpus_sentence(FAMILY[name], "train", i)
        assert tuple(s.text[start:end] for start, end in s.offsets) == s.words
        assert s.text == FAMILY[name].separator.join(s.words)
        fields = (s.offsets, s.upos, s.heads, s.relations, s.nodes)
        assert all(len(field) == len(s.words) for field in fields)
        assert s.heads.count(0) == 1 and s.relations[s.heads.index(0)] == "root"
        for word in range(len(s.words)):  # every word reaches the root: a tree
            seen = set()
            while s.heads[word]:
                assert word not in seen
                seen.add(word)
                word = s.heads[word] - 1
        for start, end, kind in s.entities:
            assert kind in meaning.NAMES and set(s.upos[start:end]) == {"PROPN"}
        assert sum(end - start for start, end, _ in s.entities) == s.upos.count("PROPN")


@pytest.mark.parametrize("name", [n for n in FAMILY if n != "alpha"])
def test_translations_align_word_for_word_and_keep_the_tree(name):
    for a, b in zip(parallel("alpha"), parallel(name), strict=True):
        assert a.meaning == b.meaning
        links = align(a, b)
        assert {i for i, _ in links} == set(range(len(a.words)))
        assert {j for _, j in links} == set(range(len(b.words)))
        main = {i: j for i, j in links if a.nodes[i][0] == b.nodes[j][0]}
        for i, j in main.items():
            assert a.upos[i] == b.upos[j]
            assert lexicon(ALPHA)[_concept(a.words[i], ALPHA)] == a.words[i]
            if a.heads[i]:
                assert main.get(a.heads[i] - 1, b.heads[j] - 1) == b.heads[j] - 1
        if FAMILY[name].morphology == "isolating":
            assert len(links) == len(a.words) == len(b.words)


def _concept(word, language):
    return next(c for c, w in lexicon(language).items() if w == word)


def test_align_refuses_sentences_that_are_no_translations():
    a, b = parallel("alpha", 2)
    with pytest.raises(ValueError, match="differ in meaning"):
        align(a, b)


def test_beta_is_alpha_in_other_words_with_no_letter_in_common():
    translation = {}
    for a, b in zip(parallel("alpha"), parallel("beta"), strict=True):
        assert a.nodes == b.nodes and a.heads == b.heads
        for x, y in zip(a.words, b.words, strict=True):
            assert translation.setdefault(x, y) == y
    letters = [set("".join(lexicon(FAMILY[n]).values())) for n in ("alpha", "beta")]
    assert not letters[0] & letters[1]


def test_words_of_a_language_are_distinct_and_only_anchors_are_shared():
    words = {name: lexicon(language) for name, language in FAMILY.items()}
    for name, own in words.items():
        assert len(set(own.values())) == len(meaning.concepts()), name
    for a, b in itertools.combinations(FAMILY, 2):
        shared = set(words[a].values()) & set(words[b].values())
        if {a, b} == {"alpha", "anchored"}:
            assert len(shared) == round(0.3 * len(meaning.concepts()))
            same = {words[a][c] for c in words[a] if words[a][c] == words[b][c]}
            assert same == shared  # an anchor means the same in both
        else:
            assert not shared, (a, b)


def order_of(language: Language, *relations: str) -> set[tuple[str, ...]]:
    """The orders in which words of these relations, all there in the first clause, stand."""
    seen = set()
    for i in range(1500):
        s = parallel_sentence(language, "train", i)
        if all(s.relations.count(r) == 1 for r in relations):
            where = {s.relations.index(r): r for r in relations}
            seen.add(tuple(where[i] for i in sorted(where)))
    return seen


@pytest.mark.parametrize("order", ["SVO", "SOV", "VSO"])
def test_word_order(order):
    relation = {"S": "nsubj", "V": "root", "O": "obj"}
    language = Language("other", word_order=order)
    assert order_of(language, "nsubj", "root", "obj") == {tuple(relation[x] for x in order)}


def adjacent(language: Language, relation: str) -> set[int]:
    """-1 where a word of this relation precedes its head, 1 where it follows."""
    sides = set()
    for i in range(300):
        s = parallel_sentence(language, "train", i)
        sides |= {
            1 if j > s.heads[j] - 1 else -1 for j, r in enumerate(s.relations) if r == relation
        }
    return sides


@pytest.mark.parametrize(
    "relation, knob", [("amod", "adjective_first"), ("case", "adposition_first")]
)
def test_order_in_the_noun_phrase(relation, knob):
    assert adjacent(Language("other", **{knob: True}), relation) == {-1}
    assert adjacent(Language("other", **{knob: False}), relation) == {1}


def test_inversion_reverses_every_sentence():
    twin = dataclasses.replace(FAMILY["inverted"], arrangement="natural")
    for i in range(100):
        natural, inverted = (parallel_sentence(x, "test", i) for x in (twin, FAMILY["inverted"]))
        assert inverted.words == natural.words[::-1]


def test_permutation_is_one_per_length():
    twin = dataclasses.replace(FAMILY["permuted"], arrangement="natural")
    permutations = collections.defaultdict(set)
    for i in range(300):
        natural, permuted = (parallel_sentence(x, "test", i) for x in (twin, FAMILY["permuted"]))
        if "flat" not in natural.relations:
            first = [nodes[0] for nodes in natural.nodes]
            permutations[len(first)].add(tuple(first.index(n[0]) for n in permuted.nodes))
    assert max(map(len, permutations.values())) == 1
    assert any(list(p) != sorted(p) for group in permutations.values() for p in group)


@pytest.mark.parametrize("morphology", ["agglutinative", "fusional"])
def test_morphology_puts_function_words_into_endings(morphology):
    plain = Language("other", word_order="SOV")
    rich = dataclasses.replace(plain, morphology=morphology)
    seen = collections.Counter()
    for i in range(300):
        a, b = parallel_sentence(plain, "test", i), parallel_sentence(rich, "test", i)
        assert {n for nodes in a.nodes for n in nodes} == {n for nodes in b.nodes for n in nodes}
        assert "AUX" not in b.upos
        for word, nodes, relation in zip(b.words, b.nodes, b.relations, strict=True):
            stem = a.words[next(j for j, n in enumerate(a.nodes) if n[0] == nodes[0])]
            assert word.startswith(stem)
            assert (word != stem) == (len(nodes) > 1 or relation == "obj")
            seen[len(nodes)] += 1
    assert seen[2] and seen[3]


def test_agglutinative_endings_differ():
    delta = FAMILY["delta"]
    features = [c for c in meaning.concepts() if c.startswith(AFFIXES)] + ["object"]
    assert len({ending(delta, (f,)) for f in features}) == len(features)
    assert ending(delta, ("number/plural", "object")) == (
        ending(delta, ("number/plural",)) + ending(delta, ("object",))
    )


def test_frequencies_are_zipfian_and_follow_the_exponent():
    def share_of_top(exponent):
        language = Language("other", zipf_exponent=exponent)
        counts = collections.Counter(
            node.concept
            for i in range(3000)
            for node in meaning.draw_meaning(random.Random(i), exponent=language.zipf_exponent)
            if node.upos in ("NOUN", "VERB", "ADJ")
        )
        return sum(c for _, c in counts.most_common(30)) / counts.total()

    flat, natural, steep = map(share_of_top, (0.0, 1.0, 2.0))
    assert flat < natural - 0.05 < steep - 0.1


def test_length_and_domain():
    short, long = (Language("other", modifiers=m) for m in (0.0, 0.8))
    lengths = [
        sum(len(corpus_sentence(x, "train", i).words) for i in range(300)) for x in (short, long)
    ]
    assert lengths[1] > 1.8 * lengths[0]

    def verbs(domain):
        language = Language("other", domain=domain)
        sentences = [corpus_sentence(language, "train", i) for i in range(500)]
        return {w for s in sentences for w, u in zip(s.words, s.upos, strict=True) if u == "VERB"}

    assert len(verbs((0,))) <= 14 < len(verbs((0, 1, 2)))


def test_test_sentences_are_distinct_meanings():
    texts = [s.text for s in parallel("alpha", 500)]
    assert len(set(texts)) >= 498


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"script": "runic"}, "script='runic'; choose from latin"),
        ({"word_order": "OSV"}, "choose from SVO, SOV, VSO"),
        ({"anchors": 1.5, "base": "alpha"}, "anchors must lie between 0 and 1"),
        ({"anchors": 0.5}, "needs a base"),
        ({"domain": (9,)}, "name topics between 0 and 7"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        Language("mine", **settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"base": "omega"}, "unknown base 'omega'; choose from alpha"),
        ({"base": "beta"}, "must be written in its script, 'greek'"),
    ],
)
def test_bases_that_cannot_be_shared_with(settings, message):
    with pytest.raises(UserError, match=message):
        corpus_sentence(Language("mine", anchors=0.5, **settings), "train", 0)
