"""The synthetic family as seqio tasks."""

import pytest
import seqio

from tasks import synthetic
from xl_flax.data.synthetic.generator import corpus_sentence, parallel_sentence
from xl_flax.data.synthetic.language import FAMILY, Language

ALPHA = FAMILY["alpha"]


def texts(source: seqio.DataSource, split: str, count: int) -> list[str]:
    dataset = source.get_dataset(split=split, shuffle=False).take(count)
    return [example["text"].decode() for example in dataset.as_numpy_iterator()]


@pytest.mark.parametrize("name", FAMILY)
def test_every_language_is_a_task(name):
    task = seqio.TaskRegistry.get(f"synthetic_{name}")
    assert set(task.splits) == {"train", "validation", "test"}
    assert {s: task.source.num_input_examples(s) for s in task.splits} == synthetic.SIZES
    language = FAMILY[name]
    assert texts(task.source, "train", 5) == [
        corpus_sentence(language, "train", i).text for i in range(5)
    ]
    assert texts(task.source, "test", 5) == [
        parallel_sentence(language, "test", i).text for i in range(5)
    ]


def test_splits_hold_as_many_sentences_as_they_say():
    source = synthetic.source(ALPHA, {"train": 30, "validation": 7, "test": 5})
    for split in source.splits:
        assert len(texts(source, split, 100)) == source.num_input_examples(split)


def test_no_text_is_in_two_splits():
    sizes = dict.fromkeys(synthetic.SIZES, 300)
    source = synthetic.source(FAMILY["zeta"], sizes)  # endings that mean several things
    found = [set(texts(source, split, 300)) for split in sizes]
    assert len(set.union(*found)) == sum(map(len, found))


def test_mixtures_take_all_languages_alike():
    for mixture, names in {"synthetic": FAMILY, "synthetic_core": synthetic.CORE}.items():
        mixture = seqio.MixtureRegistry.get(mixture)
        assert {t.name for t in mixture.tasks} == {f"synthetic_{name}" for name in names}
        assert len({mixture.get_rate(task) for task in mixture.tasks}) == 1


def test_a_language_of_your_own():
    source = synthetic.source(Language("mine", word_order="VSO"), {"train": 3})
    assert texts(source, "train", 3) == [
        corpus_sentence(Language("mine", word_order="VSO"), "train", i).text for i in range(3)
    ]
