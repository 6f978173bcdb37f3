"""The meaning layer: a small world of concepts, and sentences' meanings drawn from it.

A meaning is a dependency tree of concepts without words or order. What goes with what is
structured on purpose: topics choose verbs, every verb has subjects, objects, places and adverbs of
its own, every noun its own adjectives, and temporal adverbs decide the tense, all with Zipfian
frequencies. A concept is therefore recognisable by its company, in whatever language it is said.
"""

import bisect
import functools
import random
from typing import NamedTuple

CLASSES = {  # noun class -> number of nouns
    "person": 18,
    "animal": 10,
    "food": 10,
    "tool": 10,
    "garment": 8,
    "plant": 8,
    "document": 8,
    "building": 9,
    "landscape": 9,
}
ANIMATE = ("person", "animal")
PLACES = ("building", "landscape")
NAMES = {"PER": 12, "LOC": 6, "ORG": 6}  # entity type -> names; people have family names too
CLASS_OF_NAME = {"PER": "person", "LOC": "landscape", "ORG": "building"}
NUM_FAMILY_NAMES = 6
NUM_VERBS = {"transitive": 24, "intransitive": 10, "social": 8}
NUM_ADJECTIVES, NUM_ADVERBS, NUM_ADPOSITIONS, NUM_NUMERALS, NUM_TOPICS = 30, 12, 6, 4, 8
TENSES = ("present", "past", "future")  # the present has no word of its own
WORLD_SEED = "world"  # the one world all languages speak of


class Node(NamedTuple):
    """One concept of a meaning and its place in the dependency tree."""

    concept: str  # key into every language's lexicon, e.g. "noun/food/3"
    upos: str
    head: int  # index of the head node, -1 for the root
    relation: str  # Universal Dependencies relation
    entity: str = ""  # type of the named entity that this node heads


Meaning = tuple[Node, ...]
"""A sentence before it has words: the same for all of its translations."""


class Weighted(NamedTuple):
    """Choices with Zipfian weights, most frequent first."""

    items: tuple[str, ...]
    cumulative: tuple[float, ...]

    def draw(self, rng: random.Random) -> str:
        """One item."""
        # rng.choices does the same in twice the time
        return self.items[bisect.bisect(self.cumulative, rng.random() * self.cumulative[-1])]


def zipf(items, exponent: float) -> Weighted:
    """The item of rank r (from one) weighs r ** -exponent."""
    total, cumulative = 0.0, []
    for rank in range(1, len(items) + 1):
        total += rank**-exponent
        cumulative.append(total)
    return Weighted(tuple(items), tuple(cumulative))


class World(NamedTuple):
    """Who goes with what: tables from one concept to the concepts it prefers."""

    topics: tuple[Weighted, ...]  # verbs
    subjects: dict[str, Weighted]  # verb -> nouns and names
    objects: dict[str, Weighted]  # verb -> nouns and names; none for intransitive verbs
    places: dict[str, Weighted]  # verb -> nouns and names of places
    adverbs: dict[str, Weighted]  # verb -> adverbs
    adjectives: dict[str, Weighted]  # noun -> adjectives
    adpositions: dict[str, Weighted]  # place -> adpositions
    owners: dict[str, Weighted]  # noun -> nouns that it may belong to
    family_names: dict[str, Weighted]  # first name -> family names
    tenses: dict[str, str]  # temporal adverb -> tense


def numbered(kind: str, count: int) -> list[str]:
    """Concept keys ``kind/0`` … ``kind/count-1``."""
    return [f"{kind}/{i}" for i in range(count)]


NOUNS = {name: numbered(f"noun/{name}", count) for name, count in CLASSES.items()}
PROPER = {kind: numbered(f"name/{kind}", count) for kind, count in NAMES.items()}
VERBS = {kind: numbered(f"verb/{kind}", count) for kind, count in NUM_VERBS.items()}
ADJECTIVES = numbered("adjective", NUM_ADJECTIVES)
ADVERBS = numbered("adverb", NUM_ADVERBS)
ADPOSITIONS = numbered("adposition", NUM_ADPOSITIONS)
NUMERALS = numbered("numeral", NUM_NUMERALS)
FAMILY_NAMES = numbered("name/family", NUM_FAMILY_NAMES)
FUNCTION = ["definite", "number/plural", "tense/past", "tense/future", "not", "and", "of"]
QUESTIONS = ["who", "where"]


def concepts() -> list[str]:
    """Every concept there is: what a lexicon has words for."""
    content = [*NOUNS.values(), *PROPER.values(), *VERBS.values(), ADJECTIVES, ADVERBS]
    closed = [ADPOSITIONS, NUMERALS, FUNCTION, QUESTIONS]
    return [c for group in [*content, FAMILY_NAMES, *closed] for c in group]


