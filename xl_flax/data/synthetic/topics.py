"""Sentences with a topic: what the first verb is done to.

The topic is a class of nouns, in every language, whatever the words are: who knows the words of a
sentence's object knows it. Other nouns of the sentence are of any class.
"""

import functools

from xl_flax.data.synthetic.generator import Sentence, corpus_sentence, parallel_sentence
from xl_flax.data.synthetic.language import Language
from xl_flax.data.synthetic.meaning import CLASS_OF_NAME, Meaning
from xl_flax.data.synthetic.splits import key

# Tools and documents are rare.
OF_CLASS = {
    "person": "people",
    "animal": "animals",
    "food": "food",
    "garment": "clothes",
    "plant": "plants",
    "tool": "things",
    "document": "things",
}
TOPICS = tuple(dict.fromkeys(OF_CLASS.values()))


def topic(meaning: Meaning) -> str | None:
    """The topic of a meaning; None if its first verb has no object."""
    for node in meaning:
        if node.relation == "obj" and node.head == 0:
            kind, name, *_ = node.concept.split("/")
            return OF_CLASS[CLASS_OF_NAME[name] if kind == "name" else name]
    return None


def topic_sentence(language: Language, split: str, index: int) -> tuple[Sentence, str]:
    """Sentence ``index`` of a split and its topic, each topic as often as another.

    The topic follows from split and index. Sentences of "test" mean the same in every language, no
    two languages train on the same meaning, and no meaning of one split is in another.
    """
    wanted = TOPICS[key("topic", split, index) % len(TOPICS)]
    make = parallel_sentence if split == "test" else corpus_sentence
    return make(language, split, index, corpus="topics", accept=_tests[wanted]), wanted


def _has_topic(meaning: Meaning, wanted: str) -> bool:
    return topic(meaning) == wanted


# One function for each: drawn meanings are remembered by it.
_tests = {wanted: functools.partial(_has_topic, wanted=wanted) for wanted in TOPICS}
