"""Sentences with a topic: what kind of thing the first verb is done to.

The topic is a class of nouns, in every language, whatever the words are: who knows the words of a
sentence's object knows it. Other nouns of the sentence are of any class. A third of the sentences
is about animals, a tenth about things, the rest about clothes, food and plants alike.
"""

from xl_flax.data.synthetic.generator import Sentence, corpus_sentence, parallel_sentence
from xl_flax.data.synthetic.language import Language
from xl_flax.data.synthetic.meaning import Meaning

# People are done to in half of all sentences; tools and documents are rare.
OF_CLASS = {
    "animal": "animals",
    "food": "food",
    "garment": "clothes",
    "plant": "plants",
    "tool": "things",
    "document": "things",
}
TOPICS = tuple(dict.fromkeys(OF_CLASS.values()))


def topic(meaning: Meaning) -> str | None:
    """The topic of a meaning; None if its first verb has no object, or a person."""
    for node in meaning:
        if node.relation == "obj" and node.head == 0:
            return OF_CLASS.get(node.concept.split("/")[1])
    return None


def topic_sentence(language: Language, split: str, index: int) -> tuple[Sentence, str]:
    """Sentence ``index`` of a split and its topic.

    Sentences of "test" mean the same in every language, no two languages train on the same meaning,
    and no meaning of one split is in another.
    """
    make = parallel_sentence if split == "test" else corpus_sentence
    sentence = make(language, split, index, corpus="topics", accept=_has_topic)
    return sentence, topic(sentence.meaning)


def _has_topic(meaning: Meaning) -> bool:
    return topic(meaning) is not None