@functools.lru_cache
def build_world(exponent: float = 1.0) -> World:
    """The world with Zipf exponent ``exponent``; its preferences do not depend on the exponent."""
    rng = random.Random(WORLD_SEED)

    def some(pool, count):
        """`count` of the pool; low numbers, common in the world, tend to come first here too."""
        chosen = rng.sample(pool, min(count, len(pool)))
        ranks = {c: (int(c.rpartition("/")[2]) + 1) * rng.expovariate(1.0) for c in chosen}
        return zipf(sorted(chosen, key=ranks.get), exponent)

    def beings(classes, count):
        """Nouns of these classes, among them some names."""
        pool = [c for name in classes for c in NOUNS[name]]
        names = [c for kind, name in CLASS_OF_NAME.items() if name in classes for c in PROPER[kind]]
        return some(rng.sample(pool, 7) + rng.sample(names, len(names) // 3), count)

    verbs = [v for group in VERBS.values() for v in group]
    things = [name for name in CLASSES if name not in PLACES]
    subjects, objects, places = {}, {}, {}
    for kind, group in VERBS.items():
        for verb in group:
            doers = ["person"] if kind == "social" else rng.sample(ANIMATE, rng.choice((1, 2)))
            subjects[verb] = beings(doers, 8)
            if kind == "social":
                objects[verb] = beings(["person"], 8)
            elif kind == "transitive":
                objects[verb] = beings(rng.sample(things, rng.choice((1, 2))), 8)
            places[verb] = beings(PLACES, 6)
    nouns = [c for group in NOUNS.values() for c in group]
    names = [c for group in PROPER.values() for c in group]
    temporal = ADVERBS[::2]
    return World(
        topics=tuple(some(verbs, 14) for _ in range(NUM_TOPICS)),
        subjects=subjects,
        objects=objects,
        places=places,
        adverbs={v: some(ADVERBS, 5) for v in verbs},
        adjectives={n: some(ADJECTIVES, 5) for n in nouns},
        adpositions={c: some(ADPOSITIONS, 2) for c in nouns + names},
        owners={n: some(NOUNS["person"], 4) for n in nouns},
        family_names={c: some(FAMILY_NAMES, 3) for c in PROPER["PER"]},
        tenses={a: TENSES[i % 3] for i, a in enumerate(temporal)},
    )


class Tree:
    """Nodes of a meaning while it is being put together; each method returns a node's index."""

    def __init__(self):
        self.nodes: list[Node] = []

    def add(self, concept: str, upos: str, head: int, relation: str, entity: str = "") -> int:
        """One node."""
        self.nodes.append(Node(concept, upos, head, relation, entity))
        return len(self.nodes) - 1

    def phrase(self, concept: str, head: int, relation: str, family_name: str = "") -> int:
        """A bare noun or name."""
        if not concept.startswith("name/"):
            return self.add(concept, "NOUN", head, relation)
        node = self.add(concept, "PROPN", head, relation, concept.split("/")[1])
        if family_name:
            self.add(family_name, "PROPN", node, "flat")
        return node

    def tense(self, tense: str, verb: int) -> None:
        """The auxiliary of a tense; the present has none."""
        if tense != "present":
            self.add(f"tense/{tense}", "AUX", verb, "aux")

    def meaning(self) -> Meaning:
        """What has been put together."""
        return tuple(self.nodes)


def _noun_phrase(rng, world, tree, concept, head, relation, modifiers) -> int:
    """A noun or name with the modifiers it likes; the index of its head."""
    if concept.startswith("name/"):
        is_full = concept in world.family_names and rng.random() < modifiers
        return tree.phrase(
            concept, head, relation, world.family_names[concept].draw(rng) if is_full else ""
        )
    node = tree.phrase(concept, head, relation)
    if rng.random() < 0.4:
        tree.add("definite", "DET", node, "det")
    if rng.random() < 0.5 * modifiers:
        if rng.random() < 0.5:
            tree.add("number/plural", "DET", node, "det")
        else:
            tree.add(rng.choice(NUMERALS), "NUM", node, "nummod")
    if rng.random() < modifiers:
        tree.add(world.adjectives[concept].draw(rng), "ADJ", node, "amod")
    if relation in ("nsubj", "obj") and rng.random() < 0.2 * modifiers:
        owner = tree.phrase(world.owners[concept].draw(rng), node, "nmod")
        tree.add("of", "ADP", owner, "case")
    return node


def _clause(rng, world, tree, topic: Weighted, modifiers: float, head: int, relation: str) -> int:
    verb_concept = topic.draw(rng)
    verb = tree.add(verb_concept, "VERB", head, relation)
    subject = world.subjects[verb_concept].draw(rng)
    _noun_phrase(rng, world, tree, subject, verb, "nsubj", modifiers)
    if verb_concept in world.objects:
        # nobody does anything to themselves
        while (thing := world.objects[verb_concept].draw(rng)) == subject:
            pass
        _noun_phrase(rng, world, tree, thing, verb, "obj", modifiers)
    tense = rng.choice(TENSES)
    if rng.random() < modifiers:
        adverb = world.adverbs[verb_concept].draw(rng)
        tree.add(adverb, "ADV", verb, "advmod")
        tense = world.tenses.get(adverb, tense)
    tree.tense(tense, verb)
    if rng.random() < 0.1:
        tree.add("not", "PART", verb, "advmod")
    if verb_concept not in world.objects or rng.random() < modifiers:
        place = world.places[verb_concept].draw(rng)
        node = _noun_phrase(rng, world, tree, place, verb, "obl", modifiers / 2)
        tree.add(world.adpositions[place].draw(rng), "ADP", node, "case")
    return verb


def draw_meaning(
    rng: random.Random,
    *,
    domain: tuple[int, ...] = tuple(range(NUM_TOPICS)),
    modifiers: float = 0.4,
    exponent: float = 1.0,
) -> Meaning:
    """A sentence's meaning.

    Args:
      rng: the source of all choices.
      domain: the topics (0 … NUM_TOPICS-1) to draw from.
      modifiers: probability of each optional phrase, which sets the sentence's length.
      exponent: of the Zipfian frequencies.
    """
    world = build_world(exponent)
    topic = world.topics[rng.choice(domain)]
    tree = Tree()
    verb = _clause(rng, world, tree, topic, modifiers, -1, "root")
    if rng.random() < 0.3 * modifiers:
        second = _clause(rng, world, tree, topic, modifiers / 2, verb, "conj")
        tree.add("and", "CCONJ", second, "cc")
    return tree.meaning()
