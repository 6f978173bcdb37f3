"""Passages with questions whose answers are spans of the passage.

A passage tells a chain of deeds, "A beats B", "B beats C", "C beats D", out of order, and who
rests where. For "who beats B?" and "whom does B beat?" the words lead to the same two sentences,
and only the roles tell A from C. Places are asked for among people who do the same elsewhere.
"""

import dataclasses
import itertools
import random

from xl_flax.data.synthetic import meaning
from xl_flax.data.synthetic.generator import Sentence, render
from xl_flax.data.synthetic.language import Language
from xl_flax.data.synthetic.people import Person, deed, draw_people
from xl_flax.data.synthetic.splits import belongs, key

NUM_PEOPLE = 4


@dataclasses.dataclass(frozen=True)
class Question:
    """A question on a passage: ``passage.text[start:end] == answer``."""

    sentence: Sentence
    answer: str
    start: int
    end: int
    evidence: int  # index of the sentence of the passage that answers it


@dataclasses.dataclass(frozen=True)
class Passage:
    """Sentences, joined by spaces, and questions on them."""

    text: str
    sentences: tuple[Sentence, ...]
    questions: tuple[Question, ...]


def passage(
    language: Language, split: str, index: int, question_language: Language | None = None
) -> Passage:
    """Passage ``index`` of a split, the same meanings in every language.

    No split has another's passages; a sentence of one may stand in a passage of another.

    Args:
      language: of the passage and the answers.
      split: "train", "validation" or "test".
      index: of the passage.
      question_language: of the questions; the passage's by default.
    """
    rng = random.Random(key("passage", split, index))
    while True:
        people = draw_people(rng, NUM_PEOPLE)
        facts = _chain(rng, people) + _stays(rng, people)
        if belongs([tree.meaning() for tree, _ in facts], split):
            break
    rng.shuffle(facts)

    sentences, starts, end = [], [], -1
    for tree, _ in facts:
        sentences.append(render(tree.meaning(), language))
        starts.append(end + 1)
        end = starts[-1] + len(sentences[-1].text)
    text = " ".join(s.text for s in sentences)
    questions = []
    for i, (_, asked) in enumerate(facts):
        for tree, node in asked:
            start, end = _span(sentences[i], node)
            start, end = starts[i] + start, starts[i] + end
            questions.append(
                Question(
                    sentence=render(tree.meaning(), question_language or language),
                    answer=text[start:end],
                    start=start,
                    end=end,
                    evidence=i,
                )
            )
    return Passage(text, tuple(sentences), tuple(questions))


# A fact is a tree and the questions it answers: (question's tree, node of the fact that answers).


def _chain(rng, people: list[Person]) -> list:
    verb = rng.choice(meaning.VERBS["social"])
    facts = []
    for i, (subject, other) in enumerate(itertools.pairwise(people)):
        tree = meaning.Tree()
        root = deed(tree, subject, verb, other)
        who, whom = meaning.Tree(), meaning.Tree()
        deed(who, None, verb, other)
        deed(whom, subject, verb, None)
        # both questions name somebody who stands in two sentences, in two roles
        asked = [(who, _child(tree, root, "nsubj"))] if i < len(people) - 2 else []
        asked += [(whom, _child(tree, root, "obj"))] if i > 0 else []
        facts.append((tree, asked))
    return facts


def _stays(rng, people: list[Person]) -> list:
    world = meaning.build_world()
    verb = rng.choice(meaning.VERBS["intransitive"])
    pool = [place for name in meaning.PLACES for place in meaning.NOUNS[name]]
    facts = []
    for person, place in zip(rng.sample(people, 2), rng.sample(pool, 2), strict=True):
        tree, where = meaning.Tree(), meaning.Tree()
        for t in (tree, where):
            t.add(verb, "VERB", -1, "root")
            person.mention(t, 0, "nsubj")
        node = tree.phrase(place, 0, "obl")
        tree.add(world.adpositions[place].draw(rng), "ADP", node, "case")
        where.add("where", "ADV", 0, "obl")
        facts.append((tree, [(where, node)]))
    return facts


def _child(tree: meaning.Tree, head: int, relation: str) -> int:
    return next(i for i, n in enumerate(tree.nodes) if (n.head, n.relation) == (head, relation))


def _span(sentence: Sentence, node: int) -> tuple[int, int]:
    """Characters of the noun or the full name whose head is ``node`` of the meaning."""
    for first, last, _ in sentence.entities:
        if any(sentence.nodes[i][0] == node for i in range(first, last)):
            return sentence.offsets[first][0], sentence.offsets[last - 1][1]
    return next(sentence.offsets[i] for i, n in enumerate(sentence.nodes) if n[0] == node)
