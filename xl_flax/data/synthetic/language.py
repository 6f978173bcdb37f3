"""Languages: how a meaning is put into words. A language is a handful of settings."""

import dataclasses
import functools
import itertools
import random
from collections.abc import Iterator, Mapping

from xl_flax.data.synthetic import meaning
from xl_flax.errors import UserError

# script -> (letters that open a syllable, letters that close it)
SCRIPTS = {
    "latin": ("b d f g h k l m n p r s t v z", "a e i o u"),
    "greek": ("β γ δ ζ θ κ λ μ ν ξ π ρ τ φ χ ψ", "α ε η ι ο υ ω"),
    "cyrillic": ("б в г д ж з к л м н п р с т х ш", "а е и о у ы я"),
    "georgian": ("ბ გ დ ვ ზ თ კ ლ მ ნ პ რ ს ტ შ ხ", "ა ე ი ო უ"),
    "armenian": ("բ գ դ զ թ կ հ մ ն պ ս վ տ ր ց ք", "ա ե ի ո ու է"),
    "devanagari": ("क ख ग च ज ट ड त द न प ब म र ल स", "ा ि ी े ो ु"),
    "arabic": ("ب ت ج ح د ر ز س ش ص ط ع ف ق ك ل م ن ه", "ا و ي"),
    "han": (" ".join(map(chr, range(0x4E10, 0x4E10 + 600))), ""),
}
UNSPACED = ("han",)
WORD_ORDERS = ("SVO", "SOV", "VSO")
MORPHOLOGIES = ("isolating", "agglutinative", "fusional")
ARRANGEMENTS = ("natural", "inverted", "permuted")
# what the affixes of a language with morphology express, in the order in which they follow a stem
AFFIXES = ("number/", "tense/", "adposition/", "object")


@dataclasses.dataclass(frozen=True)
class Language:
    """The settings of a language. Nothing else tells two languages apart."""

    name: str  # also the seed of its lexicon and of its corpus
    script: str = "latin"
    base: str = ""  # language in FAMILY with which it shares words
    anchors: float = 0.0  # fraction of concepts that take the base's word
    word_order: str = "SVO"
    adjective_first: bool = True  # before its noun
    adposition_first: bool = True  # before its noun; an owner stands on the other side of the noun
    arrangement: str = "natural"  # "inverted": words in reverse; "permuted": by a fixed permutation
    morphology: str = "isolating"  # else number, tense and case are endings, one each or fused
    domain: tuple[int, ...] = tuple(range(meaning.NUM_TOPICS))  # topics of its corpus
    modifiers: float = 0.4  # probability of each optional phrase: the length of sentences
    zipf_exponent: float = 1.0

    def __post_init__(self):
        choices = {
            "script": SCRIPTS,
            "word_order": WORD_ORDERS,
            "arrangement": ARRANGEMENTS,
            "morphology": MORPHOLOGIES,
        }
        for field, allowed in choices.items():
            if (value := getattr(self, field)) not in allowed:
                known = ", ".join(allowed)
                raise UserError(f"Language {self.name!r}: {field}={value!r}; choose from {known}.")
        for field in ("anchors", "modifiers"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(f"Language {self.name!r}: {field} must lie between 0 and 1.")
        if not self.domain or not set(self.domain) <= set(range(meaning.NUM_TOPICS)):
            raise UserError(
                f"Language {self.name!r}: domain={self.domain}; name topics between 0 and "
                f"{meaning.NUM_TOPICS - 1}."
            )
        if self.anchors and not self.base:
            raise UserError(f"Language {self.name!r}: anchors needs a base to share words with.")

    @property
    def separator(self) -> str:
        """What stands between words."""
        return "" if self.script in UNSPACED else " "


_LANGUAGES = (
    Language("alpha"),
    # another lexicon, not a letter in common, and nothing else: the Fake-English of the literature
    Language("beta", script="greek"),
    Language(
        "gamma",
        script="cyrillic",
        word_order="SOV",
        adjective_first=False,
        adposition_first=False,
    ),
    Language("inverted", script="georgian", arrangement="inverted"),
    Language("anchored", base="alpha", anchors=0.3),
    Language(
        "delta",
        script="armenian",
        word_order="SOV",
        adposition_first=False,
        morphology="agglutinative",
    ),
    Language("epsilon", script="han"),
    Language(
        "zeta",
        script="arabic",
        word_order="VSO",
        adjective_first=False,
        morphology="fusional",
        domain=(0, 1, 2, 3),
    ),
    Language("permuted", script="devanagari", arrangement="permuted"),
)
FAMILY: dict[str, Language] = {language.name: language for language in _LANGUAGES}


def _words(rng: random.Random, script: str) -> Iterator[tuple[str, str]]:
    """Endless (short form, long form): one syllable, and two or three."""
    onsets, vowels = (letters.split() for letters in SCRIPTS[script])

    def syllable():
        return rng.choice(onsets) + (rng.choice(vowels) if vowels else "")

    while True:
        short = syllable()
        yield short, short + "".join(syllable() for _ in range(rng.choice((1, 1, 2))))


def _is_function_word(concept: str) -> bool:
    return concept in (*meaning.FUNCTION, *meaning.QUESTIONS) or concept.startswith("adposition/")


def _own_words(language: Language, keys: list[str], taken: set[str]) -> dict[str, str]:
    """A word for each key, no two alike and none that is taken; function words are short."""
    words = _words(random.Random(f"lexicon/{language.name}"), language.script)
    lexicon = {}
    for key in keys:
        for short, long in words:
            word = short if _is_function_word(key) else long
            if word not in taken:
                break
        taken.add(word)
        lexicon[key] = word
    return lexicon


@functools.lru_cache
def lexicon(language: Language) -> Mapping[str, str]:
    """Concept -> word (a stem, where there is morphology)."""
    if not language.anchors:
        return _own_words(language, meaning.concepts(), set())
    if language.base not in FAMILY:
        raise UserError(
            f"Language {language.name!r}: unknown base {language.base!r}; choose from "
            f"{', '.join(FAMILY)}."
        )
    theirs = lexicon(FAMILY[language.base])
    if FAMILY[language.base].script != language.script:
        raise UserError(
            f"Language {language.name!r} shares words with {language.base!r} and must be written "
            f"in its script, {FAMILY[language.base].script!r}."
        )
    keys = meaning.concepts()
    count = round(language.anchors * len(keys))
    shared = set(random.Random(f"anchors/{language.name}").sample(keys, count))
    own = _own_words(language, [k for k in keys if k not in shared], set(theirs.values()))
    return {k: theirs[k] if k in shared else own[k] for k in keys}


@functools.cache
def ending(language: Language, features: tuple[str, ...]) -> str:
    """The ending that expresses ``features``, in their order.

    Agglutinative: a syllable for each feature, no two alike. Fusional: one for all of them, which
    may be that of another combination, as in German or Latin. Isolating: none.
    """
    if not features or language.morphology == "isolating":
        return ""
    if language.morphology == "fusional":
        rng = random.Random(f"ending/{language.name}/{'+'.join(features)}")
        return next(_words(rng, language.script))[0]
    return "".join(_affixes(language)[feature] for feature in features)


@functools.lru_cache
def _affixes(language: Language) -> Mapping[str, str]:
    words = _words(random.Random(f"affixes/{language.name}"), language.script)
    syllables = dict.fromkeys(short for short, _ in itertools.islice(words, 1000))
    features = [c for c in meaning.concepts() if c.startswith(AFFIXES)] + ["object"]
    return dict(zip(features, syllables, strict=False))
