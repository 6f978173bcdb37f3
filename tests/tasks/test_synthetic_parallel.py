"""Translations between synthetic languages as seqio tasks."""

import itertools

import numpy as np
import pytest
import seqio

import tasks.synthetic_labelled  # noqa: F401
from tasks import synthetic, synthetic_parallel
from xl_flax.data.synthetic.generator import parallel_sentence
from xl_flax.data.synthetic.language import FAMILY, Language

ALPHA, BETA = FAMILY["alpha"], FAMILY["beta"]


def texts(source: seqio.DataSource, split: str) -> list[tuple[str, ...]]:
    dataset = source.get_dataset(split=split, shuffle=False)
    return [tuple(t.decode() for t in e["text"]) for e in dataset.as_numpy_iterator()]


def test_the_test_split_is_the_text_that_retrieval_is_scored_on():
    found = texts(seqio.TaskRegistry.get("synthetic_alpha_beta").source, "test")
    assert len(found) == synthetic.SIZES["test"]
    for side, name in enumerate(("alpha", "beta")):
        source = seqio.TaskRegistry.get(f"synthetic_{name}").source
        mono = [e["text"].decode() for e in source.get_dataset("test").as_numpy_iterator()]
        assert [pair[side] for pair in found] == mono


def test_no_text_to_test_is_trained_on_in_any_task():
    """Of one language, of a pair, and labelled; in words, as the caches hold them."""
    kinds = ("alpha_beta", "alpha", "pos_alpha", "inference_alpha")
    said = {split: set() for split in synthetic.SIZES}
    for kind, split in itertools.product(kinds, said):
        source = seqio.TaskRegistry.get(f"synthetic_{kind}").source
        dataset = source.get_dataset(split=split, shuffle=False).take(400)
        for texts in dataset.map(lambda example: example["text"]).as_numpy_iterator():
            for text in np.ravel(texts):
                words = text.decode()
                if kind == "pos_alpha":
                    words = " ".join(line.split("\t")[0] for line in words.split("\n"))
                said[split].add(words)
    train, validation, test = said.values()
    assert not train & test and not train & validation and not validation & test


def test_sides_are_translations():
    languages = (ALPHA, BETA, FAMILY["gamma"])
    found = texts(synthetic_parallel.source(languages, {"train": 300}), "train")
    for index, group in enumerate(found):
        same = [parallel_sentence(language, "train", index) for language in languages]
        assert group == tuple(sentence.text for sentence in same)


def test_tasks_and_mixtures(vocabulary):
    tasks = seqio.MixtureRegistry.get("synthetic_pairs").tasks
    assert len(tasks) == 10 and "synthetic_alpha_beta" in {task.name for task in tasks}
    multiway = seqio.TaskRegistry.get("synthetic_multiway")
    dataset = multiway.get_dataset(None, "validation", shuffle=False)
    example = next(iter(dataset))
    assert [language.decode() for language in example["language"].numpy()] == list(synthetic.CORE)
    expected = [
        vocabulary.encode(parallel_sentence(FAMILY[name], "validation", 0).text)
        for name in synthetic.CORE
    ]
    assert example["tokens"].to_list() == expected


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_languages_and_sizes_of_your_own(split):
    mine = Language("mine", word_order="VSO")
    source = synthetic_parallel.source((ALPHA, mine), {"train": 30, "validation": 7, "test": 5})
    assert len(texts(source, split)) == source.num_input_examples(split)
