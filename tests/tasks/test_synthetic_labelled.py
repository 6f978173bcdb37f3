"""Labelled text in the synthetic languages: gold labels, the same in every language, no leaks."""

import itertools

import pytest
import seqio

from tasks import synthetic_labelled
from xl_flax.data.seqio_tasks import examples, task_features
from xl_flax.data.synthetic.choices import choice_question
from xl_flax.data.synthetic.generator import corpus_sentence
from xl_flax.data.synthetic.inference import LABELS
from xl_flax.data.synthetic.language import FAMILY
from xl_flax.data.synthetic.topics import TOPICS, topic_sentence

SPLITS = ("train", "validation", "test")


def first(task, split, count=4):
    """Some examples of a task, and their labels by name."""
    task = seqio.TaskRegistry.get(task)
    (batch, languages) = next(examples(task, split))
    names = task_features(task)["label"].labels
    return batch[:count], languages[0], names


def test_inference_has_two_texts_and_three_labels(vocabulary):
    batch, languages, names = first("synthetic_inference_beta", "test", 100)
    assert languages == ("beta", "beta") and len(batch[0].texts) == 2 and names == LABELS
    assert {int(e.features["label"]) for e in batch} == {0, 1, 2}


def test_parts_of_speech_are_gold(vocabulary):
    batch, _, names = first("synthetic_pos_alpha", "train")
    sentence = corpus_sentence(FAMILY["alpha"], "train", 3, corpus="pos")
    (labels,) = batch[3].features["label"]
    assert [names[i] for i in labels[labels >= 0]] == list(sentence.upos)


def test_every_part_of_speech_is_known():
    for name, split in itertools.product(synthetic_labelled.CORE, ("train", "test")):
        for index in range(200):
            tags = synthetic_labelled.tagged(FAMILY[name], split, index)["text"].split("\n")
            assert {tag.split("\t")[1] for tag in tags} <= set(synthetic_labelled.UPOS)


def test_entities_are_gold_in_iob2(vocabulary):
    batch, _, names = first("synthetic_entities_gamma", "validation", 60)
    longest = 0
    for index, example in enumerate(batch):
        sentence = corpus_sentence(FAMILY["gamma"], "validation", index, corpus="entities")
        (labels,) = example.features["label"]
        tags = [names[i] for i in labels[labels >= 0]]
        assert len(tags) == len(sentence.words)
        found = []
        for place, tag in enumerate(tags):
            if tag.startswith("B-"):
                found.append([place, place + 1, tag[2:]])
            elif tag != "O":
                assert found[-1][1] == place and tag == f"I-{found[-1][2]}"
                found[-1][1] += 1
        assert [tuple(span) for span in found] == list(sentence.entities)
        longest = max([longest, *(end - start for start, end, _ in found)])
    assert longest > 1


def test_a_topic_is_the_class_of_the_object():
    classes = {
        **{"animals": ["animal"], "clothes": ["garment"], "food": ["food"], "plants": ["plant"]},
        "things": ["tool", "document"],
    }
    assert set(classes) == set(TOPICS)
    for split in ("train", "test"):
        meanings = {}
        for name in ("alpha", "beta"):
            pairs = [topic_sentence(FAMILY[name], split, i) for i in range(40)]
            meanings[name] = [sentence.meaning for sentence, _ in pairs]
            assert {label for _, label in pairs} == set(TOPICS)
            for sentence, label in pairs:
                # The tree of the words, not that of the meaning, says what the object is.
                root = sentence.heads.index(0) + 1
                words = zip(sentence.relations, sentence.heads, sentence.nodes, strict=True)
                ((node, *_),) = [n for r, head, n in words if (r, head) == ("obj", root)]
                assert sentence.meaning[node].concept.split("/")[1] in classes[label]
        same = [a == b for a, b in zip(*meanings.values(), strict=True)]
        assert set(same) == {split == "test"}


def test_one_of_two_choices_follows(vocabulary):
    batch, languages, names = first("synthetic_choices_alpha", "test", 20)
    assert languages == ("alpha",) * 3 and names == ("choice1", "choice2")
    assert {int(e.features["label"]) for e in batch} == {0, 1}
    for index in range(20):
        asked, other = (choice_question(FAMILY[n], "test", index) for n in ("alpha", "inverted"))
        assert asked.label == other.label == batch[index].features["label"]
        assert [c.meaning for c in asked.choices] == [c.meaning for c in other.choices]
        # Said without "not", a sentence follows if it is one of the two deeds; with it, if not.
        deeds = who_did_what(asked.premise.meaning)
        for place, choice in enumerate(asked.choices):
            ((subject, verb, whom),) = who_did_what(choice.meaning)
            is_negated = any(node.concept == "not" for node in choice.meaning)
            is_known = any({subject, whom} == {a, b} and v == verb for a, v, b in deeds)
            follows = is_known and ((subject, verb, whom) in deeds) != is_negated
            assert follows == (place == asked.label)


def who_did_what(meaning):
    """(subject, verb, object) of each verb, as concepts."""
    deeds = []
    for place, node in enumerate(meaning):
        if node.upos == "VERB":
            parts = {n.relation: n.concept for n in meaning if n.head == place}
            deeds.append((parts["nsubj"], node.concept, parts["obj"]))
    return deeds


@pytest.mark.parametrize("kind", ["topics", "entities", "choices"])
def test_what_is_tested_is_not_trained_on(kind):
    make = {
        "topics": lambda *a: [topic_sentence(*a)[0]],
        "entities": lambda *a: [synthetic_labelled.sentence(*a, "entities")],
        "choices": lambda *a: [choice_question(*a).premise, *choice_question(*a).choices],
    }[kind]

    def said(names, split, count):
        found = set()
        for name, index in itertools.product(names, range(count)):
            found |= {sentence.meaning for sentence in make(FAMILY[name], split, index)}
        return found

    count = 15 if kind == "choices" else 60
    meanings = {split: said(("alpha", "gamma"), split, count) for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert meanings[one].isdisjoint(meanings[other])


def test_all_languages_of_a_mixture_have_the_same_labels():
    for kind in (*synthetic_labelled.TEXT_KINDS, *synthetic_labelled.WORD_KINDS):
        tasks = seqio.MixtureRegistry.get(f"synthetic_{kind}").tasks
        assert len(tasks) == len(synthetic_labelled.CORE)
        assert len({task.output_features["label"].labels for task in tasks}) == 1
