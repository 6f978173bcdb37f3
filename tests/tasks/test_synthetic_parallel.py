"""Translations between synthetic languages as seqio tasks."""

import pytest
import seqio

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


def test_no_text_of_a_later_split_is_trained_on():
    sizes = {"train": 8000, "validation": 300, "test": 500}
    splits = {
        split: list(synthetic_parallel.translations((ALPHA, BETA), split, sizes)) for split in sizes
    }
    assert {split: len(pairs) for split, pairs in splits.items()} == sizes
    for side in range(2):
        train, validation, test = ({pair[side] for pair in splits[s]} for s in sizes)
        assert not train & test and not train & validation and not validation & test
    # Without leaving them out it would be otherwise.
    drawn = {parallel_sentence(ALPHA, "pairs-train", i).text for i in range(8000)}
    assert len(drawn & {alpha for alpha, _ in splits["test"]}) > 5


def test_sides_are_translations():
    languages = (ALPHA, BETA, FAMILY["gamma"])
    sizes = {**synthetic.SIZES, "train": 2000}
    left_out = 0
    for number, group in enumerate(synthetic_parallel.translations(languages, "train", sizes)):
        while parallel_sentence(ALPHA, "pairs-train", number + left_out).text != group[0]:
            left_out += 1
        same = [parallel_sentence(lang, "pairs-train", number + left_out) for lang in languages]
        assert group == tuple(sentence.text for sentence in same)
    assert 0 < left_out < 40  # those that "validation" or "test" has


def test_tasks_and_mixtures(vocabulary):
    tasks = seqio.MixtureRegistry.get("synthetic_pairs").tasks
    assert len(tasks) == 10 and "synthetic_alpha_beta" in {task.name for task in tasks}
    multiway = seqio.TaskRegistry.get("synthetic_multiway")
    dataset = multiway.get_dataset(None, "validation", shuffle=False)
    example = next(iter(dataset))
    assert [language.decode() for language in example["language"].numpy()] == list(synthetic.CORE)
    expected = [
        vocabulary.encode(parallel_sentence(FAMILY[name], "pairs-validation", 0).text)
        for name in synthetic.CORE
    ]
    assert example["tokens"].to_list() == expected


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_languages_and_sizes_of_your_own(split):
    mine = Language("mine", word_order="VSO")
    source = synthetic_parallel.source((ALPHA, mine), {"train": 30, "validation": 7, "test": 5})
    assert len(texts(source, split)) == source.num_input_examples(split)
