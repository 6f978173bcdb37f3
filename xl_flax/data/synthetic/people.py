"""People and their deeds: what inference pairs and passages are made of."""

import dataclasses
import random

from xl_flax.data.synthetic.meaning import NOUNS, PROPER, Tree, build_world


@dataclasses.dataclass(frozen=True)
class Person:
    """A person as every mention names them."""

    concept: str  # a noun or a first name
    family_name: str = ""
    adjective: str = ""

    def mention(self, tree: Tree, head: int, relation: str) -> int:
        """Adds the person to the tree; the index of the phrase's head."""
        node = tree.phrase(self.concept, head, relation, self.family_name)
        if not self.concept.startswith("name/"):
            tree.add("definite", "DET", node, "det")
        if self.adjective:
            tree.add(self.adjective, "ADJ", node, "amod")
        return node


def draw_people(rng: random.Random, count: int) -> list[Person]:
    """Different people, all drawn alike."""
    world = build_world()
    people = []
    for concept in rng.sample(NOUNS["person"] + PROPER["PER"], count):
        if concept.startswith("name/"):
            full = rng.random() < 0.5
            people.append(Person(concept, world.family_names[concept].draw(rng) if full else ""))
        else:
            liked = world.adjectives[concept].draw(rng)
            people.append(Person(concept, adjective=liked if rng.random() < 0.5 else ""))
    return people


def deed(
    tree: Tree,
    subject: Person | None,
    verb: str,
    other: Person | None,
    *,
    negated: bool = False,
    head: int = -1,
) -> int:
    """Adds a clause; None asks "who". A clause with a ``head`` is joined to that verb."""
    node = tree.add(verb, "VERB", head, "root" if head < 0 else "conj")
    for person, relation in ((subject, "nsubj"), (other, "obj")):
        if person is None:
            tree.add("who", "PRON", node, relation)
        else:
            person.mention(tree, node, relation)
    if negated:
        tree.add("not", "PART", node, "advmod")
    return node
