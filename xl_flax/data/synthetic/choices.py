"""Multiple choice: which of two sentences follows from a report.

The report and the sentences are those of inference.py: the right choice is entailed, the wrong one
neutral or contradicted. Both use words of the report only and are negated as often as not, so that
the roles decide.
"""

import dataclasses
import random

from xl_flax.data.synthetic.generator import Sentence, render
from xl_flax.data.synthetic.inference import draw_deeds, draw_hypothesis, report
from xl_flax.data.synthetic.language import Language
from xl_flax.data.synthetic.splits import belongs, key


@dataclasses.dataclass(frozen=True)
class Question:
    """A report, two sentences, and which of them follows."""

    premise: Sentence
    choices: tuple[Sentence, Sentence]
    label: int  # 0 or 1


def choice_question(language: Language, split: str, index: int) -> Question:
    """Question ``index`` of a split, the same meanings in every language.

    No sentence of one split is in another.
    """
    rng = random.Random(key("choices", split, index))
    while True:
        people, deeds = draw_deeds(rng)
        premise = report(deeds)
        right = draw_hypothesis(rng, people, deeds, "entailment")
        wrong = draw_hypothesis(rng, people, deeds, rng.choice(("neutral", "contradiction")))
        if all(belongs([said], split) for said in (premise, right, wrong)):
            break
    label = rng.randrange(2)
    choices = (right, wrong) if label == 0 else (wrong, right)
    first, second = (render(said, language) for said in choices)
    return Question(render(premise, language), (first, second), label)
