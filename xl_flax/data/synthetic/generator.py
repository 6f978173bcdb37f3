"""Sentences with everything known about them: words, tags, trees, entities, alignments."""

import dataclasses
import functools
import random
from collections import defaultdict
from collections.abc import Callable

from xl_flax.data.synthetic.language import AFFIXES, Language, ending, lexicon
from xl_flax.data.synthetic.meaning import Meaning, draw_meaning
from xl_flax.data.synthetic.splits import belongs, key


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence and its gold annotation; the per-word fields have one entry per word."""

    language: str
    meaning: Meaning  # equal for translations
    text: str
    words: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]  # text[start:end] is the word
    upos: tuple[str, ...]
    heads: tuple[int, ...]  # CoNLL-U: 0 is the root, i the i-th word counted from one
    relations: tuple[str, ...]
    nodes: tuple[tuple[int, ...], ...]  # nodes of the meaning that the word expresses, main first
    entities: tuple[tuple[int, int, str], ...]  # (first word, one past the last, PER | LOC | ORG)


def corpus_sentence(
    language: Language,
    split: str,
    index: int,
    corpus: str = "text",
    accept: Callable[[Meaning], bool] | None = None,
) -> Sentence:
    """Sentence ``index`` of a split of the language's own text.

    In "train", no other language of the family has it; no sentence of one split is in another.

    Args:
      language: of the sentence.
      split: "train", "validation" or "test".
      index: any number; the sentence follows from it.
      corpus: another name draws other sentences.
      accept: says which meanings are wanted; all by default.
    """
    rng = random.Random(key(corpus, language.name, split, index))
    knobs = {
        "domain": language.domain,
        "modifiers": language.modifiers,
        "exponent": language.zipf_exponent,
    }
    return render(_draw(rng, split, language.name, accept, **knobs), language)


def parallel_sentence(
    language: Language,
    split: str,
    index: int,
    corpus: str = "parallel",
    accept: Callable[[Meaning], bool] | None = None,
) -> Sentence:
    """Sentence ``index`` of a split of parallel text: the same meaning in every language.

    The arguments are those of `corpus_sentence`; none of its sentences is in another split of this.
    """
    return render(_parallel_meaning(corpus, split, index, accept), language)


@functools.lru_cache(maxsize=1024)  # languages take turns
def _parallel_meaning(
    corpus: str, split: str, index: int, accept: Callable[[Meaning], bool] | None
) -> Meaning:
    # a little longer than most corpora, so that two sentences are seldom equal
    rng = random.Random(key(corpus, split, index))
    return _draw(rng, split, "", accept, modifiers=0.5)


def _draw(
    rng: random.Random,
    split: str,
    owner: str,
    accept: Callable[[Meaning], bool] | None,
    **knobs,
) -> Meaning:
    while True:
        meaning = draw_meaning(rng, **knobs)
        if (not accept or accept(meaning)) and belongs([meaning], split, owner):
            return meaning


def align(a: Sentence, b: Sentence) -> list[tuple[int, int]]:
    """Word pairs of two translations, those that share a node of the meaning."""
    if a.meaning != b.meaning:
        raise ValueError("align needs two translations; these sentences differ in meaning.")
    where = defaultdict(list)
    for j, nodes in enumerate(b.nodes):
        for node in nodes:
            where[node].append(j)
    return sorted({(i, j) for i, nodes in enumerate(a.nodes) for n in nodes for j in where[n]})


def render(nodes: Meaning, language: Language) -> Sentence:
    """The meaning said in the language."""
    children = [[] for _ in nodes]
    for i, node in enumerate(nodes):
        if node.head >= 0:
            children[node.head].append(i)
    fused = defaultdict(list)  # node -> nodes that its ending expresses
    if language.morphology != "isolating":
        for i, node in enumerate(nodes):
            if node.concept.startswith(AFFIXES):
                fused[node.head].append(i)
        for i in fused:
            children[i] = [c for c in children[i] if c not in fused[i]]
    units = _arrange(_verb(nodes, children, language, 0), language)
    order = [i for unit in units for i in unit]

    words = lexicon(language)
    position = {node: i for i, node in enumerate(order)}
    forms, offsets, end = [], [], -len(language.separator)
    for i in order:
        form = words[nodes[i].concept] + _ending(nodes, i, fused[i], language)
        start = end + len(language.separator)
        end = start + len(form)
        forms.append(form)
        offsets.append((start, end))
    return Sentence(
        language=language.name,
        meaning=nodes,
        text=language.separator.join(forms),
        words=tuple(forms),
        offsets=tuple(offsets),
        upos=tuple(nodes[i].upos for i in order),
        heads=tuple(position[nodes[i].head] + 1 if nodes[i].head >= 0 else 0 for i in order),
        relations=tuple(nodes[i].relation for i in order),
        nodes=tuple((i, *fused[i]) for i in order),
        entities=_entities(nodes, children, position),
    )


def _ending(nodes, i: int, fused: list[int], language: Language) -> str:
    features = [nodes[j].concept for j in fused]
    if nodes[i].relation == "obj":
        features.append("object")
    # in the order of AFFIXES
    features.sort(key=lambda f: next(k for k, affix in enumerate(AFFIXES) if f.startswith(affix)))
    return ending(language, tuple(features))


def _entities(nodes, children, position) -> tuple[tuple[int, int, str], ...]:
    spans = []
    for i, node in enumerate(nodes):
        if node.entity:
            family = (j for j in children[i] if nodes[j].relation == "flat")
            places = [position[j] for j in (i, *family)]
            spans.append((min(places), max(places) + 1, node.entity))
    return tuple(sorted(spans))


# Order. A phrase is a list of units; a unit, the nodes that no arrangement tears apart: a name.


def _verb(nodes, children, language: Language, i: int) -> list[tuple[int, ...]]:
    """The clause whose verb is node ``i``."""
    part = defaultdict(list)
    for j in children[i]:
        relation = nodes[j].relation
        if relation == "conj":
            part[relation] += _verb(nodes, children, language, j)
        elif relation in ("nsubj", "obj", "obl"):
            part[relation] += _noun(nodes, children, language, j)
        else:
            part["not" if nodes[j].concept == "not" else relation].append((j,))
    if language.word_order.endswith("V"):
        verb = [*part["advmod"], (i,), *part["not"], *part["aux"]]
        slots = {"S": part["nsubj"] + part["obl"], "V": verb, "O": part["obj"]}
        tail = []
    else:
        verb = [*part["advmod"], *part["aux"], *part["not"], (i,)]
        slots = {"S": part["nsubj"], "V": verb, "O": part["obj"]}
        tail = part["obl"]
    clause = [unit for slot in language.word_order for unit in slots[slot]]
    return [*part["cc"], *clause, *tail, *part["conj"]]


def _noun(nodes, children, language: Language, i: int) -> list[tuple[int, ...]]:
    """The phrase whose noun is node ``i``, adposition and owner included."""
    part = defaultdict(list)
    name = (i,)
    for j in children[i]:
        relation = nodes[j].relation
        if relation == "nmod":
            part[relation] += _noun(nodes, children, language, j)
        elif relation == "flat":
            name += (j,)
        else:
            part[relation].append((j,))
    adjective, owner = part["amod"], part["nmod"]
    core = [*adjective, name] if language.adjective_first else [name, *adjective]
    core = [*part["det"], *part["nummod"], *core]
    if language.adposition_first:
        return [*part["case"], *core, *owner]
    return [*owner, *core, *part["case"]]


def _arrange(units: list[tuple[int, ...]], language: Language) -> list[tuple[int, ...]]:
    if language.arrangement == "inverted":
        return [unit[::-1] for unit in reversed(units)]
    if language.arrangement == "permuted":
        return [units[i] for i in _permutation(language.name, len(units))]
    return units


@functools.cache
def _permutation(name: str, length: int) -> list[int]:
    """The language's permutation of sentences of this length."""
    return random.Random(f"permutation/{name}/{length}").sample(range(length), length)
