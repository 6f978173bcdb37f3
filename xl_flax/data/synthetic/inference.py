"""Premises and hypotheses: entailment, neutral, contradiction.

A premise reports two deeds, and in this world nobody is ever done by as they did: if A beats B,
then B does not beat A. So the roles decide, not the words: "A beats B and C warns D" entails
"A beats B" and "B does not beat A", contradicts "B beats A" and "A does not beat B", and says
nothing on "A beats C". All three labels use words of the premise only, the four people are drawn
alike and without regard to the verb, and "not" is as frequent under each label. A logistic
regression on the presence of words in premise and hypothesis, and of words in both, reaches
0.332 (alpha) and 0.334 (delta) on 4,000 unseen pairs, trained on 16,000 (chance: 0.333).
"""

import dataclasses
import random

from xl_flax.data.synthetic import meaning
from xl_flax.data.synthetic.generator import Sentence, render
from xl_flax.data.synthetic.language import Language
from xl_flax.data.synthetic.people import Person, deed, draw_people
from xl_flax.data.synthetic.splits import belongs, key

LABELS = ("entailment", "neutral", "contradiction")


@dataclasses.dataclass(frozen=True)
class InferencePair:
    """Two sentences and how the second follows from the first."""

    premise: Sentence
    hypothesis: Sentence
    label: str  # one of LABELS


def inference_pair(
    language: Language, split: str, index: int, hypothesis_language: Language | None = None
) -> InferencePair:
    """Pair ``index`` of a split, the same meanings in every language.

    No sentence of one split, be it premise or hypothesis, is in another.

    Args:
      language: of the premise.
      split: "train", "validation" or "test".
      index: of the pair.
      hypothesis_language: of the hypothesis; the premise's by default.
    """
    rng = random.Random(key("inference", split, index))
    while True:
        premise, hypothesis, label = _draw_pair(rng)
        if belongs([premise], split) and belongs([hypothesis], split):
            break
    said = render(hypothesis, hypothesis_language or language)
    return InferencePair(premise=render(premise, language), hypothesis=said, label=label)


def _draw_pair(rng: random.Random) -> tuple[meaning.Meaning, meaning.Meaning, str]:
    people, deeds = draw_deeds(rng)
    label = rng.choice(LABELS)
    return report(deeds), draw_hypothesis(rng, people, deeds, label), label


Deed = tuple[Person, str, Person]  # who, a verb, whom


def draw_deeds(rng: random.Random) -> tuple[list[Person], list[Deed]]:
    """Four people, and what the first did to the second, and the third to the fourth."""
    people = draw_people(rng, 4)
    verbs = rng.sample(meaning.VERBS["social"], 2)
    return people, [(people[0], verbs[0], people[1]), (people[2], verbs[1], people[3])]


def report(deeds: list[Deed]) -> meaning.Meaning:
    """A sentence that tells of two deeds."""
    tree = meaning.Tree()
    first = deed(tree, *deeds[0])
    second = deed(tree, *deeds[1], head=first)
    tree.add("and", "CCONJ", second, "cc")
    return tree.meaning()


def draw_hypothesis(
    rng: random.Random, people: list[Person], deeds: list[Deed], label: str
) -> meaning.Meaning:
    """A sentence to which the report of these deeds has the relation of a label."""
    negated = rng.random() < 0.5
    subject, verb, other = rng.choice(deeds)
    if label == "neutral":
        # one of the two that did this, and one who had no part in it
        subject = rng.choice((subject, other))
        other = rng.choice([p for p in people if p not in _parties(deeds, verb)])
        if rng.random() < 0.5:
            subject, other = other, subject
    elif negated == (label == "entailment"):
        subject, other = other, subject
    hypothesis = meaning.Tree()
    if rng.random() < 0.5:
        subject = dataclasses.replace(subject, adjective="")
    if rng.random() < 0.5:
        other = dataclasses.replace(other, adjective="")
    deed(hypothesis, subject, verb, other, negated=negated)
    return hypothesis.meaning()


def _parties(deeds: list[Deed], verb: str) -> tuple[Person, Person]:
    return next((subject, other) for subject, v, other in deeds if v == verb)
